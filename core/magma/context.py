"""What an adapter may know about the positions of a batch: their inputs, and the media before them.

Axes: b batch, t tokens, n embeddings of all media of a row, d width of word embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .presence import Presence


@dataclass(frozen=True)
class Context:
    """Which input each position came from, the media of each row, and which of them a position may attend to.

    The media of a row are numbered from 0 in the order of their positions, whatever their input. In rows with several
    packed sequences, the numbers count on, and a position only sees the media of its own sequence. After a cache, the
    media of the earlier positions are included.
    """

    names: tuple[str, ...]
    """The inputs of the model."""
    inputs: Tensor
    """[b, t], the index in `names` of the input that fills a position; -1: text or padding."""
    first_medium: Tensor
    """[b, t], the number of the first medium of the position's sequence."""
    last_medium: Tensor
    """[b, t], the number of the last medium that begins at or before the position. Below `first_medium`: none does."""
    media: Tensor
    """[b, n, d], the embeddings of the media of each row (the prefix's output) in the order of their positions."""
    media_index: Tensor
    """[b, n], the number of the medium that an embedding belongs to; -1: padding."""
    media_inputs: Tensor
    """[b, n], the index in `names` of the input of that medium; -1: padding."""
    presence: Presence | None = None
    """Which inputs the sequences have, for adapters with `only_with`. None: no sequence has any."""
    _found: dict[tuple[str, ...] | None, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The results of `media_positions`: a GPU has to be waited for to know their number."""

    @classmethod
    def of_text(cls, like: Tensor, width: int = 0) -> Context:
        """The context of positions [b, t, ...] without any medium; `media` is [b, 0, width]."""
        rows, t = like.shape[:2]
        zeros = torch.zeros(rows, t, dtype=torch.long, device=like.device)
        none = zeros[:, :0]
        return cls((), zeros - 1, zeros, zeros - 1, like.new_zeros(rows, 0, width), none, none)

    def media_mask(self, last_only: bool = False) -> Tensor:
        """Which embeddings of `media` a position may attend to, [b, t, n] boolean.

        Args:
            last_only: Only the last medium at or before the position, as in Flamingo (Alayrac et al. 2022, section
                2.3). Otherwise all media at or before it.

        A position of a medium may attend to this medium. A position before all media attends to none: its row is False.
        """
        index = self.media_index[:, None]
        own = index >= self.first_medium[..., None]
        last = self.last_medium[..., None]
        return own & (index == last if last_only else index <= last)

    def seen(self, name: str) -> Tensor:
        """Whether a medium of this input begins at or before each position of its sequence, [b, t] boolean."""
        if name not in self.names:
            return torch.zeros_like(self.inputs, dtype=torch.bool)
        return (self.media_mask() & (self.media_inputs == self.names.index(name))[:, None]).any(-1)

    def media_positions(self, names: Sequence[str] | None = None) -> Tensor:
        """The positions that media of these inputs fill, [s] flat indices (row * t + column) in order.

        Args:
            names: Inputs. None: all.

        On meta there are no values: s is then the largest possible number, b * min(n, t).
        """
        key = None if names is None else tuple(names)
        if key not in self._found:
            self._found[key] = self._find_positions(key)
        return self._found[key]

    def _find_positions(self, names: Sequence[str] | None) -> Tensor:
        if self.inputs.is_meta:
            rows, columns = self.inputs.shape
            return torch.arange(rows * min(columns, self.media_index.shape[1]), device="meta")
        flat = self.inputs.flatten()
        if names is None:
            return (flat >= 0).nonzero()[:, 0]
        chosen = torch.tensor([i for i, name in enumerate(self.names) if name in names], device=flat.device)
        return torch.isin(flat, chosen).nonzero()[:, 0]

    # Rows and positions

    def map(self, change: Callable[[Tensor], Tensor]) -> Context:
        """The same with every tensor changed, such as moved to another device or reduced to some rows."""
        return self.map_positions(change).map_media(change)

    def map_positions(self, change: Callable[[Tensor], Tensor]) -> Context:
        """The same with the tensors [b, t] of the positions changed: reordered, cut or padded."""
        return replace(
            self,
            inputs=change(self.inputs),
            first_medium=change(self.first_medium),
            last_medium=change(self.last_medium),
            presence=None if self.presence is None else self.presence.map(change),
        )

    def map_media(self, change: Callable[[Tensor], Tensor]) -> Context:
        """The same with the tensors [b, n, ...] of the media changed."""
        return replace(
            self,
            media=change(self.media),
            media_index=change(self.media_index),
            media_inputs=change(self.media_inputs),
        )

    def select(self, rows: Tensor) -> Context:
        """Only these rows [b'], which may repeat."""
        presence = None if self.presence is None else self.presence.select(rows)
        return replace(self.map(lambda x: x[rows]), presence=presence)

    def of_sequences(self, columns: Tensor) -> Context:
        """The context of packed sequences as rows of their own.

        Args:
            columns: [s, t'], flat index (row * t + column) of each position of each sequence.
        """
        rows = columns[:, 0] // self.inputs.shape[1]
        return self.map_positions(lambda x: x.flatten()[columns]).map_media(lambda x: x[rows])

    def from_end(self, columns: int) -> Context:
        """Only the last columns."""
        skipped = self.inputs.shape[1] - columns
        return self.map_positions(lambda x: x[:, skipped:]) if skipped else self

    def followed_by(self, later: Context) -> Context:
        """The context of later positions of the same rows, with the media of these and of the later ones."""
        count = self._count()
        index = torch.where(later.media_index < 0, -1, later.media_index + count)
        return Context(
            self.names or later.names,
            later.inputs,
            later.first_medium,
            later.last_medium + count,
            torch.cat([self.media, later.media], dim=1) if self.names else later.media,
            torch.cat([self.media_index, index], dim=1),
            torch.cat([self.media_inputs, later.media_inputs], dim=1),
            later.presence
            if self.presence is None or later.presence is None
            else self.presence.followed_by(later.presence),
        )

    def followed_by_text(self) -> Context:
        """The context of one more text token in each row."""
        text = self._count() - 1
        return replace(
            self,
            inputs=torch.full_like(text, -1),
            first_medium=torch.zeros_like(text),
            last_medium=text,
            presence=None if self.presence is None else self.presence.followed_by_text(),
        )

    def _count(self) -> Tensor:
        """Number of media of each row [b, 1]."""
        none = self.media_index.new_full((len(self.media_index), 1), -1)
        return torch.cat([none, self.media_index], dim=1).amax(1, keepdim=True) + 1

    def as_one_row(self) -> Context:
        """The rows one after another in one row, [1, b * t]: some modules see positions so."""
        rows, n = self.media_index.shape
        start = n * torch.arange(rows, device=self.inputs.device)[:, None]  # a row has at most n media
        shifted = replace(
            self,
            first_medium=self.first_medium + start,
            last_medium=self.last_medium + start,
            media_index=torch.where(self.media_index < 0, -1, self.media_index + start),
        )
        return shifted.map(lambda x: x.flatten(0, 1)[None])
