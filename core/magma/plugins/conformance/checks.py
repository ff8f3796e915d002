"""What every part promises, as checks: `test_lidar = magma.testing.conformance(Lidar)` in a plugin's own tests.

`magma plugin check NAME` runs the same. A part's `trial` gives a small configuration and inputs to try it with.
Axes are those of `interfaces`. A device move is tried on `meta`, which every machine has.
"""

from __future__ import annotations

import inspect
import json
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from ...errors import InputError, PluginError
from ...interfaces import Adapter, DataSource, Encoder, FrozenLM, Head, Module, Part, Prefix, Task
from ...values import Example, Features, Layout, Prediction, Text, Tokens, Trial
from .text import TEXT_CHECKS

WIDTH, LENGTH, DIM = 16, 5, 32
"""Of the encoder and the language model that a prefix, an adapter or a head is tried with."""
TEXT = "The answer is seven, and so on."
MANY = 40
"""Examples or questions that are looked at."""
Check = Callable[["Subject"], None]
ALL: list[tuple[type[Part], Check]] = []
"""Every check, with the kind of part that it is for."""


@dataclass(frozen=True)
class Finding:
    """One check of one part: `problem` is "" where it holds."""

    check: str
    promise: str
    problem: str


class Subject:
    """A part on trial, and how its kind is built and called."""

    def __init__(self, part: type[Part], trial: Trial) -> None:
        self.part, self.trial = part, trial
        self.context: tuple[Any, ...] = ()
        if issubclass(part, Prefix):
            self.context = (WIDTH, LENGTH, DIM)
        elif issubclass(part, Adapter | Head):
            self.context = (DIM,)
        elif issubclass(part, DataSource | Task):
            self.context = (0,)

    def config(self) -> Any:
        """The trial's configuration."""
        try:
            return self.part.Config(**self.trial.config)
        except ValidationError as error:
            raise AssertionError(f"its trial's config {dict(self.trial.config)} is refused: {error}") from error

    def make(self, seed: int = 0) -> Any:
        """A ready instance in eval mode; `seed` decides its random weights."""
        torch.manual_seed(seed)
        made: Any = self.part(self.config(), *self.context)  # type: ignore[call-arg]  # each kind has its own context
        if isinstance(made, Module):
            made.load_weights()
            made.eval()
        return made.float() if isinstance(made, FrozenLM) else made

    def inputs(self, module: Any) -> list[Tensor]:
        """What `call` takes: two rows or more."""
        draw = torch.Generator().manual_seed(7)
        if isinstance(module, Encoder):
            return [module.stack([module.prepare(raw) for raw in self.good])]
        if isinstance(module, Prefix):
            return [torch.randn(2, LENGTH, WIDTH, generator=draw)]
        if isinstance(module, Adapter):
            return [torch.randn(2, 6, DIM, generator=draw)]
        if isinstance(module, Head):
            return [torch.randn(3, DIM, generator=draw)]
        assert isinstance(module, FrozenLM)
        with torch.no_grad():
            return [module.embed(tokens(module)).clone()]

    def call(self, module: Any, given: Tensor) -> Tensor:
        """The values of a forward pass, first axis rows."""
        if isinstance(module, Encoder):
            return _features(module(given)).values
        if isinstance(module, Prefix):
            return _features(module(Features(given))).values
        if isinstance(module, Adapter):
            found = module(given, _Sublayer(given))
        elif isinstance(module, FrozenLM):
            rows, width = given.shape[:2]
            found = module(given, _layout(rows, width, given.device))
            found = found.view(rows, width, -1)
        else:
            found = module(given)
        _need(isinstance(found, Tensor), f"`forward` gave a {type(found).__name__}; expected: a tensor")
        value: Tensor = found
        return value

    @property
    def good(self) -> list[Any]:
        """Raw inputs that an encoder takes."""
        _need(len(self.trial.good) >= 2, "its `trial` gives no `good` inputs: at least two that differ are needed")
        return list(self.trial.good)


class _Sublayer:
    """A frozen map of each position on its own; remembers what it was given."""

    def __init__(self, like: Tensor) -> None:
        draw = torch.Generator().manual_seed(3)
        weight = torch.randn(DIM, DIM, generator=draw) / math.sqrt(DIM)
        self.weight = weight.to(device=like.device, dtype=like.dtype)
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.tanh(x @ self.weight)


