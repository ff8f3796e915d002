"""The conformance kit on sites and context: each of many faults is found by the check that is there for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from magma_lms.causal import Causal
from magma_lms.gptj import GPTJ
from torch import Tensor, nn

import magma
from magma import Adapter, BatchLayout, Context, PartConfig, PartError, PluginError, Site, testing
from magma.plugins.conformance import lm_sites
from magma.plugins.scaffold import SITES, new_plugin


class Anywhere(Adapter):
    """A linear map of the site's input, added to its output."""

    name = "anywhere"
    passes_input_through = True

    def __init__(self, config: PartConfig, site: Site) -> None:
        super().__init__(config, site)
        self.layer = nn.Linear(site.in_features, site.out_features)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, in_features] to [b, t, out_features]."""
        return sublayer(x) + self.layer(x)


class Looks(Adapter):
    """The sum of the media that a position may attend to, mapped and added."""

    name = "looks"
    uses_context = True

    def __init__(self, config: PartConfig, site: Site) -> None:
        super().__init__(config, site)
        self.layer = nn.Linear(site.media_features, site.out_features)

    def mask(self, context: Context) -> Tensor:
        """[b, t, n]."""
        return context.media_mask()

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], context: Context) -> Tensor:
        """[b, t, in_features] to [b, t, out_features]."""
        return sublayer(x) + self.layer(self.mask(context).to(x.dtype) @ context.media)


class Last(Looks):
    """Only the last medium."""

    name = "last"

    def mask(self, context: Context) -> Tensor:
        return context.media_mask(last_only=True)


@pytest.mark.parametrize("part", [Anywhere, Looks, Last], ids=lambda part: part.name)
def test_a_sound_adapter_passes(part: type[magma.Part]) -> None:
    assert {one.check: one.problem for one in testing.run_checks(part) if one.problem} == {}


# One fault each


class OneWidth(Anywhere):
    """Gives the width of its input."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return super().forward(x, sublayer)[..., : self.site.in_features]


class OddRefusal(Anywhere):
    """Refuses linear layers with an error of Python."""

    def __init__(self, config: PartConfig, site: Site) -> None:
        if site.linear is not None:
            raise ValueError("no")
        super().__init__(config, site)


class RefusesAll(Anywhere):
    """Acts nowhere."""

    def __init__(self, config: PartConfig, site: Site) -> None:
        super().__init__(config, site)
        raise PartError(f"{site.path}; allowed: none")


class MixesInLinears(Anywhere):
    """Adds the mean over positions, at linear layers only."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        found = super().forward(x, sublayer)
        return found if self.site.linear is None else found + found.mean(1, keepdim=True)


class Undeclared(Anywhere):
    """Takes a context, and does not say so."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], context: Context | None = None) -> Tensor:
        return super().forward(x, sublayer)


class LooksAhead(Looks):
    """Reads all media of the row."""

    def mask(self, context: Context) -> Tensor:
        return (context.media_index >= 0)[:, None].expand(-1, context.inputs.shape[1], -1)


class CrossesSequences(Looks):
    """Reads the media of packed sequences before its own."""

    def mask(self, context: Context) -> Tensor:
        index = context.media_index[:, None]
        return (index >= 0) & (index <= context.last_medium[..., None])


class ReadsPadding(Looks):
    """Takes padding among the media for a medium."""

    def mask(self, context: Context) -> Tensor:
        return context.media_mask() | (context.media_index < 0)[:, None]


