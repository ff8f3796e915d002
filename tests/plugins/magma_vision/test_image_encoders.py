"""Image encoders: shapes, preparation, weights in their libraries' formats."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from magma_vision import clip
from magma_vision.clip import Clip
from magma_vision.nfresnet import NFResNet
from magma_vision.timm_features import Timm
from PIL import Image
from safetensors.torch import save_file

from magma import Encoder, InputError, PartError

SMALL: dict[str, Any] = {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}
VIT: dict[str, Any] = {"layers": 2, "width": 32, "image_size": 64, "patch_size": 16, "head_width": 8}
NF: dict[str, Any] = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}


def on_meta(part: type[Encoder], **fields: Any) -> Any:
    with torch.device("meta"):
        return part(part.Config(**fields))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("fields", "length", "dim", "parameters"),
    [
        ({"model": "RN50x16"}, 144, 3072, 136_202_640),
        ({"model": "RN50x4"}, 81, 2560, None),
        ({"model": "RN50x4", "image_size": 224}, 49, 2560, None),
        ({"model": "RN50"}, 49, 2048, None),
        ({"model": "ViT-B-32"}, 49, 768, None),
        ({"model": "convnext_base"}, 49, 1024, None),
        (SMALL, 4, 512, None),
        (VIT, 16, 32, None),
    ],
)
def test_sizes_are_read_off_the_network(fields: Any, length: int, dim: int, parameters: int | None) -> None:
    encoder = on_meta(Clip, **fields)
    assert (encoder.length, encoder.dim) == (length, dim)
    if parameters is not None:
        assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_nf_resnet50_is_pooled() -> None:
    encoder = on_meta(NFResNet)
    assert (encoder.length, encoder.dim) == (1, 2048)


@pytest.mark.parametrize(("part", "fields"), [(Clip, SMALL), (Clip, VIT), (NFResNet, NF)])
def test_features_have_the_declared_shape_and_every_parameter_learns(part: type[Encoder], fields: Any) -> None:
    torch.manual_seed(0)
    encoder = part.build(**fields).train()
    x = torch.randn(3, 3, 64, 64)
    features = encoder(x)
    assert features.values.shape == (3, encoder.length, encoder.dim)
    assert features.lengths is None
    features.values.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert encoder.stack([encoder.dummy_item(), encoder.dummy_item()]).shape == (2, 3, 64, 64)


def test_the_grid_is_what_the_pooling_reads_row_by_row() -> None:
    from open_clip.modified_resnet import ModifiedResNet

    torch.manual_seed(0)
    whole = ModifiedResNet([1, 1, 1, 1], 8, 32, 64, 16).eval()
    seen: list[torch.Tensor] = []
    whole.attnpool.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder = Clip.build(**SMALL).eval()
    encoder.network.load_state_dict({n: t for n, t in whole.state_dict().items() if not n.startswith("attnpool")})
    x = torch.randn(2, 3, 64, 64)
    whole(x)
    values = encoder(x).values
    for row in range(2):
        for column in range(2):
            assert torch.allclose(values[:, 2 * row + column], seen[0][:, :, row, column], atol=1e-6)


def reference(image: Image.Image, size: int) -> torch.Tensor:
    """The published code's transform, in torchvision's words."""
    from torchvision import transforms as t

    return t.Compose(
        [
            t.Resize(size, interpolation=t.InterpolationMode.BICUBIC),
            t.CenterCrop(size),
            lambda found: found.convert("RGB"),
            t.ToTensor(),
            t.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )(image)


@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (101, 64), (64, 97), (300, 211), (75, 333), (65, 63)])
def test_preparation_is_the_published_one(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    encoder = on_meta(Clip, **SMALL)
    expected = reference(Image.fromarray(pixels), 64)
    assert torch.allclose(encoder.prepare(pixels), expected, atol=1e-6)


def test_every_way_to_hold_an_image_gives_the_same(tmp_path: Path) -> None:
    encoder = on_meta(Clip, **SMALL)
    grey = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "x.png")
    expected = encoder.prepare(grey)
    ways = [
        colour,
        Image.fromarray(grey),
        Image.fromarray(colour),
        tmp_path / "x.png",
        (tmp_path / "x.png").read_bytes(),
        bytearray((tmp_path / "x.png").read_bytes()),
        torch.from_numpy(colour).permute(2, 0, 1),
    ]
    for raw in ways:
        assert encoder.accepts(raw)
        assert torch.equal(encoder.prepare(raw), expected)
    assert encoder.prepare(expected) is expected


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    encoder = on_meta(Clip, **SMALL)
    for raw in (
        "a string",
        3,
        b"RIFF\0\0\0\0WAVE",
        b"ID3",
        b"fLaC",
        b"OggS",
        np.zeros(4, np.uint8),
        torch.zeros(5, dtype=torch.long),
        Path("sound.wav"),
    ):
        assert not encoder.accepts(raw)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    for raw, message in [
        (tmp_path / "broken.png", "broken.png cannot be read as an image"),
        (tmp_path / "gone.png", "gone.png cannot be read as an image"),
        (b"\x89PNG\r\n\x1a\n and no more", "a file of 20 bytes cannot be read as an image: its format is unknown"),
        (np.zeros((0, 4), np.uint8), r"given a ndarray \[0, 4\] of uint8; allowed: an image file"),
        (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\]"),
        (np.zeros((4, 4)), "float64"),
        (torch.zeros(3, 32, 32), r"float tensor \[3, 32, 32\]; allowed: .*\[3, 64, 64\]"),
        (torch.full((3, 64, 64), torch.nan), "with NaN or infinity"),
    ]:
        with pytest.raises(InputError, match=message):
            encoder.prepare(raw)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_bytes_of_every_kind_of_image_are_known_as_such(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (200, 20, 20)).save(file, kind)
    encoder = on_meta(Clip, **SMALL)
    assert encoder.accepts(file.getvalue())
    assert torch.allclose(encoder.prepare(file.getvalue()), encoder.prepare(Image.open(file)))
    with pytest.raises(InputError, match=r"a file of \d+ bytes cannot be read as an image"):
        encoder.prepare(file.getvalue()[: len(file.getvalue()) // 2])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("fields", [SMALL, VIT])
def test_a_clip_files_tower_is_loaded(tmp_path: Path, suffix: str, fields: dict[str, Any]) -> None:
    from open_clip.model import CLIP

    vision = {k: v for k, v in fields.items() if k != "head_width"} | {"head_width": fields.get("head_width", 64)}
    torch.manual_seed(5)
    clip = CLIP(embed_dim=64, vision_cfg=vision, text_cfg={"width": 16, "heads": 2, "layers": 1, "vocab_size": 50})
    path = tmp_path / f"clip{suffix}"
    state = clip.state_dict()
    torch.save({"state_dict": state}, path) if suffix == ".pt" else save_file(state, path)
    encoder = Clip.build(**fields, weights=str(path))
    for name, tensor in encoder.network.state_dict().items():
        assert torch.equal(tensor, state[f"visual.{name}"])


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = Clip.build(**SMALL).network.state_dict()
    state["conv1.weight"] = torch.zeros(3, 3)
    state["stray"] = torch.zeros(1)
    del state["bn1.bias"]
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(
        PartError, match=r"3 tensors do not fit(.|\n)*bn1.bias is missing(.|\n)*stray(.|\n)*conv1.weight has"
    ):
        Clip.build(**SMALL, weights=str(tmp_path / "bad.pt"))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return self.path.touch, ()


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"x": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    with pytest.raises(PartError, match="bomb.pt is refused: .* contains .*; nothing was executed"):
        Clip.build(**SMALL, weights=str(tmp_path / "bomb.pt"))
    assert not (tmp_path / "exploded").exists()


def test_a_file_whose_sums_or_sizes_are_not_right_is_refused(tmp_path: Path) -> None:
    """Weights are mapped: a storage that is too short would go on in what is written behind it."""
    state = Clip.build(**SMALL).network.state_dict()
    torch.save(state, tmp_path / "whole.pt")
    data = bytearray((tmp_path / "whole.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "cut.pt", "w") as cut:
        for name in whole.namelist():
            cut.writestr(name, whole.read(name)[: -4 if name.endswith("/data/7") else None])
    for file, message in (("flipped.pt", "was modified after saving"), ("cut.pt", "is damaged: .* stored sizes")):
        with pytest.raises(PartError, match=rf"{file}.* {message}"):
            Clip.build(**SMALL, weights=str(tmp_path / file))


def test_quick_gelu_goes_with_openais_weights() -> None:
    from open_clip.transformer import QuickGELU

    def quick(**fields: Any) -> bool:
        return any(isinstance(m, QuickGELU) for m in on_meta(Clip, model="ViT-B-32", **fields).modules())

    assert quick(weights="openai")
    assert not quick(weights="laion2b_s34b_b79k")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either `model`"),
        ({"model": "RN50", "width": 3}, "either `model`"),
        ({"layers": [1, 1, 1, 1]}, "together"),
        ({**SMALL, "weights": "openai"}, "a file as `weights`"),
    ],
)
def test_configs_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Clip.Config(**fields)


def test_unknown_names_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PartError, match='open_clip has no model "RN50x17".*Did you mean "RN50x1'):
        on_meta(Clip, model="RN50x17")
    with pytest.raises(PartError, match='given "nf_resnet51".*Did you mean "nf_resnet50"'):
        on_meta(NFResNet, model="nf_resnet51")
    assert "for RN50x4: openai" in Clip.problems(Clip.Config(model="RN50x4", weights="opennai"))[0]
    monkeypatch.setattr(clip, "hub_problem", lambda name, *_: f"no {name}")
    openai = Clip.Config(model="RN50x4", weights="openai")
    assert Clip.problems(openai) == ["weights: no timm/resnet50x4_clip.openai"]
    monkeypatch.setattr(clip, "hub_problem", lambda *_: None)
    assert Clip.problems(openai) == []


def test_an_nf_resnet_is_loaded_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = NFResNet.build(**NF)
    torch.save(first.network.state_dict(), tmp_path / "nf.pt")
    second = NFResNet.build(**NF, weights=str(tmp_path / "nf.pt"))
    assert all(torch.equal(t, second.network.state_dict()[n]) for n, t in first.network.state_dict().items())


def test_any_network_of_timm_is_a_grid() -> None:
    beit = on_meta(Timm, model="beit_large_patch16_224.in22k_ft_in22k")
    assert (beit.length, beit.dim, beit.image_size, beit.mean) == (196, 1024, 224, (0.5, 0.5, 0.5))
    resnet = on_meta(Timm, model="resnet18", image_size=96)
    assert (resnet.length, resnet.dim) == (9, 512)
    with pytest.raises(PartError, match='timm model: given "resnet19".*Did you mean "resnet1'):
        on_meta(Timm, model="resnet19")


@pytest.mark.parametrize(
    ("model", "length", "dim"),
    [
        ("coat_lite_tiny", 9, 320),
        ("efficientvim_m1", 4, 320),
        ("efficientvit_b0", 9, 128),
        ("inception_next_atto", 9, 320),
        ("levit_128s", 4, 384),
        ("gmlp_ti16_224", 36, 128),
        ("pit_ti_224", 9, 256),
        ("test_mambaout", 9, 64),
    ],
)
def test_networks_of_timm_that_return_no_plain_grid_give_one(model: str, length: int, dim: int) -> None:
    """Several grids, class tokens only, uncounted tokens, a pooling that cannot be switched off, channels last."""
    encoder = on_meta(Timm, model=model, image_size=96)
    assert (encoder.length, encoder.dim) == (length, dim)


def whole_network(model: str, **options: Any) -> Any:
    import timm

    torch.manual_seed(3)
    return timm.create_model(model, **options).eval()


def test_the_rows_of_the_grid_are_in_order(tmp_path: Path) -> None:
    """Against timm's own grids; of channels-last networks against what their `forward_features` returns."""
    x = torch.randn(2, 3, 96, 96)
    for model, norm in (("pit_ti_224", False), ("gmlp_ti16_224", True), ("test_mambaout", False)):
        options = {} if model == "test_mambaout" else {"img_size": 96}
        whole = whole_network(model, **options)
        torch.save(whole.state_dict(), tmp_path / "whole.pt")  # with its classifier
        encoder = Timm.build(model=model, image_size=96, weights=str(tmp_path / "whole.pt")).eval()
        with torch.no_grad():
            grid = whole.forward_intermediates(x, indices=1, norm=norm, intermediates_only=True)[-1]
            values = encoder(x).values
            assert torch.allclose(values, grid.flatten(2).transpose(1, 2), atol=1e-5)
            if model == "test_mambaout":
                assert torch.equal(values, whole.forward_features(x).flatten(1, 2))