def checks(part: type[Part]) -> list[Check]:
    """Those that apply to a part, in the order in which they run."""
    return [check for kind, check in ALL if issubclass(part, kind)]


def examine(part: type[Part], trial: Trial | None = None) -> list[Finding]:
    """Run every check of a part; nothing is raised, whatever the part does. The global generators are left alone."""
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()  # a stranger's may be
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for check in checks(part):
            problem = ""
            try:
                check(Subject(part, trial or part.trial(Path(folder))))
            except Exception as error:  # whatever a stranger's part does
                problem = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                problem = problem or type(error).__name__
            found.append(Finding(check.__name__, inspect.getdoc(check) or "", problem))
    random.setstate(generators[0])
    np.random.set_state(generators[1])
    torch.set_rng_state(generators[2])
    return found


def conformance(part: type[Part], trial: Trial | None = None) -> Any:
    """A pytest test of a part, one case a check: `test_lidar = conformance(Lidar)`.

    Raises `PluginError` where `part` is none.
    """
    import pytest

    if not (inspect.isclass(part) and issubclass(part, Part) and hasattr(part, "kind")):
        raise PluginError(f"conformance: given {part!r}; allowed: a subclass of Encoder, Prefix, Adapter, ...")

    @pytest.mark.parametrize("check", checks(part), ids=lambda check: check.__name__)
    def test(check: Check, tmp_path: Path) -> None:
        check(Subject(part, trial or part.trial(tmp_path)))

    return test


# Tools of the checks


def tokens(lm: FrozenLM) -> Tensor:
    """[2, t] ids of two texts of one length."""
    ids = lm.encode(TEXT)[: min(12, lm.context - 4)]
    return torch.tensor([ids, ids[::-1]])


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _features(found: Any) -> Features:
    _need(isinstance(found, Features), f"`forward` gave a {type(found).__name__}; expected: magma.Features")
    _need(found.values.ndim == 3, f"`forward` gave values {list(found.values.shape)}; expected: three axes")
    return found  # type: ignore[no-any-return]  # seen to be one


def _layout(rows: int, width: int, device: Any = "cpu", lengths: Sequence[int] | None = None) -> Layout:
    return Layout(
        torch.arange(width, device=device).repeat(rows, 1),
        torch.tensor(lengths or [width] * rows, device=device),
        torch.arange(rows * width, device=device),
    )


def _same(one: Tensor, other: Tensor, what: str, tolerance: float = 0.0) -> None:
    _need(one.shape == other.shape, f"{what}: {list(one.shape)} against {list(other.shape)}")
    one, other = one.detach().float(), other.detach().float()
    far = float((one - other).abs().max()) if one.numel() else 0.0
    scale = 1 + float(other.abs().max()) if one.numel() else 1.0
    _need(far <= tolerance * scale, f"{what}: they differ by {far:.2g}")


def _another(values: Tensor) -> Tensor:
    """Others of the same shape, not a constant away: a LayerNorm would not see that."""
    return torch.randn(values.shape, generator=torch.Generator().manual_seed(11)) * (1 + values.detach().std())


def _check(kind: type[Part]) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        ALL.append((kind, check))
        return check

    return add


# Every part


@_check(Part)
def documented(subject: Subject) -> None:
    """The class says in a docstring of its own what it does, and its name is one word."""
    part = subject.part
    _need(bool((part.__doc__ or "").strip()) and "__doc__" in vars(part), f"{part.__name__} has no docstring")
    name = getattr(part, "name", None)
    _need(isinstance(name, str) and name.isidentifier(), f"given the name {name!r}; allowed: one word, as in Python")


@_check(Part)
def config_is_strict(subject: Subject) -> None:
    """`Config` is a frozen `PartConfig`: a key that it does not know is an error."""
    part = subject.part
    subject.config()
    _need(issubclass(part.Config, BaseModel), f"Config is {part.Config!r}; expected: a magma.PartConfig")
    try:
        part.Config(**{**subject.trial.config, "no_such_key": 1})
    except ValidationError:
        return
    raise AssertionError("`Config` takes a key that it does not know: derive it from magma.PartConfig")


