"""Single modifications of a checkpoint's folder: refused in words by `load` and `verify` alike, or harmless."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_toy import FILE, bring
from torch import Tensor
from toys import RECIPE
from typer.testing import CliRunner

import magma
from magma import CheckpointError, Magma, MagmaError, PartError, Recipe
from magma.checkpoint import not_finite, write
from magma.cli.app import cli
from magma.io import atomic_folder
from magma.manifest import Manifest, hash_tensors, list_state
from magma.verify import verify

pytestmark = pytest.mark.usefixtures("stored_toys")

TRAINED, LM, MANIFEST, TOML = "trained.safetensors", f"lm/{FILE}", "manifest.json", "recipe.toml"
BIAS, COUNT = "inputs.number.prefix.linear.bias", "inputs.number.encoder.norm.num_batches_tracked"
PROMPT: list[Any] = [2, "ab"]


@pytest.fixture(scope="module")
def whole(stored_toys: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001  # the parts are there
    """A folder with everything: a language model that an import brought, and a run's state."""
    return saved(tmp_path_factory.mktemp("verify") / "whole", "stored")


@pytest.fixture(scope="module")
def logits(whole: Path) -> Tensor:
    return magma.load(whole).logits(PROMPT)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def saved(folder: Path, lm: str) -> Path:
    """The toy model as a run with an imported language model leaves it."""
    with atomic_folder(folder) as aside:
        bring(aside)
        recipe = Recipe.load({**RECIPE, "lm": {"use": lm, "weights": "lm"}}, folder=aside)
        model = magma.assemble(recipe)
        (aside / "state").mkdir()
        save_file({"a": torch.ones(3)}, aside / "state/optimizer.safetensors")
        frozen = hash_tensors(model.frozen_tensors())
        write(aside, model, recipe, frozen, step=6, state=list_state(aside))
    return folder


# Modifications

Modify = Callable[[Path], None]


def flip(file: str, where: float) -> Modify:
    """One bit, at a fraction of the file."""

    def modify(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[int(where * (len(data) - 1))] ^= 4
        (folder / file).write_bytes(data)

    return modify


def cut(file: str, keep: float) -> Modify:
    def modify(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(keep * len(data))])

    return modify


def put(file: str, text: str | bytes) -> Modify:
    return lambda folder: (folder / file).write_bytes(text.encode() if isinstance(text, str) else text) and None