def test_an_image_size_that_a_network_of_timm_cannot_take_is_explained() -> None:
    with pytest.raises(PartError, match="image_size: given 100, for which this network has no feature grid: "):
        on_meta(Timm, model="test_vit", image_size=100)


def test_a_network_of_timm_is_loaded_from_a_file_without_its_classifier(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    whole = timm.create_model("test_vit").eval()
    torch.save(whole.state_dict(), tmp_path / "vit.pt")
    encoder = Timm.build(model="test_vit", weights=str(tmp_path / "vit.pt")).eval()
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = whole.forward_features(x)[:, whole.num_prefix_tokens :]
        assert torch.equal(encoder(x).values, expected)
    assert Timm.problems(Timm.Config(model="test_vit", weights="gone.pt")) == [
        "weights: given 'gone.pt'; allowed: true, false, a file or package:NAME"
    ]


def test_smaller_images_only_where_the_size_is_not_known() -> None:
    fixed, free = Clip.build(**SMALL), Clip.build(**SMALL, allow_smaller=True)
    small = torch.zeros(3, 32, 32)
    with pytest.raises(InputError, match=r"float tensor \[3, 32, 32\]"):
        fixed.prepare(small)
    assert free.num_features(free.prepare(small)) == 1
    assert free.num_features(free.prepare(torch.zeros(3, 64, 32))) == 2
    for wrong in (torch.zeros(3, 96, 96), torch.zeros(3, 0, 32)):
        with pytest.raises(InputError, match="given a float tensor"):
            free.prepare(wrong)
    with pytest.raises(InputError, match="prepared images of several sizes in a batch"):
        free.stack([small, torch.zeros(3, 64, 64)])


@pytest.mark.parametrize(("part", "fields"), [(Clip, SMALL), (Clip, VIT), (NFResNet, NF)])
def test_channels_last_gives_the_same_features_and_gradients(part: type[Encoder], fields: Any) -> None:
    torch.manual_seed(0)
    encoder = part.build(**fields).train()
    x = torch.randn(3, 3, 64, 64)
    found = []
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        encoder.zero_grad()
        values = encoder(images).values
        values.square().mean().backward()
        found.append([values, *(p.grad for p in encoder.parameters() if p.grad is not None)])
    assert len(found[0]) > 10
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True))