@_check(Part)
def problems_are_told(subject: Subject) -> None:
    """`problems` gives sentences, and none for the trial."""
    found = subject.part.problems(subject.config())
    _need(isinstance(found, list), f"`problems` gave a {type(found).__name__}; expected: a list")
    _need(not found, f"its trial cannot be used here: {'; '.join(map(str, found))}")


# Parts with weights


@_check(Module)
def built_on_meta(subject: Subject) -> None:
    """`__init__` and `forward` work under `torch.device("meta")`, where no weight takes memory."""
    with torch.device("meta"):
        module: Any = subject.part(subject.config(), *subject.context)  # type: ignore[call-arg]
    held = [name for name, p in module.named_parameters() if not p.is_meta]
    _need(not held, f"these take memory under torch.device('meta'): {', '.join(held[:3])}")
    (given,) = subject.inputs(subject.make())
    found = subject.call(module.eval(), given.to("meta"))
    _need(found.is_meta, f"forward on meta gave a tensor on {found.device}")


@_check(Module)
def finite(subject: Subject) -> None:
    """Values are finite."""
    module = subject.make()
    (given,) = subject.inputs(module)
    _need(bool(subject.call(module, given).isfinite().all()), "`forward` gave values that are not finite")


@_check(Module)
def deterministic_in_eval(subject: Subject) -> None:
    """In eval mode, twice the same input gives the same bits."""
    module = subject.make()
    (given,) = subject.inputs(module)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(subject.call(module, given.clone()).detach().clone())
    _same(found[0], found[1], "two passes in eval mode over one input")


@_check(Module)
def input_unchanged(subject: Subject) -> None:
    """`forward` does not write into what it is given."""
    module = subject.make()
    (given,) = subject.inputs(module)
    before = given.clone()
    with torch.no_grad():
        subject.call(module, given)
    _need(torch.equal(given, before), "`forward` changed its input in place")


@_check(Module)
def rows_do_not_mix(subject: Subject) -> None:
    """What a row gives does not depend on the other rows of a batch."""
    module = subject.make()
    (given,) = subject.inputs(module)
    together = subject.call(module, given)
    for row in range(len(given)):
        alone = subject.call(module, given[row : row + 1])
        _same(alone[0], together[row], f"row {row} alone and in a batch", 1e-4)


@_check(Module)
def any_dtype(subject: Subject) -> None:
    """After `.to(torch.bfloat16)`, a bfloat16 input gives bfloat16 values."""
    module = subject.make()
    (given,) = subject.inputs(module)
    module.to(torch.bfloat16)
    found = subject.call(module, given.to(torch.bfloat16) if given.is_floating_point() else given)
    _need(found.dtype == torch.bfloat16, f"in bfloat16, `forward` gave {found.dtype}")
    _need(bool(found.isfinite().all()), "in bfloat16, `forward` gave values that are not finite")


@_check(Module)
def any_device(subject: Subject) -> None:
    """`.to(device)` moves all that `forward` needs: a tensor that is neither parameter nor buffer stays behind."""
    module = subject.make()
    (given,) = subject.inputs(module)
    try:
        found = subject.call(module.to("meta"), given.to("meta"))
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"moved to another device, `forward` fails: {error}") from error
    _need(found.is_meta, f"moved to another device, `forward` gave a tensor on {found.device}")


@_check(Module)
def gradient_flows(subject: Subject) -> None:
    """In training every parameter that asks for a gradient gets a finite one; a language model passes it on."""
    module = subject.make()
    (given,) = subject.inputs(module)
    if isinstance(module, FrozenLM):
        module.freeze()
        given.requires_grad_()
    module.train()
    subject.call(module, given).float().square().mean().backward()  # type: ignore[no-untyped-call]
    if isinstance(module, FrozenLM):
        _need(given.grad is not None and bool(given.grad.abs().sum() > 0), "no gradient reaches the embeddings")
        return
    for name, p in module.named_parameters():
        if p.requires_grad:
            _need(p.grad is not None, f"{name} gets no gradient: nothing that comes out depends on it")
            assert p.grad is not None
            _need(bool(p.grad.isfinite().all()), f"the gradient of {name} is not finite")


