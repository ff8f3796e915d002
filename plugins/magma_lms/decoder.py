"""Calls the decoder of a model of transformers with embeddings, and its own head with hidden states.

Axes: b batch, t tokens, p columns of the cache, e width of the word embeddings, d width of the output, m scored
positions, v vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from magma import Context

from .tracing import first_tensor, replace_first_tensor

CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params", "state")
"""The names that transformers has for the argument with the cache."""


def _no_adapters(_: Context | None) -> AbstractContextManager[None]:
    return nullcontext()


class Decoder:
    """The decoder of a causal model: everything between the word embeddings and the head."""

    def __init__(
        self,
        model: Any,
        path: str,
        by_ids: bool,
        adapters: Callable[[Context | None], AbstractContextManager[None]] = _no_adapters,
    ) -> None:
        """Use a part of a model.

        Args:
            model: The causal model.
            path: Path of the decoder in it.
            by_ids: Whether the decoder needs the token ids besides the embeddings, for further embeddings.
            adapters: Gives adapters the context of the positions that the decoder computes.
        """
        self._adapters = adapters
        self.module: nn.Module = model.get_submodule(path)
        self.config: Any = getattr(self.module, "config", model.config)
        self.table: nn.Module = model.get_input_embeddings()
        self.by_ids = by_ids
        known = inspect.signature(self.module.forward).parameters
        self.takes_positions = "position_ids" in known
        self.takes_mask = "attention_mask" in known
        self.cache_argument = next((name for name in CACHE_ARGUMENTS if name in known), None)
        self._takes_use_cache = "use_cache" in known

    def __call__(
        self,
        embeddings: Tensor,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Embeddings [b, t, e] to hidden states [b, t, d].

        Args:
            embeddings: Word embeddings and others.
            ids: Token ids [b, t]; None: an id without a meaning at all positions.
            mask: [b, t], False for padding; None: there is none on the left.
            positions: [b, t]; None: from the first column on.
            context: For adapters, of these rows and columns; None: there are no media.
        """
        return self.extend(None, embeddings, ids, mask, positions, context, use_cache=False)[0]

    def extend(
        self,
        cache: Any,
        embeddings: Tensor,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        context: Context | None = None,
        use_cache: bool = True,
    ) -> tuple[Tensor, Any]:
        """Hidden states [b, t, d] of positions that follow those of a cache, and the cache with them.

        Args:
            cache: The library's cache, which may be changed in place. None: the decoder makes one.
            embeddings: As for a call.
            ids: As for a call.
            mask: [b, p + t], False for padding.
            positions: As for a call.
            context: As for a call.
            use_cache: Whether there is a cache at all.
        """
        given: dict[str, Any] = {"use_cache": use_cache} if self._takes_use_cache else {}
        if mask is not None and self.takes_mask:
            given["attention_mask"] = mask.long()
        if positions is not None and self.takes_positions:
            given["position_ids"] = positions
        if use_cache and self.cache_argument is not None:
            given[self.cache_argument] = cache
        with self._adapters(context):
            out = self._run(embeddings, ids, given)
        hidden = first_tensor(out)
        assert hidden is not None
        found = out.get(self.cache_argument) if use_cache and isinstance(out, Mapping) else None
        return hidden, cache if found is None else found

    def _run(self, embeddings: Tensor, ids: Tensor | None, given: dict[str, Any]) -> Any:
        if not self.by_ids:
            return self.module(inputs_embeds=embeddings.clone(), **given)  # CTRL scales them in place
        if ids is None:
            ids = torch.zeros(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        handle = self.table.register_forward_hook(lambda *_: embeddings.clone())
        try:
            return self.module(input_ids=ids, **given)
        finally:
            handle.remove()


class Head:
    """What a causal model does after its decoder: projection, scale, soft-cap and bias are the library's.

    It is the model's own forward pass over a stub in the place of the decoder that returns given hidden states.
    """

    def __init__(self, model: Any, path: str, output: Any) -> None:
        """Use the head of a model.

        Args:
            model: The causal model.
            path: Path of the decoder in it.
            output: An output of the decoder, to return hidden states in the same form.
        """
        self._model = _bare_copy(model)
        outer = self._model
        *parents, last = path.split(".")
        for name in parents:
            inner = _bare_copy(outer._modules[name])
            outer._modules[name] = inner
            outer = inner
        self._stub = _bare_copy(outer._modules[last])
        outer._modules[last] = self._stub
        self._output = output

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states [m, d] to logits [m, v]."""
        answer = replace_first_tensor(self._output, hidden[None])
        object.__setattr__(self._stub, "forward", lambda *_, **__: answer)
        try:
            ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            logits: Tensor = type(self._model).forward(self._model, input_ids=ids).logits
        finally:
            object.__delattr__(self._stub, "forward")
        return logits[0]


def _bare_copy(module: Any) -> Any:
    """A shallow copy that shares parameters and submodules, and has no hooks."""
    new = copy.copy(module)
    for name, value in vars(module).items():
        if name == "_modules" or name.endswith("_hooks"):
            new.__dict__[name] = dict(value) if name == "_modules" else OrderedDict()
    return new
