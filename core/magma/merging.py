"""Fold adapters into the linear layers that they wrap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapters import Adapter
from .errors import PartError
from .sites import Site


@dataclass(frozen=True)
class PlacedAdapter:
    """An adapter, and where it is."""

    table: str
    """The name of its table in a recipe."""
    site: Site
    adapter: Adapter


@torch.no_grad()
def merge(model: nn.Module, placed: Sequence[PlacedAdapter]) -> None:
    """Replace the weights of the layers by those that compute the same as the layers with their adapters.

    Args:
        model: The model that holds the layers. The adapters stay where they are.
        placed: All adapters of the model; of one site, the inner ones first.

    Raises:
        PartError: An adapter cannot be folded. No weight has changed then.
    """
    holders = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    layers: dict[int, list[PlacedAdapter]] = {}
    for one in placed:
        try:
            _check(one, holders)
        except PartError as error:
            raise PartError(f"adapters.{one.table}: {error}") from error
        layers.setdefault(id(one.site), []).append(one)
    for adapters in layers.values():
        _merge_layer(adapters[0].site, [one.adapter for one in adapters])


def _check(one: PlacedAdapter, holders: Counter[int]) -> None:
    site, part = one.site, type(one.adapter)
    if part.merged is Adapter.merged:
        raise PartError(f'"{part.name}" cannot be merged: it does not implement `merged`')
    if one.adapter.only_with:
        names = ", ".join(one.adapter.only_with)
        raise PartError(f"cannot be merged: it acts only with {names}, and a merged weight acts on every prompt")
    if site.weight.numel() and holders[id(_parameters(site)["weight"])] > 1:  # `weight` raises if it is quantized
        raise PartError(
            f"{site.path} of block {site.block} cannot be merged: given a weight that several layers share; allowed: "
            "a weight of one layer"
        )


def _parameters(site: Site) -> dict[str, nn.Parameter]:
    return {} if site.linear is None else dict(site.linear.named_parameters(recurse=False))


def _merge_layer(site: Site, adapters: Sequence[Adapter]) -> None:
    """Fold the adapters of one layer, from the inside; computed in float32 at least, rounded once."""
    found = _parameters(site)
    dtype = torch.promote_types(site.weight.dtype, torch.float32)
    weight: Tensor = site.weight.to(dtype)
    bias = None if site.bias is None else site.bias.to(dtype)
    for adapter in adapters:
        weight, bias = adapter.merged(weight, bias)
    for name, value in (("weight", weight.T if site.transposed else weight), ("bias", bias)):
        if value is not None:
            found[name].data = value.to(found[name].dtype).contiguous()