@_check(Module)
def frozen_for_good(subject: Subject) -> None:
    """After `freeze`, `train()` brings back neither gradients nor dropout nor moving averages."""
    module = subject.make()
    (given,) = subject.inputs(module)
    module.freeze()
    module.train()
    asking = [name for name, p in module.named_parameters() if p.requires_grad]
    _need(not asking, f"frozen, these still ask for gradients: {', '.join(asking[:3])}")
    training = [name or "itself" for name, m in module.named_modules() if m.training]
    _need(not training, f"frozen, these are in training mode after train(): {', '.join(training[:3])}")
    before = {name: t.clone() for name, t in module.state_dict().items()}
    found = subject.call(module, given)
    _need(not found.requires_grad, "frozen, a gradient leaks: what comes out requires one")
    for name, t in module.state_dict().items():
        _need(torch.equal(t, before[name]), f"frozen, a forward pass changed {name}")


@_check(Module)
def state_is_saved(subject: Subject) -> None:
    """A second instance with the first one's `state_dict` gives the same values, after a step of training too."""
    module, other = subject.make(0), subject.make(1)
    (given,) = subject.inputs(module)
    if not isinstance(module, FrozenLM):
        module.train()
        wanted = [p for p in module.parameters() if p.requires_grad]
        if wanted:
            subject.call(module, given).float().square().mean().backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for p in wanted:
                    p -= 0.01 * (p.grad if p.grad is not None else 1)
        module.eval()
    with torch.no_grad():
        expected = subject.call(module, given)
        other.load_state_dict({name: t.clone() for name, t in module.state_dict().items()})
        _same(subject.call(other, given), expected, "an instance with the same state_dict", 1e-6)


# Encoders


@_check(Encoder)
def reads_its_inputs(subject: Subject) -> None:
    """`accepts` says yes to what `prepare` takes, and no to what it has never seen."""
    encoder = subject.make()
    for raw in subject.good:
        _need(encoder.accepts(raw) is True, f"`accepts` says no to {raw!r:.60}")
        item = encoder.prepare(raw)
        _need(isinstance(item, Tensor), f"`prepare` gave a {type(item).__name__}; expected: a tensor")
        _need(bool(item.isfinite().all()), f"`prepare` gave values that are not finite for {raw!r:.60}")
    _need(encoder.accepts(object()) is False, "`accepts` says yes to an object of no known type")


@_check(Encoder)
def bad_input_is_refused(subject: Subject) -> None:
    """`prepare` raises `InputError`, and nothing else, for what it cannot read."""
    encoder = subject.make()
    _need(bool(subject.trial.bad), "its `trial` gives no `bad` inputs")
    for raw in [*subject.trial.bad, object()]:
        try:
            encoder.prepare(raw)
        except InputError as error:
            _need(bool(str(error)), f"the InputError for {raw!r:.60} says nothing")
        except Exception as error:
            raise AssertionError(f"`prepare` of {raw!r:.60} raised {type(error).__name__}: {error}") from error
        else:
            raise AssertionError(f"`prepare` takes {raw!r:.60}; it must raise magma.InputError")


@_check(Encoder)
def preparation_is_repeatable(subject: Subject) -> None:
    """`prepare` draws from the `rng` that it is given alone: the same one gives the same item."""
    encoder = subject.make()
    for raw in subject.good:
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
        for rng in (lambda: None, lambda: random.Random(5)):
            _same(encoder.prepare(raw, rng()), encoder.prepare(raw, rng()), "one input, prepared twice")
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
        _need(before[:2] == after[:2] and torch.equal(before[2], after[2]), "`prepare` draws from a global generator")


@_check(Encoder)
def features_have_their_sizes(subject: Subject) -> None:
    """Features are [b, n, dim] with n up to `length`, each item has `size` of them, `largest` has `length`."""
    encoder = subject.make()
    _need(isinstance(getattr(encoder, "modality", None), str), "`modality` is not set")
    items = [encoder.prepare(raw) for raw in subject.good]
    largest = encoder.largest()
    for batch in (items, [largest], [encoder.blank()]):
        found = _features(encoder(encoder.stack(batch)))
        rows, n, width = found.values.shape
        _need(rows == len(batch), f"{len(batch)} items gave {rows} rows")
        _need(width == encoder.dim, f"features have width {width}; `dim` says {encoder.dim}")
        _need(n <= encoder.length, f"an input has {n} features; `length` says at most {encoder.length}")
        lengths = [n] * rows if found.lengths is None else found.lengths.tolist()
        sizes = [encoder.size(item) for item in batch]
        _need(lengths == sizes, f"inputs have {lengths} features; `size` says {sizes}")
    _need(
        encoder.size(largest) == encoder.length, f"`largest` has {encoder.size(largest)} of {encoder.length} features"
    )


