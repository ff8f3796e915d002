"""Tables of adapters: what a recipe's `[adapters.NAME]` asks for, added to a language model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from .adapters import Adapter, make_adapter
from .errors import PartError
from .language_model import FrozenLM
from .sites import SUBLAYERS, Site


@dataclass(frozen=True)
class AdapterTable:
    """Which adapters, and where, as `[adapters.NAME]` of a recipe says it."""

    make: Callable[..., Adapter]
    """Makes one adapter. It is called with the `Site` if it requires an argument, otherwise without one."""
    at: str | None = None
    """As `site` of `FrozenLM.add_adapters`. None: the name of the table."""
    blocks: str | Sequence[int] | None = None
    """As `blocks` of `FrozenLM.add_adapters`. None: all."""
    only_with: Sequence[str] = ()
    """As `only_with` of `FrozenLM.add_adapters`."""


def as_tables(adapters: Mapping[str, AdapterTable | Callable[..., Adapter]]) -> dict[str, AdapterTable]:
    """Tables by name; a function makes the adapters of the site of this name."""
    return {name: made if isinstance(made, AdapterTable) else AdapterTable(made) for name, made in adapters.items()}


def check_inputs_of_adapters(lm: FrozenLM, inputs: Collection[str]) -> None:
    """Raise `PartError` if `only_with` or an adapter names an input that the model does not have."""
    for name, adapters in lm.adapters.items():
        named = [(".only_with", one) for adapter in adapters for one in adapter.only_with]
        named += [("", one) for adapter in adapters for one in adapter.required_inputs()]
        for key, one in named:
            if one not in inputs:
                raise PartError(
                    f"adapters.{name}{key}: given {one!r}; allowed: the inputs, {', '.join(inputs) or 'none'}"
                )


def add_tables(lm: FrozenLM, tables: Mapping[str, AdapterTable]) -> None:
    """Add the adapters of every table to a language model, in order.

    Raises:
        PartError: A name is not one word, or the language model has no such site.
    """
    for name, table in tables.items():
        if lm.sites():
            lm.add_adapters(table.at or name, table.make, table.blocks, name=name, only_with=table.only_with)
        else:
            _add_to_sublayer(lm, name, table)


def _add_to_sublayer(lm: FrozenLM, name: str, table: AdapterTable) -> None:
    """For a language model that does not list its sites: adapters around all its sublayers of one kind."""
    if name not in SUBLAYERS or table.at not in (None, name) or table.blocks not in (None, "all"):
        given = f'"{table.at or name}"' + ("" if table.blocks in (None, "all") else f" in blocks {table.blocks}")
        raise PartError(
            f"adapters.{name}: given {given}; allowed: {', '.join(SUBLAYERS)}, as the name of the table, in all "
            "blocks: this language model does not list its sites"
        )
    count = itertools.count()

    def make() -> Adapter:
        return make_adapter(table.make, Site(name, next(count), lm.dim, lm.dim, media_features=lm.embedding_dim))

    lm.add_adapters(name, make)
    if not lm.adapters.get(name):
        raise PartError(f"adapters.{name}: no block of this language model has such a sublayer")
    for adapter in lm.adapters[name]:
        adapter.join(name, lm.adapter_state, table.only_with)
