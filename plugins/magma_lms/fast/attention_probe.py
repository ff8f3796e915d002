"""Finds attention modules that compute what `attention.py` computes, and shows it by trying both.

The roles of the submodules follow from the order of their calls and from the result; no name of a module is used. An
attention module only knows its arguments: so it is tried with small and large inputs, with masks, with positions and
caches that claim to be far beyond any limit, and one query at a time.

Axes: b batch, t tokens, d width, h query heads, g key-value heads, w width of a head.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .attention import FastAttention, Plan
from .mixin import mix_in
from .rotation import Angles

FAR = 10**7
"""A position beyond the context of any model."""
Arguments = dict[str, Any]


def speed_up_attention(model: nn.Module, run: Callable[[], object]) -> int:
    """Give every attention module that `attention.py` can replace the faster forward pass. Returns their number.

    The class of the module becomes a subclass with the same name; its submodules do not change.

    Args:
        model: A decoder with its weights, in evaluation mode.
        run: Runs it on a few tokens, without a cache.
    """
    calls = _rotary_calls(model, run)
    layers = {module: layer for module, call in calls.items() if (layer := _recorded_layer(module, *call)) is not None}
    known: dict[tuple[Any, ...], Plan | None] = {}
    count = 0
    for module, layer in layers.items():
        x, arguments = calls[module]
        key = _kind(module, layers)
        if key not in known:
            known[key] = _recognise(module, x, arguments, layer)
        plan = known[key]
        if plan is not None:
            mix_in(module, FastAttention, fast_plan=replace(plan, layer=layer))
            count += 1
    return count


def _rotary_calls(model: nn.Module, run: Callable[[], object]) -> dict[nn.Module, tuple[Tensor, Arguments]]:
    """Modules with a projection that are called with rotary positions: the hidden states and the other arguments."""
    found: dict[nn.Module, tuple[Tensor, Arguments]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        rope = kwargs.get("position_embeddings")
        rest = dict(kwargs)
        x = args[0] if len(args) == 1 else rest.pop("hidden_states", None)
        if isinstance(x, Tensor) and x.ndim == 3 and isinstance(rope, tuple) and all(map(_in_halves, rope)):
            found[module] = x, rest

    projecting = [m for m in model.modules() if any(isinstance(child, nn.Linear) for child in m.children())]
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in projecting]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _in_halves(part: Any) -> bool:
    """Whether these are cosines or sines [b, t, r] that have each angle twice."""
    if not isinstance(part, Tensor) or part.ndim != 3 or part.shape[-1] % 2:
        return False
    return torch.equal(*part.chunk(2, -1))


def _kind(module: nn.Module, layers: dict[nn.Module, int]) -> tuple[Any, ...]:
    """Equal for modules of one class with equal settings, apart from an attribute that is the number of the layer."""
    alike = [other for other in layers if type(other) is type(module)]
    simple = (int, float, str, bool, type(None))
    settings = sorted(
        (name, repr(value))
        for name, value in vars(module).items()
        if isinstance(value, simple) and not all(vars(other).get(name) == layers[other] for other in alike)
    )
    return type(module), tuple(settings), tuple(name for name, _ in module.named_modules())


class _Probe:
    """Stands in for the library's cache: it keeps what it is given, and claims that it is long."""

    def __init__(self, past: tuple[Tensor, Tensor] | None = None) -> None:
        self.past = past
        self.layer: int | None = None
        self.keys = self.values = torch.empty(0)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.layer, self.keys, self.values = layer, keys, values
        if self.past is None:
            return keys, values
        return tuple(torch.cat(pair, dim=2) for pair in zip(self.past, (keys, values), strict=True))  # type: ignore[return-value]

    def get_seq_length(self, *_: Any) -> int:
        return FAR if self.past is not None else 0


@dataclass(frozen=True)
class _Trial:
    """One call of an attention module, and what it gave."""

    x: Tensor
    arguments: Arguments
    past: tuple[Tensor, Tensor] | None = None
    """Keys and values of earlier positions."""
    saturated: bool = False
    """The scores are so large that rounding decides between them: only keys and values are compared."""


@dataclass(frozen=True)
class _Result:
    out: Tensor
    keys: Tensor
    values: Tensor


def _cache_argument(arguments: Arguments) -> str | None:
    return next((name for name in ("cache", "past_key_values") if name in arguments), None)


def _recorded_layer(module: nn.Module, x: Tensor, arguments: Arguments) -> int | None:
    """The layer of the cache that the module writes to. None: it does not use a cache as attention does."""
    probe = _Probe()
    return probe.layer if _call(module, x, arguments, probe) is not None else None