class NeedsMedia(Looks):
    """Divides by the number of embeddings."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], context: Context) -> Tensor:
        count = self.mask(context).sum(-1, keepdim=True).clamp(min=1) if context.media.shape[1] else 0
        return super().forward(x, sublayer, context) + self.layer.bias * 0 / count


ADAPTER_FAULTS: dict[type[magma.Part], str] = {
    OneWidth: "width_is_kept",
    OddRefusal: "sites_are_accepted_or_refused",
    MixesInLinears: "positions_do_not_mix",
    Undeclared: "context_is_declared",
    LooksAhead: "only_allowed_media_are_read",
    CrossesSequences: "only_allowed_media_are_read",
    ReadsPadding: "only_allowed_media_are_read",
    NeedsMedia: "works_without_media",
}


@pytest.mark.parametrize("part", ADAPTER_FAULTS, ids=lambda part: part.__name__)
def test_a_fault_of_an_adapter_is_found_by_its_check(part: type[magma.Part]) -> None:
    problems = {one.check: one.problem for one in testing.run_checks(part) if one.problem}
    assert set(problems) == {ADAPTER_FAULTS[part]}, problems


def test_an_adapter_that_acts_nowhere_is_found_with_what_it_says() -> None:
    problems = {one.check: one.problem for one in testing.run_checks(RefusesAll) if one.problem}
    assert "attention; allowed: none" in problems["sites_are_accepted_or_refused"]


class WrongWidth(GPTJ):
    """Lists a width that a linear layer does not have."""

    @cached_property
    def _wrong(self) -> list[Site]:
        return [replace(site, out_features=7, linear=None) if site.path == "mlp" else site for site in self._sites]

    def sites(self) -> Sequence[Site]:
        return self._wrong


class Unreached(GPTJ):
    """Does not run the adapters of linear layers."""

    def attach_adapter(self, site: Site, adapter: Adapter, name: str) -> Callable[[], None]:
        return super().attach_adapter(site, adapter, name) if site.linear is None else lambda: None


class OtherBlock(GPTJ):
    """Counts the blocks of feed-forward sublayers from the end."""

    def attach_adapter(self, site: Site, adapter: Adapter, name: str) -> Callable[[], None]:
        if site.path == "mlp":
            site = replace(site, block=len(self.blocks) - 1 - site.block)
        return super().attach_adapter(site, adapter, name)


class InsideOut(GPTJ):
    """Puts the adapters that were added later inside."""

    def attach_adapter(self, site: Site, adapter: Adapter, name: str) -> Callable[[], None]:
        detach = super().attach_adapter(site, adapter, name)
        if site.path == "mlp":
            wrapper: Any = self._bare_blocks[site.block].get_submodule("mlp")
            wrapper.adapters = tuple(reversed(wrapper.adapters))
        return detach


class NewSites(GPTJ):
    """Lists new sites each time."""

    def sites(self) -> Sequence[Site]:
        return [replace(site) for site in super().sites()]


class ForgetsPast(GPTJ):
    """Forgets the media when there is a cache."""

    def forward(self, embeddings: Tensor, layout: BatchLayout, cache: Any = None) -> Tensor:
        past = cache is not None and cache.valid is not None
        with self.adapter_state.use(None if past else layout.context, ()):
            return super().forward(embeddings, layout, cache)


class NotReordered(Causal):
    """Moves padding to the left, and the context of its positions stays."""

    def __init__(self, config: Causal.Config) -> None:
        super().__init__(config)
        self._given: Any = None

    def forward(self, embeddings: Tensor, layout: BatchLayout, cache: Any = None) -> Tensor:
        self._given = layout.context
        return super().forward(embeddings, layout, cache)

    def _use_context(self, context: Context | None) -> Any:
        return super()._use_context(self._given)


LM_FAULTS: dict[type[magma.Part], str] = {
    WrongWidth: "sites_are_as_listed",
    Unreached: "sites_are_as_listed",
    OtherBlock: "adapters_are_nested",
    InsideOut: "adapters_are_nested",
    NewSites: "sites_are_as_listed",
    ForgetsPast: "context_arrives",
    NotReordered: "context_arrives",
}


@pytest.mark.parametrize("part", LM_FAULTS, ids=lambda part: part.__name__)
def test_a_fault_of_a_language_model_is_found_by_its_check(part: type[magma.Part], tmp_path: Path) -> None:
    given = part.check_inputs(tmp_path)
    if issubclass(part, GPTJ):
        sizes = {"layers": 2, "dim": 32, "heads": 4, "rotary_dim": 4, "context": 64, "vocab": 768, "eos": 1}
        given = magma.CheckInputs({**sizes, "tokenizer": "bundled:tiny"})
    problems = {}
    for check in lm_sites.CHECKS:
        try:
            check(testing.PartUnderTest(part, given))
        except Exception as error:  # as `run_checks` does it
            problems[check.__name__] = str(error)
    assert LM_FAULTS[part] in problems, problems


@pytest.mark.parametrize("at", SITES)
def test_a_new_adapter_passes_wherever_it_acts(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_plugin(f"see_{at}", "adapter", tmp_path, at)
    monkeypatch.syspath_prepend(str(folder))
    (part,) = importlib.import_module(f"magma_see_{at}").magma_parts()
    assert {one.check: one.problem for one in testing.run_checks(part) if one.problem} == {}
    for kind, site in (("adapter", "head"), ("prefix", "block")):
        with pytest.raises(PluginError, match="allowed: sublayer, block, linears"):
            new_plugin("other", kind, tmp_path, site)
