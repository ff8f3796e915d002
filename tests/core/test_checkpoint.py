"""The trained weights and the recipe, nothing else: round trips, and refusals."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import RECIPE, ToyAdapter, ToyEncoder, ToyLM, ToyPrefix

import magma
from magma import CheckpointError, Input, Magma, Recipe
from magma.checkpoint import moved_lm_overrides
from magma.io import atomic_folder
from magma.manifest import tensor_sha256

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def model() -> Magma:
    """With trained tensors that no seed would give."""
    model = magma.assemble(RECIPE).eval()
    torch.manual_seed(7)
    with torch.no_grad():
        for tensor in model.trained_tensors().values():
            tensor.copy_(torch.rand_like(tensor.float()))
    return model


@pytest.fixture
def folder(model: Magma, tmp_path: Path) -> Path:
    return magma.save(model, tmp_path / "model", Recipe.load(RECIPE))


def test_a_round_trip_gives_the_same_logits(model: Magma, folder: Path) -> None:
    loaded = magma.load(folder)
    assert not loaded.training
    assert torch.equal(loaded.logits([2, "ab"]), model.logits([2, "ab"]))
    assert {p.name for p in folder.iterdir()} == {"recipe.toml", "trained.safetensors", "manifest.json"}


def test_it_holds_the_trained_tensors_and_no_other(model: Magma, folder: Path) -> None:
    held = load_file(folder / "trained.safetensors")
    assert held.keys() == model.trained_tensors().keys()
    assert "inputs.number.encoder.norm.running_var" in held
    assert not any(name.startswith("lm.") and ".adapter." not in name for name in held)


def test_a_model_of_instances_is_saved_with_the_recipe_that_it_implies(tmp_path: Path) -> None:
    lm, encoder = ToyLM(ToyLM.Config(dim=8)), ToyEncoder(ToyEncoder.Config(dim=5))
    prefix = ToyPrefix(ToyPrefix.Config(), 5, 4, 8)
    adapters = {"attention": lambda: ToyAdapter(ToyAdapter.Config(width=3), 8)}
    made = Magma(lm, {"n": Input(encoder, prefix, trainable=False)}, adapters)  # type: ignore[arg-type]
    magma.save(made, tmp_path / "made")
    # the toy language model and the frozen encoder start at random: their weights are not in the folder
    with pytest.raises(CheckpointError, match="frozen tensors differ from those of training"):
        magma.load(tmp_path / "made")
    loaded = magma.load(tmp_path / "made", verify=False)
    assert loaded.input_modules()["n"].encoder.frozen
    for name, tensor in loaded.trained_tensors().items():
        assert torch.equal(tensor, made.trained_tensors()[name])


def test_the_compute_precision_is_kept(model: Magma, tmp_path: Path) -> None:
    magma.save(model.to(torch.bfloat16), tmp_path / "half")
    assert all(
        t.dtype == torch.bfloat16
        for t in load_file(tmp_path / "half/trained.safetensors").values()
        if t.is_floating_point()
    )
    assert magma.load(tmp_path / "half").dtype == torch.bfloat16
    assert magma.load(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("inputs.number.prefix.linear.bias"), "inputs.number.prefix.linear.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is not a tensor of this model"),
        (
            lambda t: t.update({"inputs.number.prefix.linear.bias": torch.zeros(3)}),
            r"inputs.number.prefix.linear.bias is \[3\], the model's is \[16\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, damage: object, message: str) -> None:
    tensors = load_file(folder / "trained.safetensors")
    damage(tensors)  # type: ignore[operator]
    save_file(tensors, folder / "trained.safetensors")
    with pytest.raises(CheckpointError, match=message):
        magma.load(folder)


def test_another_language_model_is_noticed(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"10 frozen tensors differ from those of training, the first is lm\."):
        magma.load(folder, overrides=["seed=1"])  # which draws other weights


def test_an_edited_recipe_is_refused_with_what_to_do(folder: Path) -> None:
    recipe = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(recipe.replace("seed = 0", "seed = 1"))
    with pytest.raises(
        CheckpointError, match=r"recipe.toml was modified after saving\. Restore .* \[init\] checkpoint = "
    ):
        magma.load(folder)


def test_broken_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        magma.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no manifest.json and no checkpoints"):
        magma.load(tmp_path / "empty")
    weights = folder / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"trained\.safetensors cannot be read"):
        magma.load(folder)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99; this version reads format 2"):
        magma.load(folder)
    manifest.write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest.json cannot be read"):
        magma.load(folder)


def test_nothing_is_half_written(tmp_path: Path) -> None:
    def fail_half_way(folder: Path) -> None:
        with atomic_folder(folder) as aside:
            (aside / "file").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "old") as aside:
        (aside / "file").write_text("whole")
    with pytest.raises(OSError, match="disk full"):
        fail_half_way(tmp_path / "old")
    assert (tmp_path / "old/file").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_the_umask_says_who_may_read_a_folder(model: Magma, tmp_path: Path) -> None:
    """safetensors writes for the owner alone; what somebody may do beyond that, such as run a file, is kept."""
    before = os.umask(0o027)
    try:
        magma.save(model, tmp_path / "saved")
        with atomic_folder(tmp_path / "other") as aside:
            (aside / "in").mkdir()
            save_file({"x": torch.zeros(1)}, aside / "in/x.safetensors")
            (aside / "tool").touch(0o755)
            (aside / "elsewhere").symlink_to(tmp_path / "gone")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_file()}
    assert modes.pop("tool") == 0o750
    assert set(modes) == {"recipe.toml", "manifest.json", "trained.safetensors", "x.safetensors"}
    assert set(modes.values()) == {0o640}


def test_fingerprints_see_values_shapes_and_types() -> None:
    one = torch.arange(6.0)
    assert tensor_sha256(one) == tensor_sha256(one.clone())
    others = [one + 1e-6, one.view(2, 3), one.double(), one.bfloat16(), -one]
    assert len({tensor_sha256(t) for t in [one, *others]}) == 6
    assert tensor_sha256(torch.tensor(3)) != tensor_sha256(torch.tensor(4))


def test_the_home_of_an_unknown_user_is_a_name_like_any_other() -> None:
    assert moved_lm_overrides("~no-such-user/lm") == ['lm.weights="~no-such-user/lm"']
