"""Checks of an adapter. Those of what it computes run at every site that it accepts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...context import Context
from ...interfaces import Adapter
from .sample_sites import sample_context
from .subject import Check, PartUnderTest, SublayerCall, another, require, same


def _everywhere(subject: PartUnderTest) -> Iterator[tuple[Any, Tensor]]:
    """An adapter for each site that it accepts, with an input [b, t, in_features]."""
    for number in range(len(subject.accepted)):
        subject.site_number = number
        adapter = subject.make()
        yield adapter, subject.inputs(adapter)[0]
    subject.site_number = 0


def sites_are_accepted_or_refused(subject: PartUnderTest) -> None:
    """It is built for sublayers, blocks or linear layers; for a site where it cannot act, it raises `PartError`."""
    require(bool(subject.accepted), f"it accepts none of these sites: {'; '.join(subject.refused)}")
    require(not subject.failed, f"it raises other errors than `PartError`: {'; '.join(subject.failed)}")


def width_is_kept(subject: PartUnderTest) -> None:
    """[b, t, in_features] becomes [b, t, out_features] of its site."""
    for adapter, given in _everywhere(subject):
        found, site = subject.call(adapter, given), adapter.site
        wanted = [*given.shape[:2], site.out_features]
        require(list(found.shape) == wanted, f"at {site.path}, `forward` gave {list(found.shape)}; expected: {wanted}")


def positions_do_not_mix(subject: PartUnderTest) -> None:
    """A change at one position changes the output only there."""
    for adapter, given in _everywhere(subject):
        randomize(adapter)
        other = given.clone()
        other[:, 2] = another(other[:, 2])
        one, two = subject.call(adapter, given), subject.call(adapter, other)
        rest = [0, 1, 3, 4, 5]
        same(one[:, rest], two[:, rest], f"the output at unchanged positions, at {adapter.site.path}", 1e-5)


def calls_sublayer(subject: PartUnderTest) -> None:
    """The sublayer is called, and with `passes_input_through` once, with the input itself."""
    for adapter, given in _everywhere(subject):
        sublayer = SublayerCall(given, adapter.site)
        subject.run_adapter(adapter, given, sublayer)
        require(bool(sublayer.seen), f"at {adapter.site.path}, the sublayer is never called")
        if adapter.passes_input_through:
            ours = len(sublayer.seen) == 1 and sublayer.seen[0] is given
            require(ours, "`passes_input_through` is True, but the sublayer is not called once with the input itself")


def context_is_declared(subject: PartUnderTest) -> None:
    """`forward` takes a third argument, the context, if and only if `uses_context` is True."""
    part = subject.part
    assert issubclass(part, Adapter)
    parameters = list(inspect.signature(part.forward).parameters.values())[1:]  # without `self`
    open_ended = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    fits = open_ended or len(parameters) == (3 if part.uses_context else 2)
    require(fits, f"`uses_context` is {part.uses_context}, but `forward` takes {len(parameters)} arguments")


def only_allowed_media_are_read(subject: PartUnderTest) -> None:
    """A position reads the media of its own sequence that begin at or before it: no later ones, and no padding."""
    for adapter, given in _everywhere(subject):
        if not adapter.uses_context:
            return
        randomize(adapter)
        context = sample_context(given)
        before = subject.run_adapter(adapter, given, context=context)
        for number in (0, 1):
            allowed = (context.media_mask() & (context.media_index == number)[:, None]).any(-1)  # [b, t]
            found = subject.run_adapter(adapter, given, context=_with_other_media(context, number))
            same(found[~allowed], before[~allowed], f"positions that may not attend to medium {number}", 1e-5)
        found = subject.run_adapter(adapter, given, context=_with_other_media(context, -1))
        same(found, before, "the output with other padding among the media", 1e-5)
        swapped = replace(context, media=context.media.flip(0))
        found = subject.run_adapter(adapter, given[:1], context=swapped.select(torch.tensor([1])))
        same(found[0, 0], before[0, 0], "a position before all media, in a row with other media", 1e-5)


def works_without_media(subject: PartUnderTest) -> None:
    """Positions before all media, and rows without any, give finite values, and finite gradients in training."""
    for adapter, given in _everywhere(subject):
        if not adapter.uses_context:
            return
        randomize(adapter)
        empty = Context.of_text(given, adapter.site.media_features)
        for context in (sample_context(given), empty):
            found = subject.run_adapter(adapter, given, context=context)
            require(bool(found.isfinite().all()), "without a medium before a position, values are not finite")
            adapter.zero_grad()
            found.float().square().mean().backward()  # type: ignore[no-untyped-call]  # torch's
            wrong = [n for n, p in adapter.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            require(not wrong, f"without a medium before a position, gradients are not finite: {', '.join(wrong)}")


def randomize(adapter: torch.nn.Module) -> None:
    """Other weights: those of a start may make an adapter do nothing."""
    draw = torch.Generator().manual_seed(13)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))


def _with_other_media(context: Context, number: int) -> Context:
    """Other embeddings of the media with this number; -1: of the padding."""
    chosen = (context.media_index == number)[..., None]
    return replace(context, media=torch.where(chosen, another(context.media), context.media))


CHECKS: tuple[Check, ...] = (
    sites_are_accepted_or_refused,
    width_is_kept,
    positions_do_not_mix,
    calls_sublayer,
    context_is_declared,
    only_allowed_media_are_read,
    works_without_media,
)
