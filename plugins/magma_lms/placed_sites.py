"""The sites of a model of transformers: widths and modules, from where they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from magma import Site

from .linear import features, is_transposed
from .sites import Place
from .structure import Structure


@dataclass(frozen=True)
class PlacedSite(Site):
    """A site, and where it is."""

    place: Place = field(kw_only=True, compare=False, repr=False)


def placed_sites(model: nn.Module, structure: Structure) -> list[PlacedSite]:
    """All sites of a model, which may be on meta."""
    sites = [PlacedSite(p.path, p.block, structure.dim, structure.dim, place=p) for p in structure.sublayers]
    width = structure.block_dim
    sites += [PlacedSite(p.path, p.block, width, width, place=p) for p in structure.block_places]
    return sites + [linear_site(model.get_submodule(p.entry), p) for p in structure.linears]


def linear_site(module: nn.Module, place: Place) -> PlacedSite:
    """The site of a linear layer."""
    widths = features(module)
    return PlacedSite(place.path, place.block, *widths, module, is_transposed(module), place=place)
