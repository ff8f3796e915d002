"""Checks of a language model's forward pass, cache and adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...interfaces import SUBLAYERS, Adapter
from .subject import TEXT, Check, PartUnderTest, another, layout_of, require, same, tokens


def text_comes_back(subject: PartUnderTest) -> None:
    """`decode` inverts `encode`, ids are below `num_embeddings`, and n tokens give n rows of `vocab` logits."""
    lm = subject.make()
    ids = lm.encode(TEXT)
    require(bool(ids) and min(ids) >= 0 and max(ids) < lm.num_embeddings, f"ids from {min(ids)} to {max(ids)}")
    require(lm.decode(ids).strip() == TEXT, f"{TEXT!r} is decoded as {lm.decode(ids)!r}")
    (given,) = subject.inputs(lm)
    require(
        given.shape[-1] == lm.embedding_dim,
        f"embeddings of width {given.shape[-1]}; `embedding_dim` is {lm.embedding_dim}",
    )
    hidden = lm(given, layout_of(2, given.shape[1], token_ids=tokens(lm)))
    require(
        hidden.shape == (2 * given.shape[1], lm.output_dim),
        f"hidden states {list(hidden.shape)}; expected: {[2 * given.shape[1], lm.output_dim]}",
    )
    logits = lm.lm_head(hidden)
    require(logits.shape[-1] == lm.vocab, f"{logits.shape[-1]} logits; `vocab` is {lm.vocab}")


def padding_and_future_are_not_seen(subject: PartUnderTest) -> None:
    """A position attends neither to later positions nor to padding."""
    lm = subject.make()
    (given,) = subject.inputs(lm)
    width = given.shape[1]
    whole = subject.call(lm, given)
    other = given.clone()
    other[:, width - 2 :] = another(other[:, width - 2 :])
    same(subject.call(lm, other)[:, : width - 2], whole[:, : width - 2], "positions before a change", 1e-4)
    padded = lm(other, layout_of(2, width, lengths=[width - 2] * 2, token_ids=tokens(lm))).view(2, width, -1)
    same(padded[:, : width - 2], whole[:, : width - 2], "positions of a padded row", 1e-4)


def cache_changes_nothing(subject: PartUnderTest) -> None:
    """A step with a cache, also an expanded or selected one, equals one pass without a cache."""
    lm = subject.make()
    (given,) = subject.inputs(lm)
    width = given.shape[1]
    whole = subject.call(lm, given)
    cache = lm.new_cache()
    ids = tokens(lm)
    with torch.no_grad():
        lm(given[:, : width - 1], layout_of(2, width - 1, token_ids=ids[:, : width - 1]), cache)
        swapped = torch.tensor([1, 0])
        last = replace(layout_of(2, 1, token_ids=ids[swapped, -1:]), positions=torch.full((2, 1), width - 1))
        found = lm(given[swapped, -1:], last, cache.select(swapped))
        twice = cache.expand(2)
        rows = torch.tensor([0, 0, 1, 1])
        more = replace(layout_of(4, 1, token_ids=ids[rows, -1:]), positions=torch.full((4, 1), width - 1))
        expanded = lm(given[rows, -1:], more, twice)
    same(found[swapped], whole[:, -1], "a step with the rows of a cache selected", 1e-3)
    same(expanded, whole[rows, -1], "a step with an expanded cache", 1e-3)


def adapters_removable(subject: PartUnderTest) -> None:
    """`add_adapters` adds one to every site, and only they are trained; `remove_adapters` restores the same bits."""
    lm = subject.make()
    (given,) = subject.inputs(lm)
    before = subject.call(lm, given).detach().clone()

    class Shift(Adapter):
        """Adds a constant."""

        name = "shift"

        def __init__(self, dim: int) -> None:
            nn.Module.__init__(self)
            self.frozen, self.constant = False, nn.Parameter(torch.full((dim,), 0.5))

        def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
            """[b, t, d]."""
            return sublayer(x) + self.constant

    for sublayer in SUBLAYERS:
        lm.add_adapters(sublayer, lambda: Shift(lm.dim))
        require(bool(lm.adapters.get(sublayer)), f"`adapters` lists none at {sublayer}")
    lm.freeze()
    lm.train()
    after = subject.call(lm, given)
    require(not torch.equal(after, before), "adapters change nothing")
    after.float().sum().backward()  # type: ignore[no-untyped-call]  # torch's
    require(all(a.constant.grad is not None for a in lm.all_adapters()), "no gradient reaches an adapter")
    trainable = {id(p) for p in lm.parameters() if p.requires_grad}
    own = {id(a.constant) for a in lm.all_adapters()}
    require(trainable <= own, "after freeze, weights outside the adapters require gradients")
    lm.remove_adapters()
    same(subject.call(lm, given), before, "the language model without its adapters again")


CHECKS: tuple[Check, ...] = (
    text_comes_back,
    padding_and_future_are_not_seen,
    cache_changes_nothing,
    adapters_removable,
)
