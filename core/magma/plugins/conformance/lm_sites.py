"""Checks of a language model's sites, and of the context that its adapters get.

They are about language models that list their sites; older ones are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...context import Context
from ...interfaces import SUBLAYERS, Adapter, FrozenLM
from ...sites import BLOCK, LINEARS, Site
from ...values import BatchLayout
from .subject import Check, PartUnderTest, layout_of, require, same, tokens


class _Recorder(Adapter):
    """Changes nothing. It records when its sublayer begins and ends, and the shapes of input and output."""

    name = "recorder"

    def __init__(self, site: Site, events: list[tuple[str, Site]]) -> None:
        nn.Module.__init__(self)
        self.frozen, self.site, self.events = False, site, events
        self.shapes: list[tuple[torch.Size, torch.Size]] = []
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, in_features] to [b, t, out_features]."""
        self.events.append(("begins", self.site))
        found = sublayer(x)
        self.events.append(("ends", self.site))
        self.shapes.append((x.shape, found.shape))
        self.outputs.append(found.detach().clone())  # some models add to it in place
        return found


class _Scale(Adapter):
    """Scales what its site gives."""

    name = "scale"

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.frozen, self.factor = False, nn.Parameter(torch.full((), 0.5))

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, in_features] to [b, t, out_features]."""
        return sublayer(x) * (1 + self.factor)


class _Mark(Adapter):
    """Adds a number that depends on the input of a position and on the media that it may attend to."""

    name = "mark"
    uses_context = True

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.frozen = False

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], context: Context) -> Tensor:
        """[b, t, in_features] to [b, t, out_features]."""
        media = context.media.mean(-1)[:, None]
        seen = sum((context.media_mask(last) * media).sum(-1) for last in (False, True))
        found = sublayer(x)
        wave = torch.arange(found.shape[-1], device=x.device).sin()
        return found + (seen + 0.3 * context.inputs)[..., None] * wave


def sites_are_as_listed(subject: PartUnderTest) -> None:
    """`sites` lists attention or feed-forward, blocks and linear layers, with the widths that adapters meet there."""
    lm = subject.make()
    if not (sites := list(lm.sites())):
        return
    paths = {site.path for site in sites}
    require(bool(paths & set(SUBLAYERS)), f"`sites` lists neither attention nor mlp: {', '.join(sorted(paths))}")
    require(all(a is b for a, b in zip(sites, lm.sites(), strict=True)), "`sites` gives other objects each time")
    count = len(lm.blocks)
    for site in sites:
        what = f"{site.path} of block {site.block}"
        require(0 <= site.block < count, f"{what}: the language model has {count} blocks")
        media = site.media_features
        require(
            media == lm.embedding_dim, f"{what}: media_features is {media}, word embeddings have {lm.embedding_dim}"
        )
        require((site.linear is not None) == (site.path not in (*SUBLAYERS, BLOCK)), f"{what}: `linear` is wrong")
        if site.linear is not None:
            same(
                site.linear(torch.eye(site.in_features)),
                site.weight.T + (0 if site.bias is None else site.bias),
                f"{what}: what `linear` computes, and its weight",
                1e-4,
            )
    for adapter in _record(subject, lm, []):
        site = adapter.site
        what = f"{site.path} of block {site.block}"
        require(bool(adapter.shapes), f"{what}: an adapter there is never called")
        for given, found in adapter.shapes:
            met, listed = (given[-1], found[-1]), (site.in_features, site.out_features)
            require(met == listed, f"{what}: listed with the widths {listed}, and an adapter meets {met}")
            require(len(given) == 3, f"{what}: an adapter gets {list(given)}; expected: [b, t, {site.in_features}]")


def adapters_of_sites_are_exact(subject: PartUnderTest) -> None:
    """Adapters that change nothing at all sites give the same bits; those that change something reach the output."""
    lm = subject.make()
    if not lm.sites():
        return
    lm.freeze()
    (given,) = subject.inputs(lm)
    before = subject.call(lm, given).detach().clone()
    _record(subject, lm, [])
    same(subject.call(lm, given), before, "with adapters at all sites that change nothing")
    lm.remove_adapters()
    for path in dict.fromkeys(site.path for site in lm.sites()):
        lm.add_adapters(path, _Scale, name="scale")
        lm.freeze()
        changed = subject.call(lm, given)
        require(changed.requires_grad, f"at {path}, no adapter reaches the output")
        changed.float().square().sum().backward()  # type: ignore[no-untyped-call]  # torch's
        dead = [i for i, adapter in enumerate(lm.all_adapters()) if adapter.get_parameter("factor").grad is None]
        require(not dead, f"at {path}, no gradient reaches adapters {dead}")
        if path in (*SUBLAYERS, BLOCK):
            require(not torch.equal(changed, before), f"adapters at {path} change nothing")
        lm.remove_adapters()
    same(subject.call(lm, given), before, "the language model without its adapters again")


def adapters_are_nested(subject: PartUnderTest) -> None:
    """Linear layers run inside their block, blocks in order, and an adapter wraps those added to its site before it."""
    lm = subject.make()
    if not lm.sites():
        return
    events: list[tuple[str, Site]] = []
    _record(subject, lm, events)
    inside: list[int] = []
    begun: list[int] = []
    has_blocks = any(site.path == BLOCK for site in lm.sites())
    for event, site in events if has_blocks else ():
        if site.path == BLOCK and event == "begins":
            inside.append(site.block)
            begun.append(site.block)
        elif site.path == BLOCK:
            inside.pop()
        elif event == "begins":
            require(site.block in inside, f"{site.path} of block {site.block} runs outside this block")
    require(list(dict.fromkeys(begun)) == sorted(set(begun)), f"blocks run in the order {begun}")
    lm.remove_adapters()
    for path in dict.fromkeys(site.path for site in lm.sites()):
        bare = _first_output(subject, lm, path)
        lm.remove_adapters()
        lm.add_adapters(path, _Scale, name="scale")
        scaled = _first_output(subject, lm, path)
        lm.remove_adapters()
        same(
            scaled, 1.5 * bare, f"the second of two adapters at {path}: what it gets from the first, and expects", 1e-5
        )


def _first_output(subject: PartUnderTest, lm: FrozenLM, path: str) -> Tensor:
    """What a sublayer gives to an adapter that is added now, in its first call in a run."""
    events: list[tuple[str, Site]] = []
    lm.add_adapters(path, partial(_Recorder, events=events), name="recorder")
    (given,) = subject.inputs(lm)
    with torch.no_grad():
        subject.call(lm, given)
    first = events[0][1]
    found: Any = next(one for one in lm.adapters["recorder"] if one.site is first)
    output: Tensor = found.outputs[0]
    return output


def context_arrives(subject: PartUnderTest) -> None:
    """Adapters get the context of their positions: in a batch, with padding, packed, and with a cache."""
    lm = subject.make()
    (given,) = subject.inputs(lm)
    for at in (SUBLAYERS[-1], BLOCK, LINEARS):
        with _marked(lm, at) as marked:
            if marked:
                _check_context(lm, given, at)


def _check_context(lm: FrozenLM, given: Tensor, at: str) -> None:
    t, ids = given.shape[1], tokens(lm)
    rows = [_context(given, row) for row in range(2)]
    second: list[Tensor] = []
    rows[1].map(lambda x: second.append(x) or x)  # type: ignore[func-returns-value]  # in a fixed order
    both = rows[0].map(lambda x: torch.cat([x, second.pop(0)]))

    def run(layout: BatchLayout, context: Context, x: Tensor, cache: Any = None) -> Tensor:
        return lm(x, replace(layout, context=context), cache).view(*x.shape[:2], -1)

    single = [run(layout_of(1, t, token_ids=ids[i : i + 1]), rows[i], given[i : i + 1]) for i in range(2)]
    without = lm(given, layout_of(2, t, token_ids=ids)).view(2, t, -1)
    require(not torch.allclose(single[0], without[:1]), f"an adapter at {at} does not get the context of the layout")
    whole = torch.cat(single)
    same(run(layout_of(2, t, token_ids=ids), both, given), whole, f"context at {at}: rows in a batch", 1e-4)
    short = t - 2
    padded = run(layout_of(2, t, lengths=[t, short], token_ids=ids), both, given)
    same(padded[1, :short], whole[1, :short], f"context at {at}: a padded row", 1e-4)
    with torch.no_grad():
        cache = lm.new_cache()
        start = both.map_positions(lambda x: x[:, :short])
        lengths = [short, short - 2]
        run(layout_of(2, short, lengths=lengths, token_ids=ids[:, :short]), start, given[:, :short], cache)
        chosen = torch.tensor([1, 0])
        cache, positions = cache.select(chosen), torch.tensor(lengths)[chosen][:, None]
        step = replace(layout_of(2, 1, token_ids=ids[chosen, positions[:, 0]][:, None]), positions=positions)
        x = given[chosen, positions[:, 0]][:, None]
        found = run(step, both.select(chosen).followed_by_text(), x, cache)
    expected = torch.stack([whole[1, short - 2], whole[0, short]])
    same(found[:, 0], expected, f"context at {at}: a step with a cache of chosen rows", 1e-3)
    if lm.packing_problem is None:
        packed = _packed(rows)
        layout = replace(
            layout_of(1, 2 * t, token_ids=ids.flatten()[None]),
            positions=torch.arange(t).repeat(2)[None],
            sequence_ids=torch.arange(2).repeat_interleave(t)[None],
        )
        found = run(layout, packed, given.flatten(0, 1)[None])
        same(found[0], whole.flatten(0, 1), f"context at {at}: packed rows", 1e-3)


def _context(given: Tensor, row: int) -> Context:
    """One row with a medium at position `row` + 1, and another one two positions later."""
    t, width = given.shape[1:]
    inputs, last = torch.full((1, t), -1), torch.full((1, t), -1)
    for number, at in enumerate((row + 1, row + 3)):
        inputs[0, at], last[0, at:] = 0, number
    media = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(row + 21))
    zeros = torch.zeros(1, t, dtype=torch.long)
    return Context(("see",), inputs, zeros, last, media, torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))


def _packed(rows: Sequence[Context]) -> Context:
    """Two rows as two sequences of one row."""
    first, second = rows
    return Context(
        first.names,
        torch.cat([first.inputs, second.inputs], 1),
        torch.cat([first.first_medium, second.first_medium + 2], 1),
        torch.cat([first.last_medium, second.last_medium + 2], 1),
        torch.cat([first.media, second.media], 1),
        torch.cat([first.media_index, second.media_index + 2], 1),
        torch.cat([first.media_inputs, second.media_inputs], 1),
    )


@contextmanager
def _marked(lm: FrozenLM, at: str) -> Iterator[bool]:
    """Adapters that show their context, in the first block that has the site. False: there is no such site."""
    sites = [site for site in lm.sites() if (site.linear is not None if at == LINEARS else site.path == at)]
    if sites:
        path = sites[0].path if at == LINEARS else at
        lm.add_adapters(path, _Mark, [sites[0].block], name="mark")
    yield bool(sites)
    lm.remove_adapters()


def _record(subject: PartUnderTest, lm: FrozenLM, events: list[tuple[str, Site]]) -> list[_Recorder]:
    """Recorders at all sites, after one run."""
    made: list[_Recorder] = []

    def make(site: Site) -> Adapter:
        made.append(_Recorder(site, events))
        return made[-1]

    for number, path in enumerate(dict.fromkeys(site.path for site in lm.sites())):
        lm.add_adapters(path, make, name=f"recorder_{number}")
    (given,) = subject.inputs(lm)
    with torch.no_grad():
        subject.call(lm, given)
    return made


CHECKS: tuple[Check, ...] = (
    sites_are_as_listed,
    adapters_of_sites_are_exact,
    adapters_are_nested,
    context_arrives,
)
