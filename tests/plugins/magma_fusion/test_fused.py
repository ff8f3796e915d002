"""Several encoders as one: its members' own features, joined; each prepares the input in its own way."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from magma_audio.spectrogram import Spectrogram
from magma_fusion import Fused
from magma_media.waveform import example_recordings
from magma_vision.timm_features import Timm
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import magma
from magma import CheckInputs, Encoder, Features, InputError, PartConfig, PartError, Recipe, testing
from magma.manifest import find_checkpoint
from magma.plan import plan
from magma.training.train import train
from magma.values import tensors_in

VIT = {"use": "timm", "model": "test_vit", "image_size": 64}
CLIP = {"use": "clip", "layers": 1, "width": 16, "image_size": 32, "patch_size": 8, "head_width": 8}
"""16 features of 32 x 32 pixels, as many as `VIT` has of 64 x 64."""
AUDIO = {"use": "spectrogram", "rate": 8000, "seconds": 0.6, "bands": 16, "width": 16, "heads": 2}


def images(folder: Path) -> CheckInputs:
    inputs = Timm.check_inputs(folder)
    return CheckInputs({"of": [VIT, {"use": "fused", "of": [CLIP]}]}, inputs.good, inputs.bad)


def recordings(folder: Path) -> CheckInputs:
    inputs = Spectrogram.check_inputs(folder)
    return CheckInputs({"of": [AUDIO, {**AUDIO, "convolutions": 2}], "join": "sequence"}, inputs.good, inputs.bad)


@pytest.mark.parametrize("inputs", [pytest.param(images, marks=pytest.mark.slow), recordings])
def test_other_members_and_nested_ones_conform(inputs: Any, tmp_path: Path) -> None:
    found = testing.run_checks(Fused, inputs(tmp_path))
    assert [f"{one.check}: {one.problem}" for one in found if one.problem] == []


def picture() -> Image.Image:
    return Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 80).convert("RGB")


def equal(one: Any, other: Any) -> bool:
    return all(map(torch.equal, tensors_in(one), tensors_in(other)))


@pytest.mark.parametrize("join", ["channels", "sequence"])
@pytest.mark.parametrize("table", [{**VIT, "augmentation": {"crop": [0.3, 0.9], "flip": 0.5}}, AUDIO])
def test_one_member_gives_the_bits_of_that_encoder(table: dict[str, Any], join: str, tmp_path: Path) -> None:
    kind = Timm if table["use"] == "timm" else Spectrogram
    raws: Any = [picture(), picture().rotate(90)] if kind is Timm else example_recordings(tmp_path, 0.5)[0]
    torch.manual_seed(4)
    alone: Encoder = kind.build(**{key: value for key, value in table.items() if key != "use"})
    torch.manual_seed(4)
    fused = Fused.build(of=[table], join=join)
    assert (fused.dim, fused.length, fused.modality) == (alone.dim, alone.length, alone.modality)
    one, other = random.Random(8), random.Random(8)
    items = [alone.prepare(raw, one) for raw in raws]
    packed = [fused.prepare(raw, other) for raw in raws]
    assert one.getstate() == other.getstate()
    assert equal(tuple(items), tuple(packed))
    assert [alone.num_features(item) for item in items] == [fused.num_features(item) for item in packed]
    assert equal((alone.dummy_item(), alone.max_size_item()), (fused.dummy_item(), fused.max_size_item()))
    found, expected = fused(fused.stack(packed)), alone(alone.stack(items))
    assert torch.equal(found.values, expected.values)
    assert (found.lengths is None) == (expected.lengths is None)
    assert found.lengths is None or torch.equal(found.lengths, expected.lengths)
    found.values.square().sum().backward()
    expected.values.square().sum().backward()
    for mine, theirs in zip(fused.parameters(), alone.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)


def test_channels_and_sequence_are_the_members_own_features(tmp_path: Path) -> None:
    raws = example_recordings(tmp_path, 0.5)[0]
    for join in ("channels", "sequence"):
        fused = Fused.build(of=[AUDIO, {**AUDIO, "bands": 8}], join=join).eval()
        items = [fused.prepare(raw) for raw in raws]
        found = fused(fused.stack(items))
        assert found.lengths.tolist() == [fused.num_features(item) for item in items]
        assert len(set(found.lengths.tolist())) > 1
        for row, raw in enumerate(raws):
            own = [member(member.stack([member.prepare(raw)])).values[0] for member in fused.members]
            expected = torch.cat(own, dim=1 if join == "channels" else 0)
            assert found.values[row, : len(expected)].allclose(expected, atol=1e-5)
        assert (found.values.shape[2], fused.dim) == ((32, 32) if join == "channels" else (16, 16))


def test_members_see_the_same_augmentation() -> None:
    augmentation = {"crop": [0.2, 0.5], "flip": 0.5, "rotation": 40}
    fused = Fused.build(of=[{**VIT, "augmentation": augmentation}] * 2)
    for seed in range(3):
        one, other = fused.prepare(picture(), random.Random(seed))
        assert torch.equal(one, other)
        assert not torch.equal(one, fused.prepare(picture())[0])


def test_members_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PartError) as caught:
        Fused.build(of=[VIT, {**CLIP, "image_size": 64}])
    assert str(caught.value) == (
        'the members of fused differ in their number of features, with join = "channels": of.0 (timm): 16, '
        "of.1 (clip): 64; allowed: equal values"
    )
    with pytest.raises(
        PartError, match=r'width, with join = "sequence": of\.0 \(timm\): 64, of\.1 \(clip\): 16; allowed'
    ):
        Fused.build(of=[VIT, CLIP], join="sequence")
    with pytest.raises(PartError, match=r"modality: of\.0 \(timm\): image, of\.1 \(spectrogram\): audio; allowed"):
        Fused.build(of=[VIT, AUDIO])
    with pytest.raises(PartError, match=r"^inputs\.image\.encoder: the members of fused differ in their number"):
        magma.assemble(recipe(of=[VIT, {**CLIP, "image_size": 64}]), device="meta")


class Rounded(Spectrogram):
    """As long as the other one at most, and shorter for short recordings."""

    def num_features(self, prepared: Tensor) -> int:
        return max(1, super().num_features(prepared) - (len(prepared) < self.frames))


def test_an_input_with_unequal_numbers_of_features_is_refused(tmp_path: Path) -> None:
    fused = Fused.build(of=[AUDIO, AUDIO])
    fused.of[1].__class__ = Rounded
    path, *_ = example_recordings(tmp_path, 0.5)[0]
    with pytest.raises(InputError, match=r'the members of fused give 7, 6 features; allowed with join = "channels"'):
        fused.prepare(path)
    assert fused.num_features(fused.dummy_item()) in (1, fused.length)


def recipe(**encoder: Any) -> dict[str, Any]:
    return {
        "name": "fused",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {
            "image": {"encoder": {"use": "fused", **encoder}, "prefix": {"use": "linear"}, "trainable": False},
        },
        "data": {"train": [{"use": "digits", "split": "train"}]},
        "train": {"steps": 3, "batch_size": 4, "lr": 1e-2, "precision": "fp32"},
    }


def test_a_plan_counts_what_the_members_compute() -> None:
    tables = [recipe(of=of) for of in ([VIT], [CLIP], [VIT, CLIP])]
    one, other, both = (
        plan(Recipe.load({**t, "inputs": {"image": {**t["inputs"]["image"], "trainable": True}}})) for t in tables
    )
    assert one.costs
    assert other.costs
    assert both.costs
    assert both.inputs["image"].encoder_dim == one.inputs["image"].encoder_dim + other.inputs["image"].encoder_dim
    members = one.costs.per_medium["image"] + other.costs.per_medium["image"]
    assert both.costs.per_medium["image"] == pytest.approx(members, rel=1e-6)
    assert both.totals["encoder"] == one.totals["encoder"] + other.totals["encoder"]


@pytest.mark.slow
def test_two_frozen_encoders_and_a_trained_prefix(tmp_path: Path) -> None:
    whole = Recipe.load(recipe(of=[VIT, CLIP]))
    train(whole, tmp_path / "whole")
    stored = load_file(find_checkpoint(tmp_path / "whole") / "trained.safetensors")
    assert {name.rpartition(".")[0] for name in stored} == {"inputs.image.prefix.projection"}
    parts = Recipe.load(recipe(of=[VIT, CLIP]), ("train.checkpoint_every=2", "train.workers=1"))
    train(parts, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/step-00000003")
    train(parts, tmp_path / "parts", resume=True)
    resumed = load_file(find_checkpoint(tmp_path / "parts") / "trained.safetensors")
    assert all(torch.equal(t, resumed[name]) for name, t in stored.items())
    model = magma.load(tmp_path / "parts")
    fresh = magma.assemble(whole).state_dict()
    assert all(torch.equal(t, fresh[n]) for n, t in model.state_dict().items() if n.startswith("inputs.image.encoder."))
    assert model.generate([picture(), "A"], max_tokens=2) == model.generate([[picture(), "A"]], max_tokens=2)[0]


def test_a_part_that_gives_a_tuple_reaches_every_member() -> None:
    """The batch is moved and converted tensor by tensor."""

    class Counts(Encoder):
        """Two tensors of different dtypes."""

        name = "counts"
        modality = "numbers"

        def __init__(self, config: PartConfig) -> None:
            super().__init__(config)
            self.dim, self.length = 1, 1

        def accepts(self, raw: Any) -> bool:
            return isinstance(raw, float)

        def prepare(self, raw: Any, rng: random.Random | None = None) -> tuple[Tensor, Tensor]:
            return torch.tensor(raw), torch.tensor(3)

        def dummy_item(self) -> tuple[Tensor, Tensor]:
            return torch.tensor(0.0), torch.tensor(0)

        def stack(self, items: Any) -> tuple[Tensor, Tensor]:
            values, counts = zip(*items, strict=True)
            return torch.stack(values), torch.stack(counts)

        def forward(self, x: tuple[Tensor, Tensor]) -> Features:
            return Features((x[0] * x[1])[:, None, None])

    from magma.data.collator import Collator
    from magma.values import Example, Media, Text

    class Copy(magma.Prefix):
        """The feature itself."""

        name = "copy"

        def __init__(self, config: PartConfig, encoder_dim: int, encoder_length: int, dim: int) -> None:
            super().__init__(config, encoder_dim, encoder_length, dim)
            self.length = 1

        def forward(self, features: Features) -> Features:
            return features

    lm = magma.assemble({"name": "lm", "lm": {"use": "gptj", "weights": "bundled:tiny"}}).lm
    collator = Collator(lm, {"n": (Counts(PartConfig()), Copy(PartConfig(), 1, 1, 8))})
    batch = collator.batch([Example([Media("n", x), Text("a", target=True)]) for x in (1.5, 2.0)]).to(
        "cpu", torch.bfloat16
    )
    values, counts = batch.media["n"]
    assert (values.dtype, counts.dtype, counts.tolist()) == (torch.bfloat16, torch.int64, [3, 3])