@_check(Encoder)
def blank_stands_in(subject: Subject) -> None:
    """Where a batch lacks the modality, `blank` takes its place: finite forth and back, and it stacks with any item."""
    encoder = subject.make()
    item = encoder.prepare(subject.good[0])
    alone = subject.call(encoder, encoder.stack([item]))[0]
    beside = subject.call(encoder, encoder.stack([item, encoder.blank()]))[0]
    n = encoder.size(item)
    _same(beside[:n], alone[:n], "an item beside a blank and alone", 1e-4)
    encoder.train()
    # two, as BatchNorm cannot average one
    found = subject.call(encoder, encoder.stack([encoder.blank()] * 2))
    _need(bool(found.isfinite().all()), "a blank gives features that are not finite")
    if found.requires_grad:
        (found.float().sum() * 0).backward()  # type: ignore[no-untyped-call]
        bad = [name for name, p in encoder.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        _need(not bad, f"a blank gives gradients that are not finite: {', '.join(bad[:3])}")


# Prefixes


@_check(Prefix)
def embeddings_have_their_sizes(subject: Subject) -> None:
    """Embeddings are [b, k, d], k up to `length`; n features give `size(n)`, and their padding is not read."""
    prefix = subject.make()
    values = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(7))
    lengths = torch.tensor([LENGTH, 3])
    found = []
    for padding in (0.0, 9.0):
        filled = values.clone()
        filled[1, 3:] = padding
        out = _features(prefix(Features(filled, lengths)))
        rows, k, width = out.values.shape
        _need((rows, width) == (2, DIM), f"embeddings are {list(out.values.shape)}; expected: [2, k, {DIM}]")
        _need(k <= prefix.length, f"{k} embeddings; `length` says at most {prefix.length}")
        sizes = [prefix.size(n) for n in lengths.tolist()]
        counts = [k, k] if out.lengths is None else out.lengths.tolist()
        _need(counts == sizes, f"{lengths.tolist()} features gave {counts} embeddings; `size` says {sizes}")
        found.append([out.values[row, :count] for row, count in enumerate(counts)])
    for row in range(2):
        _same(found[0][row], found[1][row], "embeddings with other padding behind the features", 1e-5)


# Adapters


@_check(Adapter)
def width_is_kept(subject: Subject) -> None:
    """[b, t, d] stays [b, t, d]."""
    adapter = subject.make()
    (given,) = subject.inputs(adapter)
    found = subject.call(adapter, given)
    _need(found.shape == given.shape, f"given {list(given.shape)}, `forward` gave {list(found.shape)}")


@_check(Adapter)
def positions_do_not_mix(subject: Subject) -> None:
    """A change at one position shows there alone."""
    adapter = subject.make()
    (given,) = subject.inputs(adapter)
    other = given.clone()
    other[:, 2] = _another(other[:, 2])
    one, two = subject.call(adapter, given), subject.call(adapter, other)
    rest = [0, 1, 3, 4, 5]
    _same(one[:, rest], two[:, rest], "what comes out where nothing was changed", 1e-5)


@_check(Adapter)
def sublayer_is_asked(subject: Subject) -> None:
    """The sublayer is called, and with `keeps_input` once, with the input itself."""
    adapter = subject.make()
    (given,) = subject.inputs(adapter)
    sublayer = _Sublayer(given)
    adapter(given, sublayer)
    _need(bool(sublayer.seen), "the sublayer is never called")
    if adapter.keeps_input:
        ours = len(sublayer.seen) == 1 and sublayer.seen[0] is given
        _need(ours, "`keeps_input` is True, but the sublayer is not called once with the input itself")


# Language models


