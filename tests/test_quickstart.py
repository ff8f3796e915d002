"""The quickstart as a user runs it: what it must reach, and in what time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from magma_data.digits.written import WORDS, load_images
from PIL import Image
from program import magma, start

pytestmark = pytest.mark.slow


def report_of(out: Path) -> dict[str, Any]:
    report = json.loads((out / "report.json").read_text())
    assert isinstance(report, dict)
    return report


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], float]:
    """The run, its report, and the seconds from its first file to its last.

    MAGMA_TEST_QUICKSTART is the folder of such a run where there is one: CI has just made it with README's command.
    """
    if done := os.environ.get("MAGMA_TEST_QUICKSTART"):
        out = Path(done)
    else:
        out = tmp_path_factory.mktemp("quickstart") / "run"
        done = start("recipe", "run", "quickstart", "--out", out)
        assert done.returncode == 0, done.stderr
    return out, report_of(out), (out / "report.json").stat().st_mtime - (out / "recipe.toml").stat().st_mtime


@pytest.mark.timed
def test_it_learns_to_see_and_the_language_model_stays(quickstart: tuple[Path, dict[str, Any], float]) -> None:
    _, report, seconds = quickstart
    assert seconds < 240
    assert report["caption_accuracy"] >= 0.95
    assert 0.05 < report["shuffled_score"] < 0.16
    assert report["frozen_unchanged"] is True
    scores = report["tasks"]["0.digits"]
    assert scores["model"]["parity_two_step_accuracy"] >= 0.85
    assert scores["blind"]["parity_two_step_accuracy"] < 0.6


def vqa_of_digits(folder: Path) -> None:
    """Two questions an image, ten answers each, as VQA v2 has them."""
    folder.mkdir()
    for split, count in (("train", 60), ("val", 20)):
        pixels, labels = load_images("train" if split == "train" else "test")
        rows = []
        for i in range(count):
            name = f"{split}_{i}.png"
            Image.fromarray(pixels[i]).save(folder / name)
            word, parity = WORDS[labels[i]], "odd" if labels[i] % 2 else "even"
            asked = (("Which number is this?", word), ("Is it odd or even?", parity))
            rows += [
                {"image": name, "id": f"{split} {i} {n}", "question": question, "answers": [answer] * 9 + ["none"]}
                for n, (question, answer) in enumerate(asked)
            ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluation(model: Path, data: Path, out: Path, batch_size: int) -> list[str]:
    words = ["--task", "vqa2", "--data", str(data), "--shots", "0", "2", "4", "--batch-size", str(batch_size)]
    return ["eval", str(model), *words, "--out", str(out)]


def test_a_vqa_set_of_digits(quickstart: tuple[Path, dict[str, Any], float], tmp_path: Path) -> None:
    """Scores, baselines and every answer, whatever the batches and however often it is killed."""
    model, *_ = quickstart
    data = tmp_path / "data"
    vqa_of_digits(data)
    for size in (1, 32):
        done = magma(*evaluation(model, data, tmp_path / str(size), size))
        assert done.returncode == 0, done.stderr
    cut = tmp_path / "cut"
    for shots in ("0_shot.shuffled", "2_shot"):  # killed while these are written
        command = [sys.executable, "-m", "magma.cli", *evaluation(model, data, cut, 8)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        partial = cut / f"{shots}.jsonl.partial"
        while process.poll() is None and not (partial.is_file() and partial.stat().st_size):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = magma(*evaluation(model, data, cut, 32))
    assert done.returncode == 0, done.stderr
    ways = ("", ".shuffled", ".blind")
    files = [f"{n}_shot{way}.jsonl" for n in (0, 2, 4) for way in ways]
    assert sorted(f.name for f in cut.glob("*.jsonl*")) == sorted(files)
    for name in (*files, "scores.json"):
        texts = {(tmp_path / folder / name).read_text() for folder in ("1", "32", "cut")}
        assert len(texts) == 1, name
    scores = json.loads((cut / "scores.json").read_text())["scores"]
    for shots in ("0", "4"):
        assert scores[shots]["model"]["accuracy"] >= 90
        assert scores[shots]["blind"]["accuracy"] < 45
        assert scores[shots]["shuffled"]["accuracy"] < 45
    line = json.loads((cut / "4_shot.jsonl").read_text().splitlines()[3])
    assert line["prompt"].count("[image]Q: ") == 5
    assert len(line["shots"]) == 4
    assert line["score"] in (0, 100)
    table = magma("eval", "score", "vqa2", cut / "0_shot.jsonl", "--json", cut / "s")
    assert table.returncode == 0, table.stderr
    assert json.loads((cut / "s").read_text())["accuracy"] == scores["0"]["model"]["accuracy"]


def test_two_processes_reach_the_same_loss(tmp_path: Path) -> None:
    """With dropout and with each process's own statistics in BatchNorm."""
    words = ["recipe", "run", "quickstart", "--set", "train.samples=1280", "--set", "tasks=[]"]
    words += ["--set", "data.evaluation=[]"]
    runs = {1: magma, 2: start}
    losses = {}
    for processes, program in runs.items():
        out = tmp_path / str(processes)
        done = program(*words, "--out", out, "--nproc", processes)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[processes] = [row["loss"] for row in rows if "loss" in row]
    last = {processes: sum(found[-20:]) / 20 for processes, found in losses.items()}
    assert last[1] == pytest.approx(last[2], rel=0.15)
    assert last[2] < 0.3 * losses[2][0]
