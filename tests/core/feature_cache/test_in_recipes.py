"""`inputs.NAME.cache` in recipes and in training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cached_toys
import pytest
import toys
from cached_toys import FileEncoder, write_files
from conftest import install_parts

import magma
from magma import DataSource, Example, InputError, Media, PartConfig, Recipe, RecipeError, SourceState, Text, hookimpl
from magma.cli.features import features
from magma.training.train import train


class Files(DataSource):
    """Files of numbers in a new order in each epoch, each with its name."""

    name = "files"

    class Config(PartConfig):
        path: str

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        files = sorted(Path(self.config.path).iterdir())
        state = state or {"epoch": 0, "position": 0}
        for i in range(state["position"], len(files)):
            file = files[(3 * i + state["epoch"]) % len(files)]
            last = i + 1 == len(files)
            after = {"epoch": state["epoch"] + last, "position": 0 if last else i + 1}
            yield Example([Media("numbers", file), Text(f" {file.stem}", target=True)], file.name), after


@hookimpl
def magma_parts() -> list[type]:
    return [*toys.magma_parts(), FileEncoder, Files]


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_toys, "magma_parts", magma_parts, raising=False)
    install_parts(monkeypatch, "cached_toys")


def recipe(folder: Path, *overrides: str, **changes: Any) -> Recipe:
    data = [{"use": "files", "path": str(folder / "files")}]
    tables = {
        "name": "toy",
        "lm": {"use": "toy"},
        "inputs": {"numbers": {"trainable": False, "encoder": {"use": "numbers"}, "prefix": {"use": "plain"}}},
        "data": {"train": data, "evaluation": data},
        "train": {"steps": 6, "batch_size": 4, "lr": 1e-2, "precision": "fp32", "evaluate_every": 3, "workers": 0},
    }
    return Recipe.load({**tables, **changes}, overrides)


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row.get("loss", row.get("evaluation_loss")) for row in rows]


def cache_table(folder: Path, **keys: Any) -> str:
    given = {"folder": f'"{folder / "cache"}"', **keys}
    return f"inputs.numbers.cache={{ {', '.join(f'{key} = {value}' for key, value in given.items())} }}"


def test_training_has_the_same_losses(tmp_path: Path) -> None:
    write_files(tmp_path / "files")
    train(recipe(tmp_path), tmp_path / "plain")
    expected = losses(tmp_path / "plain")
    assert len(expected) == 8
    for name, workers in (("cold", 0), ("warm", 0), ("workers", 1)):
        FileEncoder.calls.update(prepare=0, forward=0)
        train(recipe(tmp_path, cache_table(tmp_path), f"train.workers={workers}"), tmp_path / name)
        assert losses(tmp_path / name) == expected
        # A batch without media would run the dummy item; here every batch has some.
        assert (FileEncoder.calls["forward"] == 0) == (name != "cold")


def test_a_checkpoint_keeps_its_cache(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    train(recipe(tmp_path, cache_table(tmp_path, max_bytes=1_000_000)), tmp_path / "run")
    model = magma.load(tmp_path / "run")
    cache = model.input_modules()["numbers"].cache
    assert cache is not None
    assert cache.store.max_bytes == 1_000_000
    plain = magma.load(tmp_path / "run", overrides=["inputs.numbers.cache=false"])
    assert plain.input_modules()["numbers"].cache is None
    prompts = [[file] for file in files]
    assert model.generate(prompts, max_tokens=3) == plain.generate(prompts, max_tokens=3)
    assert cache.misses == 8
    assert model.generate(prompts, max_tokens=3) == plain.generate(prompts, max_tokens=3)
    assert cache.hits == 8
    magma.save(model, tmp_path / "again")
    again = magma.load(tmp_path / "again").input_modules()["numbers"].cache
    assert again is not None
    assert again.store.folder == tmp_path / "cache"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inputs.numbers.trainable=true"], ": given for an encoder that is trained"),
        (["inputs.numbers.encoder.noise=true"], ": given for an encoder that changes media at random"),
        (["deepspeed.zero_optimization.stage=3"], ": given with deepspeed.zero_optimization.stage = 3"),
        (["inputs.numbers.cache=yes"], ": given 'yes'; allowed: true, false, or a table"),
        (["inputs.numbers.cache.max_bytes=0"], ".max_bytes: given 0"),
        (["inputs.numbers.cache.bytes=1"], ".bytes: given 1, an unknown key"),
        (["inputs.numbers.cache.encode_by=row"], ".encode_by: given 'row'; allowed: 'batch' or 'item'"),
    ],
)
def test_mistakes(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(tmp_path, "inputs.numbers.cache={}", *overrides)
    (problem,) = error.value.problems
    assert problem.startswith(f"inputs.numbers.cache{message}")


def test_stages_switch_it(tmp_path: Path) -> None:
    stages = [{"train": {"steps": 1}}, {"inputs": {"numbers": {"trainable": True, "cache": False}}}]
    frozen, trained = recipe(tmp_path, "inputs.numbers.cache=true", stages=stages).in_stages()
    assert frozen.inputs["numbers"].cache is not None
    assert trained.inputs["numbers"].cache is None
    with pytest.raises(RecipeError, match=r"stages\[1\].inputs.numbers.cache: given for an encoder that is trained"):
        recipe(tmp_path, "inputs.numbers.cache=true", stages=[{}, {"inputs": {"numbers": {"trainable": True}}}])


def test_recipes_without_it_are_written_as_before(tmp_path: Path) -> None:
    assert "[inputs.numbers.cache]" not in recipe(tmp_path).to_toml()
    assert "[inputs.numbers.cache]" in recipe(tmp_path, "inputs.numbers.cache=true").to_toml()
    assert recipe(tmp_path, "inputs.numbers.cache=false").to_toml() == recipe(tmp_path).to_toml()


def test_the_command_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_files(tmp_path / "files")
    toml = tmp_path / "toy.toml"
    toml.write_text(recipe(tmp_path, cache_table(tmp_path)).to_toml())
    train(recipe(tmp_path), tmp_path / "run")
    command = partial(features, device="cpu", shard_size=5, batch_size=4)
    for source, data, keys in (
        (toml, files[0].parent, {}),
        (toml, "train", {}),
        (tmp_path / "run", "evaluation", {}),
        (tmp_path / "run", files[0].parent, {"use": "files"}),
    ):
        out = tmp_path / f"{Path(source).stem} {Path(data).name} {len(keys)}"
        for kept in ("", ", 2 of them were there already"):
            command(str(source), str(data), out, **keys)
            assert f"features and embeddings of 8 media are in {out}: 2 shards{kept}\n" in capsys.readouterr().out
        index = json.loads((out / "index.json").read_text())
        assert [shard["media"] for shard in index["shards"]] == [5, 3]
    for arguments, message in (
        ({"data": "nothing"}, "DATA: given 'nothing'; allowed: a folder or file that exists"),
        ({"data": "train", "input_name": "scan"}, "--input: given 'scan'; allowed: numbers"),
        ({"data": "train", "data_keys": ["limit=1"]}, "--data-set: given without --use"),
        ({"data": "train", "overrides": ["data.train=[]"]}, r"the recipe has no \[\[data.train\]\]"),
    ):
        with pytest.raises(InputError, match=message):
            command(str(toml), out=tmp_path / "none", **arguments)
