"""What must hold for a causal language model of any family. Each check compares with transformers, row by row.

Axes: b batch, t tokens, d width, v vocabulary, m scored positions.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import causal_references as library
import causal_zoo
import torch
from magma_lms.causal import Causal
from magma_lms.sites import Place
from magma_lms.tracing import first_tensor, replace_first_tensor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from magma import Adapter, BatchLayout, CheckInputs, Magma, PartConfig, PartError, Tokens, testing
from magma.interfaces import SUBLAYERS
from magma.plugins.conformance import lm_sites

LENGTHS = (20, 5, 12)
"""Of rows side by side: one is shorter than a window of 8 tokens."""
COUNT = 8
"""Tokens that are generated: with the prompt, more than a window."""


ROUNDING = {"dory": 5e-3}
"""Families whose gradients are less exact: a loop over blocks amplifies rounding. In float64 they are equal."""


class Spelled(Causal):
    """It reads and writes characters as tokens: tiny models have no tokenizer."""

    name = "spelled"
    control_tokens: Mapping[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [ord(character) - 32 for character in text]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        return self.encode(text), [(at, at + 1) for at in range(len(text))]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token + 32) for token in tokens)


class Both(Adapter):
    """After the sublayer and beside it: it needs the sublayer's output and its input."""

    name = "both"
    passes_input_through = True

    def __init__(self, dim: int) -> None:
        super().__init__(PartConfig(), dim)
        self.after, self.beside = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.05)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return self.change(x, sublayer(x))

    def change(self, x: Tensor, out: Tensor) -> Tensor:
        changed: Tensor = out + self.after(out) + self.beside(x)
        return changed


@dataclass
class Row:
    """Token ids [t], embeddings [t, d] with media in the middle, and the library's logits [t, v] of both."""

    ids: Tensor
    embeddings: Tensor
    ids_with_media: Tensor
    logits: Tensor
    media_logits: Tensor