@_check(FrozenLM)
def text_comes_back(subject: Subject) -> None:
    """`decode` undoes `encode`, ids lie below `vocab`, and a pass over n tokens gives n rows of `vocab` logits."""
    lm = subject.make()
    ids = lm.encode(TEXT)
    _need(bool(ids) and min(ids) >= 0 and max(ids) < lm.readable, f"ids from {min(ids)} to {max(ids)}")
    _need(lm.decode(ids).strip() == TEXT, f"{TEXT!r} came back as {lm.decode(ids)!r}")
    (given,) = subject.inputs(lm)
    _need(given.shape[-1] == lm.dim, f"embeddings of width {given.shape[-1]}; `dim` says {lm.dim}")
    hidden = lm(given, _layout(2, given.shape[1]))
    _need(hidden.shape == (2 * given.shape[1], lm.dim), f"hidden states {list(hidden.shape)}")
    logits = lm.head(hidden)
    _need(logits.shape[-1] == lm.vocab, f"{logits.shape[-1]} logits; `vocab` says {lm.vocab}")


@_check(FrozenLM)
def padding_and_future_are_not_seen(subject: Subject) -> None:
    """A position sees neither what follows it nor the padding of its row."""
    lm = subject.make()
    (given,) = subject.inputs(lm)
    width = given.shape[1]
    whole = subject.call(lm, given)
    other = given.clone()
    other[:, width - 2 :] = _another(other[:, width - 2 :])
    _same(subject.call(lm, other)[:, : width - 2], whole[:, : width - 2], "positions before a change", 1e-4)
    padded = lm(other, _layout(2, width, lengths=[width - 2] * 2)).view(2, width, -1)
    _same(padded[:, : width - 2], whole[:, : width - 2], "positions of a padded row", 1e-4)


@_check(FrozenLM)
def cache_changes_nothing(subject: Subject) -> None:
    """A step behind a cache, also one that was expanded or of which rows were selected, is that of one pass."""
    lm = subject.make()
    (given,) = subject.inputs(lm)
    width = given.shape[1]
    whole = subject.call(lm, given)
    cache = lm.new_cache()
    with torch.no_grad():
        lm(given[:, : width - 1], _layout(2, width - 1), cache)
        last = replace(_layout(2, 1), positions=torch.full((2, 1), width - 1))
        swapped = torch.tensor([1, 0])
        found = lm(given[swapped, -1:], last, cache.select(swapped))
        twice = cache.expand(2)
        rows = torch.tensor([0, 0, 1, 1])
        more = replace(_layout(4, 1), positions=torch.full((4, 1), width - 1))
        expanded = lm(given[rows, -1:], more, twice)
    _same(found[swapped], whole[:, -1], "a step with the rows of a cache selected", 1e-3)
    _same(expanded, whole[rows, -1], "a step with an expanded cache", 1e-3)


@_check(FrozenLM)
def adapters_come_and_go(subject: Subject) -> None:
    """`adapt` puts one around every block, which alone learn; `remove_adapters` gives the same bits as before."""
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

    for place in ("attention", "mlp"):
        lm.adapt(place, lambda: Shift(lm.dim))
        _need(bool(lm.adapters.get(place)), f"`adapters` lists none around {place}")
    lm.freeze()
    lm.train()
    after = subject.call(lm, given)
    _need(not torch.equal(after, before), "adapters change nothing")
    after.float().sum().backward()  # type: ignore[no-untyped-call]
    _need(all(a.constant.grad is not None for a in lm.all_adapters()), "no gradient reaches an adapter")
    asking = {id(p) for p in lm.parameters() if p.requires_grad}
    own = {id(a.constant) for a in lm.all_adapters()}
    _need(asking <= own, "frozen, weights other than the adapters' ask for gradients")
    lm.remove_adapters()
    _same(subject.call(lm, given), before, "the language model without its adapters again")


ALL.extend((FrozenLM, check) for check in TEXT_CHECKS)


# Heads


@_check(Head)
def classes_have_logits(subject: Subject) -> None:
    """[m, d] gives [m, c] logits, one a class."""
    head = subject.make()
    (given,) = subject.inputs(head)
    found = subject.call(head, given)
    wanted = (len(given), len(head.classes))
    _need(tuple(found.shape) == wanted, f"logits {list(found.shape)}; expected: {list(wanted)}")


