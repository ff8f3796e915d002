"""The sites of a model of transformers: widths and modules, from where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from magma import Site

from .key_value_slots import LibrarySlots
from .linear import features, is_transposed
from .sites import Place
from .structure import Structure


@dataclass(frozen=True)
class PlacedSite(Site):
    """A site, and where it is."""

    place: Place = field(kw_only=True, compare=False, repr=False)


def placed_sites(model: nn.Module, structure: Structure, run: Callable[[], object]) -> list[PlacedSite]:
    """All sites of a model, which may be on meta. `run` runs its decoder on a few tokens, without a cache."""
    slots = LibrarySlots(model, structure.sublayers, run)

    def site(place: Place, widths: tuple[int, int], module: nn.Module | None = None) -> PlacedSite:
        transposed = module is not None and is_transposed(module)
        media = structure.embedding_dim
        return PlacedSite(
            *(place.path, place.block, *widths, module, transposed),
            media_features=media,
            key_values=slots.slot(place),
            place=place,
        )

    sites = [site(place, (structure.dim, structure.dim)) for place in structure.sublayers]
    sites += [site(place, (structure.block_dim, structure.block_dim)) for place in structure.block_places]
    linears = [(place, model.get_submodule(place.entry)) for place in structure.linears]
    return sites + [site(place, features(module), module) for place, module in linears]
