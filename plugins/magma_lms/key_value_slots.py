"""Further keys and values in the attention of models of transformers.

An attention module that calls the library's `AttentionInterface` gets a configuration that names a function of this
module there. It calls the function that was named before, with further keys and values in between.

Axes: b batch, t queries, p keys, h query heads, g key-value heads, w width of a head's keys, u of a head's values.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from magma import KeyValueShape, KeyValueSlot, PartError

from .attention_masks import causal_mask
from .fast.attention import FastAttention
from .sites import Place

INTERFACE = "magma_key_values"
"""The name of the function of this module among those of the library."""


class LibrarySlots:
    """The slots of the attention sublayers of a model. Which of them work is found out when a shape is needed."""

    def __init__(self, model: nn.Module, places: Sequence[Place], run: Callable[[], object]) -> None:
        """Make them.

        Args:
            model: The model, which may be on meta.
            places: The places of all its sublayers.
            run: Runs the decoder on a few tokens, without a cache.
        """
        self._model, self._run = model, run
        self._slots = {place: LibrarySlot(self, place) for place in places if place.path == "attention"}
        self._shapes: dict[Place, KeyValueShape] | None = None

    def slot(self, place: Place) -> LibrarySlot | None:
        """The slot of a sublayer. None: it is no attention."""
        return self._slots.get(place)

    def shape(self, place: Place) -> KeyValueShape:
        """The shape of a slot. Raises `PartError` if this attention has no place for further keys."""
        if self._shapes is None:
            self._shapes = self._connect()
        if place not in self._shapes:
            others = {one.block for one in self._slots if one not in self._shapes}
            blocks = sorted({one.block for one in self._shapes} - others)
            allowed = (
                f"attention in blocks {blocks}"
                if blocks
                else "language models whose blocks each have one attention, with AttentionInterface of transformers"
            )
            raise PartError(
                f"given the attention of block {place.block}, into which no further keys can be put; allowed: {allowed}"
            )
        return self._shapes[place]

    def _connect(self) -> dict[Place, KeyValueShape]:
        """Let the attention modules use the slots. Returns the shapes of those that can."""
        users = {place: _interface_users(self._model, place) for place in self._slots}
        probes = {module: _Probe(module) for modules in users.values() for module in modules}
        with (
            torch.device("cpu"),
            _without_fast_attention(self._model),
            torch.no_grad(),
        ):  # adapters may be built on meta
            try:
                self._run()
            finally:
                for probe in probes.values():
                    probe.undo()
        shapes: dict[Place, KeyValueShape] = {}
        for place, modules in users.items():
            called = [probes[module] for module in modules if probes[module].calls]
            if len(called) == 1 and called[0].shape is not None:
                shapes[place] = called[0].shape
                _install(called[0].module, self._slots[place])
        return shapes


class LibrarySlot(KeyValueSlot):
    """One of `LibrarySlots`."""

    def __init__(self, slots: LibrarySlots, place: Place) -> None:
        self._slots, self._place = slots, place
        self._further = ()

    @property
    def shape(self) -> KeyValueShape:
        """Sizes of the keys and values. Raises `PartError` if this attention has no place for further ones."""
        return self._slots.shape(self._place)


class _Probe:
    """Records how a module calls the library's interface while it is installed."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.calls = module, 0
        self.shape: KeyValueShape | None = None
        self._config = vars(module)["config"]
        _install(module, self)

    def undo(self) -> None:
        vars(self.module)["config"] = self._config
        del vars(self.module)["key_value_slot"]

    def note(self, keys: Tensor, values: Tensor, mask: Any, others: Mapping[str, Any]) -> None:
        """Keep the shape of a call that further keys can be put into: nothing else in it belongs to columns."""
        self.calls += 1
        by_column = [name for name, one in others.items() if isinstance(one, Tensor) and one.ndim > 2]
        plain = mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)
        fits = plain and not by_column and others.get("is_causal") is not False and keys.ndim == values.ndim == 4
        self.shape = KeyValueShape(keys.shape[1], keys.shape[3], values.shape[3]) if fits and self.calls == 1 else None


def _interface_users(model: nn.Module, place: Place) -> list[nn.Module]:
    """The modules of a sublayer that choose their attention by their configuration."""
    inside = [] if place.is_span else model.get_submodule(place.entry).modules()
    return [one for one in inside if hasattr(vars(one).get("config"), "_attn_implementation_internal")]


@contextmanager
def _without_fast_attention(model: nn.Module) -> Iterator[None]:
    """The library's own attention inside."""
    fast = [module for module in model.modules() if isinstance(module, FastAttention)]
    for module in fast:
        module.is_fast = False
    try:
        yield
    finally:
        for module in fast:
            del module.is_fast


def _install(module: nn.Module, slot: KeyValueSlot | _Probe) -> None:
    """Let a module, and no other one with the same configuration, call `_attention`."""
    from transformers import AttentionInterface

    AttentionInterface.register(INTERFACE, _attention)
    config = copy.copy(vars(module)["config"])
    vars(module)["key_value_slot"] = slot
    config.implementation_before = config._attn_implementation_internal
    config._attn_implementation_internal = INTERFACE
    vars(module)["config"] = config


def _attention(
    module: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """As the library calls it: queries [b, h, t, w], keys [b, g, p, w], values [b, g, p, u] to [b, t, h, u]."""
    slot, function = module.key_value_slot, _function_before(module)
    if isinstance(slot, _Probe):
        slot.note(keys, values, mask, others)
        return function(module, queries, keys, values, mask, **others)  # type: ignore[no-any-return]
    t = queries.shape[2]
    if mask is None and 1 < t < keys.shape[2]:  # a cache of fixed size gives all its columns
        keys, values = keys[:, :, :t], values[:, :, :t]

    def run(keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        mask = causal_mask(t, keys) if mask is None else mask
        out: Tensor = function(module, queries, keys, values, mask, **others)[0]
        return out.transpose(1, 2)

    return slot.attend(run, keys, values, mask).transpose(1, 2), None


def _function_before(module: Any) -> Callable[..., Any]:
    """The library's function that the module would call by itself. "eager" is one of the module's own file."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = module.config.implementation_before
    if name != "eager":
        found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
        return found
    own: Callable[..., Any] = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
    return own