def _call(module: Any, x: Tensor, arguments: Arguments, cache: _Probe | None) -> Tensor | None:
    """The module's output; None if it cannot be called so, or returns something else."""
    name = _cache_argument(arguments)
    if name is None:
        return None
    try:
        with torch.no_grad():
            out = module(hidden_states=x, **{**arguments, name: cache})
    except Exception:  # the library's code may raise anything when the probe's cache lacks what it needs
        return None
    return out[0] if isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], Tensor) else None


def _recognise(module: nn.Module, x: Tensor, arguments: Arguments, layer: int) -> Plan | None:
    trials = list(_trials(module, x, arguments))
    results = [_result(module, trial) for trial in trials]
    for plan in _plans(module, x, arguments, layer):
        if all(
            result is not None and _same(module, plan, trial, result)
            for trial, result in zip(trials, results, strict=True)
        ):
            return plan
    return None


def _result(module: nn.Module, trial: _Trial) -> _Result | None:
    probe = _Probe(trial.past)
    out = _call(module, trial.x, trial.arguments, probe)
    found = None if out is None else _Result(out, probe.keys, probe.values)
    return found if found and all(bool(one.any()) for one in vars(found).values()) else None  # zeros show nothing


def _trials(module: nn.Module, x: Tensor, arguments: Arguments) -> Iterator[_Trial]:
    draw = torch.Generator().manual_seed(0)
    b, t, _ = x.shape
    noise = torch.randn(x.shape, generator=draw).to(x)
    far = {name: value + FAR if _is_index(value) else value for name, value in arguments.items()}
    for scale in (1.0, 30.0, 1000.0):
        yield _Trial(noise * scale, far, saturated=scale == 1000)
    allowed = torch.rand(b, 1, t, t, generator=draw).to(x.device) < 0.7
    allowed = (allowed | torch.eye(t, dtype=torch.bool, device=x.device)).tril()
    for mask in (allowed, torch.zeros_like(allowed, dtype=x.dtype).masked_fill_(~allowed, torch.finfo(x.dtype).min)):
        yield _Trial(noise, {**arguments, "attention_mask": mask})
    probe = _Probe()
    _call(module, noise, arguments, probe)
    step = {name: value[..., -1:] if _is_index(value) else value for name, value in far.items()}
    step["attention_mask"] = None
    step["position_embeddings"] = tuple(one[:, -1:] for one in arguments["position_embeddings"])
    yield _Trial(noise[:, -1:], step, (probe.keys, probe.values))


def _is_index(value: Any) -> bool:
    """Whether an argument holds positions or columns [..., t]."""
    return isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64)


def _plans(module: nn.Module, x: Tensor, arguments: Arguments, layer: int) -> Iterator[Plan]:
    """All plans that the shapes allow, the usual one first."""
    order: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, out: order.append((name, out))

    children = dict(module.named_children())
    handles = [child.register_forward_hook(note(name)) for name, child in children.items()]
    probe = _Probe()
    try:
        _call(module, x, arguments, probe)
    finally:
        for handle in handles:
            handle.remove()
    matrices = [(name, out) for name, out in order if any(p.ndim > 1 for p in children[name].parameters())]
    norms = [(name, out) for name, out in order if (name, out) not in matrices]
    called = {name for name, _ in order}
    if len(matrices) != 4 or len(norms) not in (0, 2) or len(called) != len(order) or called != set(children):
        return
    if any(True for _ in module.parameters(recurse=False)) or probe.keys.ndim != 4:
        return
    *projections, (out, _) = matrices
    width = probe.keys.shape[-1]
    whole = bool(norms) and norms[0][1].ndim == 3
    names = (norms[0][0], norms[1][0]) if norms else None
    scales = dict.fromkeys([width**-0.5, *(v for v in vars(module).values() if isinstance(v, float))])
    for (query, q), (key, k), (value, v) in itertools.permutations(projections):
        if k.shape == v.shape and k.shape[-1] == probe.keys.shape[1] * width and q.shape[-1] % k.shape[-1] == 0:
            for scale in scales:
                yield Plan(query, key, value, out, names, whole, width, scale, layer)


def _same(module: nn.Module, plan: Plan, trial: _Trial, expected: _Result) -> bool:
    """Whether the fast forward pass with this plan gives the same keys, values and output."""
    fast: Any = copy.copy(module)
    mix_in(fast, FastAttention, fast_plan=plan)
    probe = _Probe(trial.past)
    angles = Angles.of(*trial.arguments["position_embeddings"])
    try:
        with torch.no_grad():
            out = fast.attend(trial.x, angles, trial.arguments.get("attention_mask"), probe)
    except RuntimeError:  # shapes of a wrong plan
        return False
    pairs = [(probe.keys, expected.keys), (probe.values, expected.values)]
    if not trial.saturated:
        pairs.append((out, expected.out))
    return all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
        for one, other in pairs
    )