# Data


def _told(example: Example) -> str:
    """An example as text, to compare."""
    parts = [
        repr(s) if isinstance(s, Text) else f"{type(s).__name__} {getattr(s, 'name', '')} {_digest(s)}"
        for s in example.segments
    ]
    return f"{example.name} {example.label} {parts}"


def _digest(segment: Any) -> str:
    value = segment.ids if isinstance(segment, Tokens) else segment.value
    if isinstance(value, Tensor | np.ndarray):
        return str(np.asarray(value).tobytes())
    return f"{type(value)} {value.tobytes()}" if hasattr(value, "tobytes") else repr(value)


@_check(DataSource)
def examples_are_examples(subject: Subject) -> None:
    """A pass gives `Example`s with something to learn, each with a state that is JSON."""
    found = list(islice(subject.make().iterate(), MANY))
    _need(bool(found), "a pass gives no example")
    for example, state in found:
        _need(isinstance(example, Example), f"given a {type(example).__name__}; expected: magma.Example")
        _need(example.problem is None, f"{example.name} cannot be read: {example.problem}")
        target = example.label is not None or any(getattr(s, "target", False) for s in example.segments)
        _need(target, f"{example.name}: no segment is a target, and it has no label")
        try:
            back = json.loads(json.dumps(state))
        except TypeError as error:
            raise AssertionError(f"{example.name}: its state is no JSON: {error}") from error
        _need(back == state, f"{example.name}: its state {state} comes back from JSON as {back}")


@_check(DataSource)
def order_is_repeatable(subject: Subject) -> None:
    """The same seed gives the same examples, whatever the global generators say."""
    orders = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        orders.append([_told(example) for example, _ in islice(subject.make().iterate(), MANY)])
    _need(orders[0] == orders[1], "two sources with one seed give other examples")


@_check(DataSource)
def goes_on_from_any_state(subject: Subject) -> None:
    """From the state behind an example the next one follows; the state of a pass's last opens the next pass."""
    found = list(islice(subject.make().iterate(), MANY))
    for i in (0, len(found) // 2, len(found) - 2):
        if 0 <= i < len(found) - 1:
            state = json.loads(json.dumps(found[i][1]))
            following = next(iter(subject.make().iterate(state)), None)
            _need(following is not None, f"behind example {i + 1} of {len(found)} nothing follows")
            assert following is not None
            same = _told(following[0]) == _told(found[i + 1][0])
            _need(same, f"behind example {i + 1} another one follows than in an unbroken pass")
    whole = list(islice(subject.make().iterate(), 5000))
    if len(whole) < 5000:
        again = next(iter(subject.make().iterate(json.loads(json.dumps(whole[-1][1])))), None)
        _need(again is not None, "the state of the last example opens no next pass")


# Tasks


@_check(Task)
def questions_are_repeatable(subject: Subject) -> None:
    """Questions have ids of their own, and the same seed asks the same, with examples before them too."""
    for shots in (0, 2):
        asked = [list(islice(subject.make().examples("test", shots, 3), MANY)) for _ in range(2)]
        _need(bool(asked[0]), "there is no question")
        ids = [question.id for question in asked[0]]
        _need(len(set(ids)) == len(ids), "two questions have one id")
        told = [[(q.id, q.answer, q.group, len(q.segments)) for q in some] for some in asked]
        _need(told[0] == told[1], "twice the same seed asks other questions")
        json.dumps([question.extra for question in asked[0]])


@_check(Task)
def right_answers_score(subject: Subject) -> None:
    """`score` names finite figures, `primary` among them, and right answers score higher than none."""
    task = subject.make()
    questions = list(islice(task.examples("test", 0, 3), MANY))
    figures: list[Mapping[str, float]] = [
        task.score([Prediction(question, question.answer if right else "") for question in questions])
        for right in (True, False)
    ]
    for found in figures:
        _need(task.primary in found, f'`score` gives {", ".join(found)}; `primary` says "{task.primary}"')
        _need(all(math.isfinite(value) for value in found.values()), f"`score` gives {dict(found)}")
    most, least = (found[task.primary] for found in figures)
    _need(most > least, f"{task.primary}: right answers score {most:g}, no answers {least:g}")
