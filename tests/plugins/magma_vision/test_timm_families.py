"""Every family of timm gives features, or says why not: timm is asked for its own list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from magma_vision.image_encoder import flatten_grid
from magma_vision.intermediate_layers import intermediates
from magma_vision.timm_features import Timm

from magma import PartError

SMALL = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deit": "deit_tiny_patch16_224",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer_v2": "efficientformerv2_s0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "maxxvit": "coatnet_pico_rw_224",
    "metaformer": "poolformer_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "lcnet_035",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "nest": "nest_tiny_jx",
    "nfnet": "nf_ecaresnet26",
    "pit": "pit_ti_224",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "ecaresnext26t_32x4d",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window16_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vitamin": "vitamin_small_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
"""Small models of the families whose first name is a large one. Families without an entry are tried with timm's own
`test_` model, or with their first name."""
LARGEST = 12e6
"""Parameters up to which weights are drawn and features computed; larger networks are run on meta only."""


LARGEST_DRAWN = 4e6
"""The same for features of layers."""


def small_models() -> Iterator[tuple[str, str]]:
    import timm

    for family in timm.list_modules():
        names = timm.list_models(module=family)
        tests = [name for name in names if name.startswith("test_")]
        yield family, SMALL.get(family) or (tests or names)[0]


def smallest(model: str, **fields: Any) -> Timm:
    """On meta, with images of 96 pixels where it takes them.

    Drawing values, which meta does not keep, would take a third of the test's time.
    """
    no_values = mock.patch("timm.layers.weight_init._trunc_normal_", lambda tensor, *_: tensor)
    with torch.device("meta"), no_values:
        try:
            return Timm(Timm.Config(model=model, image_size=96, **fields))
        except PartError:
            return Timm(Timm.Config(model=model, **fields))


def check(model: str) -> None:
    """Features have the declared sizes, a row does not depend on the others, and gradients reach the images."""
    encoder = smallest(model)
    size = encoder.image_size
    small = sum(parameter.numel() for parameter in encoder.parameters()) <= LARGEST
    if small:
        torch.manual_seed(0)
        encoder.init_weights()
    network = encoder.network.eval()
    images = torch.randn(2, 3, size, size, device=None if small else "meta", requires_grad=True)
    values = encoder.features(network, images)
    assert values.shape == (2, encoder.length, encoder.dim)
    parameters = list(network.parameters())
    assert all(parameter.requires_grad for parameter in parameters)
    of_images, *reached = torch.autograd.grad(values.sum(), [images, *parameters], allow_unused=True)
    assert of_images is not None
    # timm leaves some layers in place that only its classifier reads
    assert sum(gradient is not None for gradient in reached) > 0.75 * len(parameters)
    if small:
        assert of_images.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in reached if gradient is not None)
        with torch.no_grad():
            alone = encoder.features(network, images[1:])
        assert (values[1:] - alone).abs().max() <= 1e-4 * values.abs().max()


def check_layer(model: str) -> None:
    """`layer = -2` gives the library's own intermediates, and every part of the network that is left is read."""
    import timm

    encoder = smallest(model, layer=-2)
    size = encoder.image_size
    network: Any = encoder.network.eval()
    assert network(torch.empty(1, 3, size, size, device="meta")).shape == (1, encoder.length, encoder.dim)
    if sum(parameter.numel() for parameter in network.parameters()) > LARGEST_DRAWN:
        return
    torch.manual_seed(0)
    encoder.init_weights()
    options = {"img_size": size} if timm.get_pretrained_cfg(model).fixed_input_size and size == 96 else {}
    torch.manual_seed(0)
    whole = timm.create_model(model, num_classes=0, **options).eval()
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = intermediates(whole, images, None, network.output_fmt)[-2]
        values = encoder.eval()(images).values
    expected = flatten_grid(expected)
    assert (values - expected).abs().max() <= 1e-5 * expected.abs().max()


def all_families(check: Callable[[str], None]) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Families that pass, those that are refused with the message, and those that fail with the error."""
    works, refused, failed = [], {}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small networks wait for each other's threads longer than they compute
    try:
        for family, model in small_models():
            try:
                check(model)
            except PartError as error:
                refused[family] = str(error)
            except Exception as error:
                failed[family] = f"{model}: {type(error).__name__}: {error}"
            else:
                works.append(family)
    finally:
        torch.set_num_threads(threads)
    return works, refused, failed


@pytest.mark.slow
def test_every_family_of_timm_gives_features_or_says_why_not() -> None:
    works, refused, failed = all_families(check)
    print(f"timm's families: {len(works)} work, {len(refused)} are refused: {refused}")
    assert not failed
    assert len(refused) <= 3
    assert len(works) >= 90


@pytest.mark.slow
def test_every_family_of_timm_has_layers() -> None:
    works, refused, failed = all_families(check_layer)
    print(f"timm's families: layer = -2 works for {len(works)}; refused: {refused}")
    assert not failed
    assert not refused
    assert len(works) >= 98