def edit(file: str, old: str, new: str) -> Modify:
    def modify(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return modify


def delete(file: str) -> Modify:
    return lambda folder: (folder / file).unlink()


def swap(one: str, other: str) -> Modify:
    def modify(folder: Path) -> None:
        (folder / one).rename(folder / "aside")
        (folder / other).rename(folder / one)
        (folder / "aside").rename(folder / other)

    return modify


def copy(source: str, target: str) -> Modify:
    return lambda folder: shutil.copy(folder / source, folder / target) and None


def tensors(file: str, change: Callable[[dict[str, Tensor]], Any], matching: bool = False) -> Modify:
    """Other tensors, with a manifest that speaks of them where it is `matching`."""

    def modify(folder: Path) -> None:
        found = load_file(folder / file)
        change(found)
        save_file(found, folder / file)
        if matching and file == TRAINED:
            manifest(lambda raw: raw.update(trained=hash_tensors(found)))(folder)
        elif matching:
            frozen = {f"lm.{name}": value for name, value in found.items()}
            size = (folder / file).stat().st_size
            manifest(lambda raw: raw.update(frozen=renamed(hash_tensors(frozen)), weights={file: size}))(folder)

    return modify


def renamed(prints: dict[str, str]) -> dict[str, str]:
    """With an adapter around it the feed-forward has another path."""
    return {name.replace("lm.mlp.", "lm.mlp.sublayer."): value for name, value in prints.items()}


def manifest(change: Callable[[dict[str, Any]], Any]) -> Modify:
    def modify(folder: Path) -> None:
        raw = json.loads((folder / MANIFEST).read_text())
        change(raw)
        (folder / MANIFEST).write_text(json.dumps(raw))

    return modify


def fill(name: str, value: float) -> Callable[[dict[str, Tensor]], Any]:
    return lambda found: found[name].view(-1)[:1].fill_(value)


def at(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        raw = raw[key]
    raw[path[-1]] = value


KEYS: dict[tuple[str, ...], Any] = {
    **{(key,): str for key in ("magma", "torch", "dtype")},
    **{(key,): int for key in ("format", "step", "stage")},
    **{(key,): dict for key in ("parts", "files", "weights", "trained", "frozen", "state", "text")},
    ("parts", "lm"): dict,
    **{("parts", "lm", key): str for key in ("name", "from")},
    **{("parts", "lm", key): int for key in ("parameters", "trained")},
    ("files", TOML): str,
    ("weights", LM): int,
    ("trained", BIAS): str,
    ("frozen", "lm.words.weight"): str,
    ("state", "state/optimizer.safetensors"): str,
    ("text", "beginning"): list,
    ("text", "joined"): bool,
}
WRONG: tuple[Any, ...] = ("int8", [1], -7, {"x": None}, None)


FREE = ("magma", "torch", "name", "from", "step", "stage", "state", "beginning")
"""Keys whose values nothing else decides."""
OPTIONAL = ("step", "stage", "state")


def wrong_types() -> dict[str, tuple[str, Modify]]:
    found = {}
    for path, kind in KEYS.items():
        for value in WRONG:
            if path[-1] in FREE and (type(value) is kind or (value is None and path[0] in OPTIONAL)):
                continue
            change = manifest(lambda raw, path=path, value=value: at(raw, path, value))  # type: ignore[misc]
            found[f"{'.'.join(path)} = {value!r}"] = (MANIFEST, change)
    return found


DEEP = 100_000
REFUSED: dict[str, tuple[str, Modify]] = {
    **{f"a bit of {file} at {where}": (file, flip(file, where)) for file in (TRAINED, LM) for where in (0, 0.01, 0.02)},
    **{f"a bit of {file} at {where}": (file, flip(file, where)) for file in (TRAINED,) for where in (0.2, 0.9, 1)},
    **{f"a bit of {LM} at {where}": ("frozen tensors", flip(LM, where)) for where in (0.2, 0.9, 1)},
    **{f"a bit of {TOML} at {where}": (TOML, flip(TOML, where)) for where in (0, 0.5, 1)},
    **{
        f"{file} cut at {keep}": (file, cut(file, keep))
        for file in (TRAINED, LM, MANIFEST, TOML, "lm/config.json")
        for keep in (0, 0.5, 0.99)
    },
    **{f"{file} deleted": (file, delete(file)) for file in (TRAINED, LM, MANIFEST, TOML, "lm/config.json")},
    "tensors swapped": (LM, swap(TRAINED, LM)),
    "recipe and manifest swapped": (MANIFEST, swap(TOML, MANIFEST)),
    "texts swapped": (TOML, swap(TOML, "lm/config.json")),
    "the state's tensors as the trained ones": (TRAINED, copy("state/optimizer.safetensors", TRAINED)),
    "another adapter": (TOML, edit(TOML, "width = 4", "width = 3")),
    "another part": (TOML, edit(TOML, 'use = "add"', 'use = "plain"')),
    "another seed": (TOML, edit(TOML, "seed = 0", "seed = 1")),
    "a comment": (TOML, edit(TOML, "seed = 0", "seed = 0 # mine")),
    "a recipe of line ends": (TOML, edit(TOML, "\n", "\r\n")),
    "another configuration": ("lm/config.json", edit("lm/config.json", "16", "17")),
    "a recipe nested deeply": (TOML, put(TOML, f"name = {'[' * DEEP}{']' * DEEP}")),
    "a manifest nested deeply": (MANIFEST, put(MANIFEST, "[" * DEEP + "]" * DEEP)),
    "a manifest nested a little less": (MANIFEST, put(MANIFEST, '{"format": 2, "x": ' + "[" * 200 + "]" * 200 + "}")),
    "a manifest that is a list": (MANIFEST, put(MANIFEST, "[]")),
    "a manifest that is no UTF-8": (MANIFEST, put(MANIFEST, b"\xff\xfe{}")),
    "a number of 5,000 digits": (MANIFEST, put(MANIFEST, "9" * 5000)),
    "a format to come": ("format 3", manifest(lambda raw: raw.update(format=3))),
    **{
        f"no {key}": (key, manifest(lambda raw, key=key: raw.pop(key)))
        for key in ("dtype", "parts", "trained", "frozen")
    },  # type: ignore[misc]
    "another precision": ("frozen tensors", manifest(lambda raw: raw.update(dtype="bfloat16"))),
    "a trained key renamed": (BIAS, manifest(lambda raw: raw["trained"].update(x=raw["trained"].pop(BIAS)))),
    "a frozen key renamed": ("lm.out", manifest(lambda raw: raw["frozen"].update(x=raw["frozen"].pop("lm.out.bias")))),
    "a frozen key more": ("frozen tensors", manifest(lambda raw: raw["frozen"].update(more="0" * 64))),
    "a stage that never was": ("manifest.json has stage 4, and", manifest(lambda raw: raw.update(stage=3))),
    "a file outside": (MANIFEST, manifest(lambda raw: raw["files"].update({"../x": "0" * 64}))),
    "a file that never was": ("nothing", manifest(lambda raw: raw["files"].update(nothing="0" * 64))),
    "a beginning that cannot be read": (MANIFEST, manifest(lambda raw: raw["text"].update(beginning=[257]))),
    "another size": (LM, manifest(lambda raw: raw["weights"].update({LM: 1}))),
    "a tensor less": (BIAS, tensors(TRAINED, lambda found: found.pop(BIAS), matching=True)),
    "a tensor more": ("extra", tensors(TRAINED, lambda found: found.update(extra=torch.ones(1)), matching=True)),
    "a tensor renamed": ("bios", tensors(TRAINED, lambda found: found.update(bios=found.pop(BIAS)), matching=True)),
    "a shape": (r"[3], the", tensors(TRAINED, lambda found: found.update({BIAS: torch.ones(3)}), matching=True)),
    "a value": (TRAINED, tensors(TRAINED, fill(BIAS, 0.5))),
    "NaN": (f"{BIAS} holds NaN", tensors(TRAINED, fill(BIAS, float("nan")), matching=True)),
    "infinity": (f"{BIAS} holds NaN or inf", tensors(TRAINED, fill(BIAS, float("-inf")), matching=True)),
    "NaN in a buffer": (
        "running_var holds NaN",
        tensors(TRAINED, fill("inputs.number.encoder.norm.running_var", float("nan")), matching=True),
    ),
    "integers": (
        f"{BIAS} is int32, the model's is float32",
        tensors(TRAINED, lambda found: found.update({BIAS: found[BIAS].int()}), matching=True),
    ),
    "fractions where a count is": (
        f"{COUNT} is float32, the model's is int64",
        tensors(TRAINED, lambda found: found.update({COUNT: found[COUNT].float()}), matching=True),
    ),
    "a frozen value": ("lm.out", tensors(LM, fill("out.bias", 0.5))),
    "a frozen NaN": ("lm.out.bias holds NaN", tensors(LM, fill("out.bias", float("nan")), matching=True)),
    **wrong_types(),
}
HARMLESS: dict[str, Modify] = {
    "a manifest of other white space": manifest(dict),
    "a key that a later version adds": manifest(lambda raw: raw.update(later=[1])),
    "written by another version": manifest(lambda raw: raw.update(magma="9.9")),
    "the recipe not covered": manifest(lambda raw: raw["files"].pop(TOML)),
    "no text, as before": manifest(lambda raw: raw.pop("text")),
    "no step": manifest(lambda raw: raw.pop("step")),
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "a file beside the others": put("README.md", "mine"),
    "a hidden file": put("lm/.DS_Store", "x"),
    "an evaluation": lambda folder: (folder / "eval").mkdir(),
}


def test_enough_is_tried() -> None:
    assert len(REFUSED) + len(HARMLESS) >= 50
    assert {path[0] for path in KEYS} == Manifest.model_fields.keys()


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(MagmaError) as error:
        act()
    return str(error.value)


@pytest.mark.parametrize(("named", "modify"), REFUSED.values(), ids=REFUSED.keys())
def test_a_modification_is_refused_by_both_in_the_same_words(folder: Path, named: str, modify: Modify) -> None:
    modify(folder)
    said = refusal(lambda: magma.load(folder))
    assert named in said
    assert str(folder) in said
    assert len(said) < 2000
    assert refusal(lambda: verify(folder)) == said


@pytest.mark.parametrize("modify", HARMLESS.values(), ids=HARMLESS.keys())
def test_a_modification_is_harmless(folder: Path, logits: Tensor, modify: Modify) -> None:
    modify(folder)
    assert torch.equal(magma.load(folder).logits(PROMPT), logits)
    verify(folder)


# What is checked


def lines(folder: Path, *overrides: str) -> dict[str, str]:
    return {found.what: found.unchecked or "ok" for found in verify(folder, overrides)}


def test_everything_that_is_loaded_is_listed(whole: Path) -> None:
    found = lines(whole)
    assert list(found) == [MANIFEST, "lm/config.json", TOML, LM, TRAINED, "lm", "state/"]
    assert set(found.values()) == {"ok"}
    counts = {one.what: one.compared for one in verify(whole)}
    assert counts["lm"].startswith("10 frozen tensors")
    assert counts[TRAINED].startswith("13 tensors")


@pytest.mark.parametrize("damage", [flip("state/optimizer.safetensors", 1), delete("state/optimizer.safetensors")])
def test_a_damaged_state_is_refused_and_loads(folder: Path, damage: Modify) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match="no state to go on from: state/optimizer.safetensors is"):
        verify(folder)
    magma.load(folder)


def test_a_file_that_was_added_to_an_imported_model_is_named(folder: Path) -> None:
    (folder / "lm/tokenizer.json").write_text("{}")
    assert "it was added later" in lines(folder)["lm/tokenizer.json"]


def test_weights_that_have_moved_are_named_by_an_override(folder: Path, tmp_path: Path, logits: Tensor) -> None:
    place = shutil.copytree(folder / "lm", tmp_path / "elsewhere")
    assert torch.equal(magma.load(folder, overrides=[f"lm.weights={place}"]).logits(PROMPT), logits)
    assert lines(folder, f"lm.weights={place}")["lm"] == "ok"
    tensors(FILE, fill("out.bias", 0.5))(place)
    with pytest.raises(CheckpointError, match="1 of 10 frozen tensors are not what they were"):
        magma.load(folder, overrides=[f"lm.weights={place}"])


def test_weights_that_are_not_at_hand_are_the_only_ones_that_are_not_checked(folder: Path) -> None:
    found = lines(folder, "lm.weights=/nowhere")
    assert found.pop("lm") == f"weights: /nowhere has no {FILE}"
    assert set(found.values()) == {"ok"}
    with pytest.raises(PartError, match="/nowhere"):
        magma.load(folder, overrides=["lm.weights=/nowhere"])
    tensors(TRAINED, fill(BIAS, float("nan")), matching=True)(folder)
    with pytest.raises(CheckpointError, match=f"{BIAS} holds NaN"):
        verify(folder, ["lm.weights=/nowhere"])


def test_what_could_not_be_checked_is_an_exit_status(whole: Path) -> None:
    done = CliRunner().invoke(cli, ["verify", str(whole), "--set", "lm.weights=/nowhere"])
    assert done.exit_code == 1
    (line,) = [line for line in done.stdout.splitlines() if "NOT CHECKED" in line]
    assert line.split()[0] == "lm"
    assert f"weights: /nowhere has no {FILE}" in line
    assert done.stdout.splitlines()[-1] == f"{whole}: 1 of 7 could not be checked"


def test_missing_files_that_say_how_large_the_model_is_leave_shapes_unchecked(folder: Path) -> None:
    found = lines(folder, "lm.weights=/nowhere", "lm.dim=32")
    assert found[TRAINED].startswith("names and shapes are not compared with the model")


def test_a_model_that_cannot_be_built_without_its_weights_leaves_its_names_unchecked(tmp_path: Path) -> None:
    folder = saved(tmp_path / "planned", "planned")
    found = lines(folder, "lm.weights=/nowhere")
    assert found[TRAINED] == f"names and shapes are not compared with the model: weights: /nowhere has no {FILE}"
    assert found["lm"] == f"weights: /nowhere has no {FILE}"
    tensors(TRAINED, fill(BIAS, 0.5))(folder)
    with pytest.raises(CheckpointError, match="1 of its tensors are not what was written"):
        verify(folder, ["lm.weights=/nowhere"])


def test_a_folder_of_before_loads_with_a_note(folder: Path, logits: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    """As it was written when manifests listed neither the recipe nor the state nor sizes."""

    def older(raw: dict[str, Any]) -> None:
        del raw["files"][TOML], raw["weights"], raw["state"]

    with caplog.at_level(logging.WARNING):
        magma.load(folder)
        assert not caplog.records
        manifest(older)(folder)
        assert torch.equal(magma.load(folder).logits(PROMPT), logits)
    (record,) = caplog.records
    assert f"{TOML} is not checked: an earlier version" in record.getMessage()
    found = lines(folder)
    assert {what for what, unchecked in found.items() if unchecked != "ok"} == {TOML, "state/"}
    manifest(lambda raw: raw.pop("files"))(folder)  # the first ones of all
    assert torch.equal(magma.load(folder).logits(PROMPT), logits)
    edit(TOML, "width = 4", "width = 3")(folder)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        magma.load(folder)


def test_a_run_is_its_newest_checkpoint_and_may_be_moved(folder: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        shutil.copytree(folder, tmp_path / f"run/checkpoints/step-{step}")
    (tmp_path / "run/checkpoints/step-1" / TOML).unlink()
    verify((tmp_path / "run").rename(tmp_path / "moved"))
    (tmp_path / "moved/checkpoints/step-2" / TOML).unlink()
    with pytest.raises(CheckpointError, match="step-2: recipe.toml is missing"):
        verify(tmp_path / "moved")


# What is written


def test_weights_that_are_not_finite_are_not_saved(whole: Path, tmp_path: Path) -> None:
    model: Magma = magma.load(whole)
    with torch.no_grad():
        model.trained_tensors()[BIAS][0] = float("nan")
    with pytest.raises(CheckpointError, match=f"{BIAS} holds NaN or infinity"):
        magma.save(model, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_buffer_may_be_infinite_where_the_model_has_it_so() -> None:
    mask, ones = torch.tensor([0.0, float("-inf")]), torch.ones(2)
    assert not_finite({"x": mask}, {"x": mask.clone()}) == []
    assert not_finite({"x": mask}, {"x": mask.to("meta")}) == []
    for model in (ones, mask.flip(0), torch.nn.Parameter(mask.clone())):
        assert not_finite({"x": mask}, {"x": model}) == ["x holds NaN or infinity"]
    assert not_finite({"x": torch.tensor([1, 2]), "y": torch.ones(0)}, {}) == []
