"""Checks of the attention of a language model with further keys and values. Axes: b batch, t tokens, d width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import PartError
from ...interfaces import Adapter, FrozenLM, PartConfig
from ...sites import Site
from .subject import Check, PartUnderTest, layout_of, require, same, tokens

LENGTH = 3
"""Number of further keys."""


class _Further(Adapter):
    """Adds random keys and values at its site."""

    name = "further"
    passes_input_through = True

    def __init__(self, site: Site, rows: Tensor | None, length: int) -> None:
        super().__init__(PartConfig(), site)
        assert site.key_values is not None
        self.slot, self.rows, shape = site.key_values, rows, site.key_values.shape
        draw = torch.Generator().manual_seed(23 + site.block)
        self.keys = nn.Parameter(torch.randn(shape.heads, length, shape.key_width, generator=draw))
        self.values = nn.Parameter(torch.randn(shape.heads, length, shape.value_width, generator=draw))

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, d] to [b, t, d]; only the rows [b] of `rows` attend to the keys."""
        acts_on = None if self.rows is None else self.rows[:, None].expand(x.shape[:2])
        with self.slot.prepend(self.keys, self.values, acts_on):
            return sublayer(x)


def further_keys_are_attended_to(subject: PartUnderTest) -> None:
    """If attention has `key_values`, every position attends to further ones, in batches, packed and with a cache.

    No further key, and rows that do not attend to them, give the bits of the language model without adapters.
    """
    lm = subject.make()
    sites = _sites(lm)
    if not sites:
        return
    lm.freeze()
    (given,) = subject.inputs(lm)
    bare = subject.call(lm, given).detach().clone()
    _add(lm, sites, None, length=0)
    same(subject.call(lm, given), bare, "with no further key")
    _add(lm, sites, None)
    whole = subject.call(lm, given)
    changed = (whole - bare).abs().amax(-1) > 1e-4 * (1 + bare.abs().max())
    require(bool(changed.all()), "further keys and values do not reach every position")
    whole.float().square().sum().backward()  # type: ignore[no-untyped-call]  # torch's
    dead = [adapter.site.block for adapter in lm.all_adapters() if not _has_gradients(adapter)]
    require(not dead, f"no gradient reaches further keys and values in blocks {dead}")
    whole = whole.detach().clone()
    _check_rows(lm, given, whole)
    _add(lm, sites, torch.tensor([True, False]))
    mixed = subject.call(lm, given)
    same(mixed[1], bare[1], "a row that does not attend to further keys, beside one that does")
    same(mixed[0], whole[0], "a row that attends to further keys, beside one that does not")
    lm.remove_adapters()
    same(subject.call(lm, given), bare, "the language model without its adapters again")


def _sites(lm: FrozenLM) -> list[Site]:
    """The attention sites of blocks in which all of them accept further keys."""
    attention = [site for site in lm.sites() if site.path == "attention"]
    refusing = {site.block for site in attention if not _accepts(site)}
    return [site for site in attention if site.block not in refusing]


def _accepts(site: Site) -> bool:
    try:
        return site.key_values is not None and site.key_values.shape is not None
    except PartError:
        return False


def _add(lm: FrozenLM, sites: list[Site], rows: Tensor | None, length: int = LENGTH) -> None:
    lm.remove_adapters()
    blocks = sorted({site.block for site in sites})
    lm.add_adapters(sites[0].path, lambda site: _Further(site, rows, length), blocks, name="further")
    lm.freeze()


def _has_gradients(adapter: Adapter) -> bool:
    return all(p.grad is not None and bool(p.grad.any()) for p in adapter.parameters())


@torch.no_grad()
def _check_rows(lm: FrozenLM, given: Tensor, whole: Tensor) -> None:
    """A row by itself, two packed rows, and steps with a cache after rows of unequal length."""
    t, ids = given.shape[1], tokens(lm)

    def run(layout: Any, x: Tensor, cache: Any = None) -> Tensor:
        return lm(x, layout, cache).view(*x.shape[:2], -1)

    same(run(layout_of(1, t, token_ids=ids[:1]), given[:1])[0], whole[0], "further keys: a row by itself", 1e-4)
    short = t - 2
    lengths, chosen = [short, short - 2], torch.tensor([1, 0])
    cache = lm.new_cache()
    run(layout_of(2, short, lengths=lengths, token_ids=ids[:, :short]), given[:, :short], cache)
    cache, positions = cache.select(chosen), torch.tensor(lengths)[chosen][:, None]
    step = replace(layout_of(2, 1, token_ids=ids[chosen, positions[:, 0]][:, None]), positions=positions)
    found = run(step, given[chosen, positions[:, 0]][:, None], cache)
    expected = torch.stack([whole[1, short - 2], whole[0, short]])
    same(found[:, 0], expected, "further keys: a step with a cache of chosen rows", 1e-3)
    if lm.packing_problem is None:
        layout = replace(
            layout_of(1, 2 * t, token_ids=ids.flatten()[None]),
            positions=torch.arange(t).repeat(2)[None],
            sequence_ids=torch.arange(2).repeat_interleave(t)[None],
        )
        found = run(layout, given.flatten(0, 1)[None])
        same(found[0], whole.flatten(0, 1), "further keys: packed rows", 1e-3)


CHECKS: tuple[Check, ...] = (further_keys_are_attended_to,)