class Family:
    """A language model of ours, and the library's, from the same folder."""

    def __init__(self, name: str, folder: Path) -> None:
        """Save a tiny model with random weights, and load it."""
        self.name, self.folder = name, folder
        weights = folder / "weights"
        self.model = causal_zoo.save(name, weights)
        self.lm = Spelled(Spelled.Config(weights=str(weights)))
        self.parameters_on_meta = count_parameters(self.lm)
        self.lm.load_weights()
        self.lm.freeze()

    @cached_property
    def rows(self) -> list[Row]:
        draw = torch.Generator().manual_seed(1)
        return [self._row(torch.randint(*causal_zoo.WORDS, (t,), generator=draw), draw) for t in LENGTHS]

    def _row(self, ids: Tensor, draw: torch.Generator) -> Row:
        with torch.no_grad():
            embeddings = library.words(self.model, ids).clone()
            middle = slice(len(ids) // 3, len(ids) // 2)
            noise = torch.randn(embeddings[middle].shape, generator=draw)
            embeddings[middle] = noise * embeddings.std()
            masked = ids.clone()
            masked[middle] = library.NEUTRAL
            media_logits = library.embedded_logits(self.model, embeddings, masked)
        return Row(ids, embeddings, masked, library.logits(self.model, ids), media_logits)

    @cached_property
    def prompts(self) -> list[Tensor]:
        draw = torch.Generator().manual_seed(3)
        return [torch.randint(*causal_zoo.WORDS, (t,), generator=draw) for t in (5, 12, 1)]

    def run(self, ids: Sequence[Tensor], embeddings: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Logits [t_i, v] of right-padded rows."""
        hidden = self.lm(self._embed(ids, embeddings), right_padded(ids))
        width = max(map(len, ids))
        found = self.lm.lm_head(hidden).view(len(ids), width, -1)
        return [row[: len(one)] for row, one in zip(found, ids, strict=True)]

    def _embed(self, ids: Sequence[Tensor], embeddings: Sequence[Tensor] | None) -> Tensor:
        if embeddings is None:
            return self.lm.embed(pad_sequence(list(ids), batch_first=True))
        return pad_sequence(list(embeddings), batch_first=True)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def right_padded(ids: Sequence[Tensor], start: Sequence[int] | None = None) -> BatchLayout:
    """The layout of rows that continue after `start` positions; all positions are scored."""
    tokens = pad_sequence(list(ids), batch_first=True)
    before = torch.tensor(start or [0] * len(ids))[:, None]
    lengths = torch.tensor([len(row) for row in ids])
    return BatchLayout(torch.arange(tokens.shape[1]) + before, lengths, torch.arange(tokens.numel()), token_ids=tokens)


def assert_same(found: Tensor, expected: Tensor, relative: float = 1e-4) -> None:
    """Equal up to `relative` times the largest value."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    scale = float(expected.abs().max())
    error = float((found - expected).abs().max())
    assert error <= relative * scale + 1e-7, f"differs by {error / scale:.1e} of the largest value"


def parameters(family: Family) -> None:
    """The same number on meta, with weights, and in the library's class for the text."""
    lm = family.lm
    assert family.parameters_on_meta == count_parameters(lm)
    if type(family.model) is type(lm.model):
        assert family.parameters_on_meta == count_parameters(family.model)


@torch.no_grad()
def logits(family: Family) -> None:
    """Each row by itself, and all rows side by side."""
    for row in family.rows:
        assert_same(family.run([row.ids])[0], row.logits)
    for row, found in zip(family.rows, family.run([row.ids for row in family.rows]), strict=True):
        assert_same(found, row.logits)


@torch.no_grad()
def media(family: Family) -> None:
    """Media in the middle of each row, side by side."""
    ids = [row.ids_with_media for row in family.rows]
    found = family.run(ids, [row.embeddings for row in family.rows])
    for row, one in zip(family.rows, found, strict=True):
        assert_same(one, row.media_logits)


@torch.no_grad()
def packing(family: Family) -> None:
    """Packed rows are what they are by themselves, or the model says why they cannot be packed."""
    lm = family.lm
    if lm.packing_problem is not None:
        assert lm.packing_problem
        return
    rows = family.rows[1:]
    ids = torch.cat([row.ids for row in rows])[None]
    lengths = torch.tensor([len(row.ids) for row in rows])
    layout = BatchLayout(
        positions=torch.cat([torch.arange(n) for n in lengths])[None],
        lengths=lengths.sum()[None],
        scored=torch.arange(ids.shape[1]),
        sequence_ids=torch.repeat_interleave(torch.arange(len(rows)), lengths)[None],
        token_ids=ids,
    )
    found = torch.split(lm.lm_head(lm(lm.embed(ids), layout)), lengths.tolist())
    for row, one in zip(rows, found, strict=True):
        assert_same(one, row.logits)


def greedy(family: Family) -> None:
    """Greedy tokens with a cache, one prompt and several of unequal length."""
    eos, prompts = family.lm.eos, family.prompts
    expected = [library.greedy(family.name, family.model, prompt, COUNT, eos) for prompt in prompts]
    model = Magma(family.lm)
    given = [[Tokens(prompt)] for prompt in prompts]
    assert model.generate_tokens(given[1], max_tokens=COUNT) == expected[1]
    assert model.generate_tokens(given, max_tokens=COUNT) == expected


@torch.no_grad()
def continuation(family: Family) -> None:
    """Several tokens after a cache whose rows are repeated and chosen: one medium, several questions."""
    lm, (first, second) = family.lm, family.prompts[:2]
    cache = lm.new_cache()
    lm(lm.embed(pad_sequence([first, second], batch_first=True)), right_padded([first, second]), cache)
    many = cache.expand(2).select(torch.tensor([3, 0, 1]))  # of rows 0, 0, 1, 1
    before, more = [second, first, first], [row.ids[:n] for row, n in zip(family.rows, (2, 1, 3), strict=True)]
    for step in range(2):
        layout = right_padded(more, [len(ids) for ids in before])
        width = int(layout.lengths.max())
        found = lm.lm_head(lm(lm.embed(pad_sequence(more, batch_first=True)), layout, many)).view(3, width, -1)
        before = [torch.cat(pair) for pair in zip(before, more, strict=True)]
        for one, whole, new in zip(found, before, more, strict=True):
            assert_same(one[: len(new)], library.logits(family.model, whole)[-len(new) :])
        more = [row.ids[4 + step : 5 + step] for row in family.rows]


def log_likelihood(family: Family) -> None:
    """Texts after prompts of unequal length."""
    texts = ["magma", "=", "Frosty"]  # no "z": it is the token of an image
    found = Magma(family.lm).log_likelihood([[Tokens(prompt)] for prompt in family.prompts], texts)
    for prompt, text, (value, is_greedy) in zip(family.prompts, texts, found, strict=True):
        target = torch.tensor(family.lm.encode(text))
        whole = library.logits(family.model, torch.cat([prompt, target]))[-len(target) - 1 : -1]
        expected = whole.log_softmax(-1).gather(1, target[:, None]).sum()
        assert abs(value - float(expected)) <= 1e-4 * max(1.0, abs(float(expected))), f"{value} instead of {expected}"
        assert is_greedy == bool((whole.argmax(-1) == target).all())


def adapters(family: Family) -> None:
    """Loss, gradients of adapters and of media, and greedy tokens: as with hooks in the library's model."""
    lm = family.lm
    before = _first_row(family)
    clean = copy_of_library(lm)
    adapted = add_adapters(lm)
    lm.freeze()
    lm.train()
    weights = [parameter for adapter in adapted.values() for parameter in adapter.parameters()]
    assert {id(one) for one in lm.parameters() if one.requires_grad} == {id(one) for one in weights}
    inputs = [row.embeddings.clone().requires_grad_() for row in family.rows[:2]]
    value = _our_loss(family, inputs)
    found = torch.autograd.grad(value, [*weights, *inputs], materialize_grads=True)
    with hooked(clean, adapted):
        expected = _library_loss(family, clean, inputs)
        wanted = torch.autograd.grad(expected, [*weights, *inputs], materialize_grads=True)
        tokens = [library.greedy_without_cache(clean, prompt, COUNT, lm.eos) for prompt in family.prompts]
    assert_same(value.detach(), expected.detach(), 1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other, ROUNDING.get(family.name, 1e-4))
    prompts = [[Tokens(prompt)] for prompt in family.prompts]
    assert Magma(lm).eval().generate_tokens(prompts, max_tokens=COUNT) == tokens
    _save_and_load(family, weights)
    lm.remove_adapters()
    assert torch.equal(_first_row(family), before), "removed adapters leave something"


def _save_and_load(family: Family, weights: Sequence[Tensor]) -> None:
    """Trained tensors have the same names the next time."""
    lm = family.lm
    trained = {id(weight) for weight in weights}
    saved = {name: one.clone() for name, one in lm.state_dict(keep_vars=True).items() if id(one) in trained}
    before = _first_row(family)
    lm.remove_adapters()
    add_adapters(lm, seed=6)
    assert not torch.equal(_first_row(family), before)
    assert not lm.load_state_dict(saved, strict=False).unexpected_keys
    assert torch.equal(_first_row(family), before), "loaded adapters compute something else"


@torch.no_grad()
def _first_row(family: Family) -> Tensor:
    return family.run([family.rows[0].ids])[0]


def add_adapters(lm: Causal, seed: int = 5) -> dict[Place, Both]:
    """Random adapters at all sites."""
    torch.manual_seed(seed)
    for sublayer in SUBLAYERS:
        with contextlib.suppress(PartError):  # not every model has both
            lm.add_adapters(sublayer, lambda: Both(lm.dim))
    adapted: dict[Place, Both] = {}
    for sublayer, made in lm.adapters.items():
        sites = [site for site in lm.structure.sublayers if site.path == sublayer]
        for site, adapter in zip(sites, made, strict=True):
            assert isinstance(adapter, Both)
            adapted[site] = adapter
    assert adapted, "there is no place for an adapter"
    return adapted


def copy_of_library(lm: Causal) -> Any:
    """The library's own model with the tensors of ours."""
    clean = type(lm.model)(copy.deepcopy(lm.model.config))
    clean.load_state_dict(lm.model.state_dict())
    return clean.eval().requires_grad_(False)


@contextlib.contextmanager
def hooked(model: Any, adapted: dict[Place, Both]) -> Iterator[None]:
    """The library's model with hooks that change the outputs of sublayers as the adapters do."""
    seen: dict[Place, Tensor] = {}
    handles = []

    def hook(site: Place, adapter: Both) -> None:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[site] = args[site.key] if isinstance(site.key, int) else kwargs[site.key]

        def leave(_: nn.Module, __: Any, output: Any) -> Any:
            out = first_tensor(output)
            assert out is not None
            return replace_first_tensor(output, adapter.change(seen[site].reshape(out.shape), out))

        handles.append(model.get_submodule(site.entry).register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(model.get_submodule(site.exit).register_forward_hook(leave))

    for site, adapter in adapted.items():
        hook(site, adapter)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _targets(row: Row) -> tuple[slice, Tensor]:
    """The positions after the media, and the tokens that follow them."""
    first = len(row.ids) // 2
    return slice(first, len(row.ids) - 1), row.ids[first + 1 :]


def _our_loss(family: Family, inputs: Sequence[Tensor]) -> Tensor:
    rows = family.rows[: len(inputs)]
    layout = right_padded([row.ids_with_media for row in rows])
    width = layout.positions.shape[1]
    scored, labels = [], []
    for i, row in enumerate(rows):
        positions, target = _targets(row)
        scored.append(i * width + torch.arange(positions.start, positions.stop))
        labels.append(target)
    first = min(_targets(row)[0].start for row in rows)
    layout = BatchLayout(
        layout.positions, layout.lengths, torch.cat(scored), first_scored=first, token_ids=layout.token_ids
    )
    hidden = family.lm(pad_sequence(list(inputs), batch_first=True), layout)
    return family.lm.cross_entropy(hidden, torch.cat(labels))


def _library_loss(family: Family, model: Any, inputs: Sequence[Tensor]) -> Tensor:
    total = torch.zeros(())
    for row, embeddings in zip(family.rows, inputs, strict=False):
        positions, target = _targets(row)
        out = library.embedded_logits(model, embeddings, row.ids_with_media)[positions]
        total = total + F.cross_entropy(out, target, reduction="sum")
    return total


@torch.no_grad()
def export(family: Family) -> None:
    """A saved folder is the library's model."""
    where = family.folder / "exported"
    family.lm.export(where)
    again = type(family.lm.model).from_pretrained(where, dtype=torch.float32).eval()
    for row in family.rows:
        assert_same(library.logits(again, row.ids), row.logits, 1e-5)


def sites(family: Family) -> None:
    """Adapters at every site, and the context of their positions, as the conformance kit checks them."""
    subject = testing.PartUnderTest(Spelled, CheckInputs({"weights": str(family.folder / "weights")}))
    for check in lm_sites.CHECKS:
        check(subject)


CHECKS = (parameters, logits, media, packing, greedy, continuation, log_likelihood, adapters, sites, export)
