"""Features of chosen layers of a network of timm or open_clip, which has no later layers.

Axes: b batch, n features, e width of a layer, h height, w width of a grid, s image size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from magma import PartConfig, PartError

from .image_encoder import flatten_grid

STAGES = ("layer1", "layer2", "layer3", "layer4")
"""Of open_clip's ResNets, after the stem."""


def _not_zero(given: int) -> int:
    if not given:
        raise ValueError("a layer from 1 (the first one), or from -1 (the last one)")
    return given


Layer = Annotated[int, AfterValidator(_not_zero)]


class LayerConfig(PartConfig):
    """The layers whose features are taken."""

    layer: Layer | Annotated[tuple[Layer, ...], Field(min_length=1)] | None = None
    """Features of this block or stage, without the final norm: -1 is the last one, -2 the one before, 1 the first one.
    Several are joined along the channels. Later layers are removed. Default: the features before the pooling."""

    @property
    def chosen_layers(self) -> tuple[int, ...]:
        """The layers; empty for the default."""
        if self.layer is None:
            return ()
        return (self.layer,) if isinstance(self.layer, int) else self.layer


class IntermediateLayers(nn.Module):
    """A network without the layers after the last chosen one, and without pooling and classifier."""

    def __init__(self, trunk: Any, indices: Sequence[int], output_fmt: str) -> None:
        from open_clip.modified_resnet import ModifiedResNet

        super().__init__()
        if isinstance(trunk, ModifiedResNet):
            _prune_resnet(trunk, max(indices))
        else:
            trunk.prune_intermediate_layers(list(indices), prune_norm=True, prune_head=True)
        self.trunk = trunk.requires_grad_(True)  # timm freezes what only a classifier uses
        self.indices, self.output_fmt = list(indices), output_fmt

    def forward(self, x: Tensor) -> Tensor:
        """Images [b, 3, s, s] to features [b, n, e] of all chosen layers, joined along e in the given order."""
        taken = intermediates(self.trunk, x, self.indices, self.output_fmt)
        found = dict(zip(sorted(set(self.indices)), taken, strict=True))
        return torch.cat([flatten_grid(found[index]) for index in self.indices], dim=-1)


def intermediates(trunk: Any, x: Tensor, indices: Sequence[int] | None, output_fmt: str) -> list[Tensor]:
    """Grids [b, e, h, w] or tokens [b, n, e] of layers, from the first to the last; None: of all layers."""
    wanted = None if indices is None else sorted(set(indices))
    found = trunk.forward_intermediates(x, indices=wanted, intermediates_only=True, output_fmt=output_fmt)
    return list(found["image_intermediates"] if isinstance(found, dict) else found)


def _prune_resnet(trunk: nn.Module, last: int) -> None:
    """Remove the stages of one of open_clip's ResNets after the index `last`; the stem has the index 0."""
    for name in STAGES[last:]:
        setattr(trunk, name, nn.Identity())


def layer_builder(
    trunk: Callable[[], nn.Module], size: int, layers: Sequence[int]
) -> tuple[Callable[[], nn.Module], tuple[nn.Module, Tensor]]:
    """A function that builds a network with these layers, after a dry run on the meta device.

    Also returns the network of the dry run and its features [1, n, e].

    Args:
        trunk: Builds the whole network.
        size: Pixels per side of an image.
        layers: As in `LayerConfig`.

    Raises:
        PartError: The network has no intermediate layers, or not these, or images of `size` do not fit.
    """
    whole, found, output_fmt = _all_layers(trunk, size)
    count = len(found)
    if wrong := [layer for layer in layers if not -count <= layer <= count]:
        raise PartError(f"layer: given {wrong[0]}; allowed: -{count} to -1, or 1 to {count}")
    indices = [layer + count if layer < 0 else layer - 1 for layer in layers]
    lengths = [flatten_grid(found[index]).shape[1] for index in indices]
    if len(set(lengths)) > 1:
        shown = ", ".join(f"{length} in layer {layer}" for layer, length in zip(layers, lengths, strict=True))
        raise PartError(f"layer: given several with different numbers of features: {shown}; allowed: one number")
    build = partial(_build, trunk, indices, output_fmt)
    with torch.device("meta"), torch.no_grad():
        network = IntermediateLayers(whole, indices, output_fmt)
        features = network(torch.empty(1, 3, size, size))
    return build, (network.train(), features)


def _build(trunk: Callable[[], nn.Module], indices: Sequence[int], output_fmt: str) -> nn.Module:
    return IntermediateLayers(trunk(), indices, output_fmt)


def _all_layers(trunk: Callable[[], nn.Module], size: int) -> tuple[nn.Module, list[Tensor], str]:
    """A network on the meta device, the intermediates of all its layers, and the format in which it gives them."""
    with torch.device("meta"), torch.no_grad():
        network = trunk().eval()
    if getattr(network, "forward_intermediates", None) is None:
        raise PartError("layer: given, but this network gives no intermediate features; allowed: another model")
    reasons = []
    for output_fmt in ("NLC", "NCHW"):
        try:
            with torch.device("meta"), torch.no_grad():
                return network, intermediates(network, torch.empty(1, 3, size, size), None, output_fmt), output_fmt
        except Exception as error:  # networks assert, raise, or lack a format
            reasons.append(f"{error}".strip().rstrip(".") or type(error).__name__)
    shown = "; ".join(dict.fromkeys(reasons))
    raise PartError(f"image_size: given {size}, for which this network has no intermediate features: {shown}")
