"""Where adapters act: the sites of a language model, and which of them a recipe's table means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from .errors import PartError
from .key_values import KeyValueSlot

Sublayer = Literal["attention", "mlp"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "mlp")
BLOCK = "block"
"""The path of the site around a whole block."""
LINEARS = "linears"
"""What a recipe writes for all linear layers of a block."""
_WHOLE = (*SUBLAYERS, BLOCK)
"""The paths of sites that are not one linear layer."""
_SHOWN = 12
"""Number of paths that an error lists."""


@dataclass(frozen=True)
class Site:
    """A module or a sublayer of one block that an adapter can wrap."""

    path: str
    """ "block", "attention", "mlp", or the path of a linear layer within the block, such as "self_attn.q_proj"."""
    block: int
    """Index of the block; of the first one, if blocks share the module."""
    in_features: int
    """Width of the input [b, t, in_features]."""
    out_features: int
    """Width of the output [b, t, out_features]."""
    linear: nn.Module | None = field(default=None, compare=False, repr=False)
    """The frozen linear layer. None: the site is not one linear layer. An adapter that needs it keeps the site: an
    attribute with the module itself would make it a part of the adapter."""
    transposed: bool = field(default=False, compare=False, repr=False)
    """Whether the weight of `linear` is [in_features, out_features], as that of GPT-2's `Conv1D`."""
    media_features: int = field(default=0, kw_only=True)
    """Width of `Context.media`, which is that of word embeddings. 0: unknown."""
    key_values: KeyValueSlot | None = field(default=None, kw_only=True, compare=False, repr=False)
    """Where an adapter can hand further keys and values to the sublayer. None: it is no attention, or has no place."""

    @property
    def weight(self) -> Tensor:
        """The frozen weight as `torch.nn.Linear` has it, [out_features, in_features]; a view of the layer's own.

        Raises:
            PartError: The site is not one linear layer, or its weight is quantized or partitioned.
        """
        if self.linear is None:
            raise self._no_weight("no linear layer")
        found: Tensor = self.linear.get_parameter("weight")
        found = found.T if self.transposed else found
        if found.shape != (self.out_features, self.in_features) or not found.is_floating_point():
            dtype = str(found.dtype).removeprefix("torch.")
            raise self._no_weight(f"a quantized or partitioned weight {list(found.shape)} of {dtype}")
        return found

    def _no_weight(self, given: str) -> PartError:
        return PartError(
            f"{self.path} of block {self.block}: given {given}; allowed for an adapter that reads the frozen weight: a "
            f"linear layer with a weight [{self.out_features}, {self.in_features}]"
        )

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias [out_features] of `linear`. None: there is none."""
        return None if self.linear is None else dict(self.linear.named_parameters(recurse=False)).get("bias")

    @classmethod
    def of_width(cls, dim: int) -> Site:
        """A site with this width, without a language model."""
        return cls("mlp", 0, dim, dim, media_features=dim)


def match_sites(sites: Sequence[Site], at: str, blocks: Sequence[int] | None = None) -> list[Site]:
    """The sites that a table means, in the order of `sites`.

    Args:
        sites: All sites of a language model.
        at: "attention", "mlp", "block", "linears", the path of a linear layer, or a glob over these paths, in which `*`
            also matches dots.
        blocks: Indices of blocks. None: all.

    Raises:
        PartError: No site is meant. The message lists what there is.
    """
    chosen = [site for site in sites if _means(at, site.path)]
    if not chosen:
        paths = list(dict.fromkeys(site.path for site in sites))
        whole, linears = ([path for path in paths if (path in _WHOLE) is flag] for flag in (True, False))
        shown = [*linears[:_SHOWN], *(["..."] if len(linears) > _SHOWN else [])]
        globs = f", {LINEARS}, or a glob over {', '.join(shown)}" if linears else ""
        raise PartError(f'given "{at}"; allowed: {", ".join(whole) or "no adapters"}{globs}')
    if blocks is None:
        return chosen
    found = [site for site in chosen if site.block in blocks]
    if not found:
        having = sorted({site.block for site in chosen})
        raise PartError(f'given "{at}" in blocks {list(blocks)}; allowed: blocks that have it, {having}')
    return found


def _means(at: str, path: str) -> bool:
    if path in _WHOLE:
        return at == path
    return at == LINEARS or fnmatchcase(path, at)


def check_blocks(spec: object) -> str | None:
    """Why this is no choice of blocks, as a recipe writes it; None if it is one."""
    allowed = 'allowed: "all", indices such as [0, 2, 5], "first 6", "last 6" or "every 4"; at least one'
    if isinstance(spec, str):
        return None if spec == "all" or re.fullmatch(r"(first|last|every) [1-9]\d*", spec) else allowed
    if isinstance(spec, list | tuple) and spec:
        good = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in spec)
        return None if good and len(set(spec)) == len(spec) else f"{allowed}; each index once, counted from 0"
    return allowed


def choose_blocks(spec: str | Sequence[int], count: int) -> list[int] | None:
    """The indices that a choice of blocks means in a model of `count` blocks; None: all.

    "every n" means the last block of each n: n - 1, 2n - 1, ... (as `cross_attn_every_n_layers` of OpenFlamingo,
    Awadalla et al. 2023).

    Raises:
        PartError: The model has fewer blocks.
    """
    if problem := check_blocks(spec):
        raise PartError(f"given {spec!r}; {problem}")
    if spec == "all":
        return None
    if not isinstance(spec, str):
        if max(spec) >= count:
            raise PartError(f"given {list(spec)}; allowed: 0 to {count - 1}, the blocks of this language model")
        return list(spec)
    which, number = spec.split()
    n = int(number)
    if n > count:
        raise PartError(f"given {spec!r}; allowed: at most {count}, the number of blocks of this language model")
    return list({"first": range(n), "last": range(count - n, count), "every": range(n - 1, count, n)}[which])


def table_name_problem(name: str) -> str | None:
    """Why a table of adapters cannot have this name; None if it can."""
    return None if name.isascii() and name.isidentifier() else "a letter or underscore, then letters, digits and _"
