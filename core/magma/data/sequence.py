"""Encoded examples, and batches of them.

Axes: b batch, t tokens (media positions included), m scored positions, s media positions of one input in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..feature_cache.media import CachedMedia
from ..values import BatchLayout, Prepared, map_tensors


@dataclass(frozen=True)
class MediaSlots:
    """The positions of a batch that the embeddings of one input fill."""

    positions: Tensor
    """[s] flat indices (row * t + column) into the batch."""
    media_index: Tensor
    """[s] which of that input's media in the batch fills the position."""
    embedding_index: Tensor
    """[s] which of that medium's embeddings."""
    context_index: Tensor | None = None
    """[s] flat index (row * n + column) into `layout.context.media`. None: there is no context."""

    def map(self, change: Callable[[Tensor], Tensor]) -> MediaSlots:
        """The same with every tensor changed."""
        index = None if self.context_index is None else change(self.context_index)
        return MediaSlots(change(self.positions), change(self.media_index), change(self.embedding_index), index)


@dataclass
class EncodedExample:
    """One example as numbers, before it is padded."""

    tokens: list[int]
    """[t], 0 at the positions of media."""
    targets: list[bool]
    """[t], True where the model has to predict the token."""
    media: list[tuple[str, Prepared, int, int]]
    """(input, prepared item, first position, number of positions)."""
    name: str
    label: int | None = None
    """Index of its class; None: it has target tokens instead."""
    other_inputs: frozenset[str] = frozenset()
    """Inputs that the sequence has at positions before or after these."""

    @property
    def inputs(self) -> frozenset[str]:
        """The inputs of the whole sequence."""
        return self.other_inputs.union(name for name, *_ in self.media)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Batch:
    """The argument of `Magma.forward`: padded or packed rows of tokens and media."""

    tokens: Tensor
    """[b, t], 0 at the positions of media and padding."""
    layout: BatchLayout
    """Its `token_ids` are `tokens`."""
    labels: Tensor
    """[m] the tokens or classes that the scored positions have to predict."""
    media: dict[str, Prepared]
    """The stacked items of each input [b', ...]; inputs without media in this batch are absent. Of an input with a
    feature cache, a `CachedMedia`."""
    slots: dict[str, MediaSlots]
    names: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Copy to another device; floating-point media are converted to `dtype`."""
        return self._each(lambda media: to_device(media, device, dtype), lambda x: _moved(x, device, dtype))

    def pin_memory(self) -> Batch:
        """In memory that a GPU can copy from while it computes."""
        return self._each(_pinned, Tensor.pin_memory)

    def _each(self, move_media: Callable[[Any], Any], move: Callable[[Tensor], Tensor]) -> Batch:
        layout = self.layout
        tokens = move(self.tokens)
        return replace(
            self,
            tokens=tokens,
            labels=move(self.labels),
            layout=replace(
                layout,
                positions=move(layout.positions),
                lengths=move(layout.lengths),
                scored=move(layout.scored),
                sequence_ids=None if layout.sequence_ids is None else move(layout.sequence_ids),
                token_ids=None if layout.token_ids is None else tokens,
                context=None if layout.context is None else layout.context.map(move),
            ),
            media={name: move_media(x) for name, x in self.media.items()},
            slots={name: slots.map(move) for name, slots in self.slots.items()},
        )


def to_device(media: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """The media of one input in a batch on another device. Cached features keep the precision in which they are."""
    if isinstance(media, CachedMedia):
        return media.map(lambda x: _moved(x, device, dtype), lambda x: _moved(x, device))
    return map_tensors(lambda x: _moved(x, device, dtype), media)


def _moved(x: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    return x.to(device, dtype if x.is_floating_point() else None, non_blocking=True)


def _pinned(media: Any) -> Any:
    if isinstance(media, CachedMedia):
        return media.map(Tensor.pin_memory, Tensor.pin_memory)
    return map_tensors(Tensor.pin_memory, media)
