"""Several encoders that read the same input, as one encoder.

Axes: b batch, n features, e encoder width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from magma import CheckInputs, Encoder, Features, InputError, PartConfig, PartError, PartOf, Prepared

Items = tuple[Prepared, ...]
"""What each member has prepared, in their order."""


class Fused(Encoder):
    """Several encoders of one modality that read the same input; their features are joined.

    Every member prepares the input in its own way. In training each one starts with the same random state, so that
    members with the same `augmentation` see the same crop. It has no weights besides those of its members.
    """

    name = "fused"

    class Config(PartConfig):
        """The members, and how their features are joined."""

        of: tuple[PartOf[Encoder], ...] = Field(min_length=1)
        """The encoders, in the order of their features. They have the same modality."""
        join: Literal["channels", "sequence"] = "channels"
        """`"channels"`: the features of one position are concatenated, so the members need equal numbers of features.
        `"sequence"`: the features of the members follow each other, so the members need equal widths."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.of = nn.ModuleList(one.build() for one in config.of)
        by_channels = config.join == "channels"
        self.modality = self._common("modality", lambda member: member.modality)  # type: ignore[misc]  # of the members
        widths = [member.dim for member in self.members]
        lengths = [member.length for member in self.members]
        if by_channels:
            self._common('number of features, with join = "channels"', lambda member: member.length)
        else:
            self._common('width, with join = "sequence"', lambda member: member.dim)
        self.dim = sum(widths) if by_channels else widths[0]
        self.length = lengths[0] if by_channels else sum(lengths)

    @property
    def members(self) -> list[Encoder]:
        """The encoders, in order."""
        return [member for member in self.of if isinstance(member, Encoder)]

    def _common(self, what: str, value_of: Callable[[Encoder], Any]) -> Any:
        """The value that all members have. Raises `PartError` if they differ."""
        values = [value_of(member) for member in self.members]
        if len(set(values)) > 1:
            shown = ", ".join(f"of.{i} ({member.name}): {values[i]}" for i, member in enumerate(self.members))
            raise PartError(f"the members of {self.name} differ in their {what}: {shown}; allowed: equal values")
        return values[0]

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Two small audio encoders of different widths, and recordings of several lengths."""
        member = {"use": "spectrogram", "rate": 8000, "seconds": 0.6, "bands": 16, "heads": 2}
        config = {"of": [{**member, "width": 16}, {**member, "width": 8, "bands": 8}]}
        inputs = cls.Config(**config).of[0].part.check_inputs(folder)
        return CheckInputs(config, inputs.good, inputs.bad)

    @classmethod
    def augments(cls, config: Config) -> bool:
        """Whether a member does."""
        return any(member.part.augments(member.config) for member in config.of)

    def accepts(self, raw: Any) -> bool:
        """Whether every member accepts it."""
        return all(member.accepts(raw) for member in self.members)

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Items:
        """What each member prepares of one input. Raises `InputError`."""
        state = rng.getstate() if rng is not None else None
        items = []
        for member in self.members:
            if rng is not None and state is not None:
                rng.setstate(state)
            items.append(member.prepare(raw, rng))
        counts = self._counts(tuple(items))
        if self.config.join == "channels" and len(set(counts)) > 1:
            raise InputError(
                f"the members of {self.name} give {', '.join(map(str, counts))} features; allowed with "
                'join = "channels": equal numbers'
            )
        return tuple(items)

    def _counts(self, prepared: Items) -> list[int]:
        return [member.num_features(item) for member, item in zip(self.members, prepared, strict=True)]

    def dummy_item(self) -> Items:
        """The members' own, or their largest ones if joined features would have unequal numbers."""
        items = tuple(member.dummy_item() for member in self.members)
        fits = self.config.join == "sequence" or len(set(self._counts(items))) == 1
        return items if fits else self.max_size_item()

    def max_size_item(self) -> Items:
        """The members' own."""
        return tuple(member.max_size_item() for member in self.members)

    def stack(self, items: Sequence[Items]) -> Items:
        """The batch of each member."""
        return tuple(member.stack(own) for member, own in zip(self.members, zip(*items, strict=True), strict=True))

    def num_features(self, prepared: Items) -> int:
        """The number of one member, or with `join = "sequence"` the sum."""
        counts = self._counts(prepared)
        return counts[0] if self.config.join == "channels" else sum(counts)

    def forward(self, x: Items) -> Features:
        """The batches of the members to features [b, n, e]."""
        found = [member(batch) for member, batch in zip(self.members, x, strict=True)]
        return _join_channels(found) if self.config.join == "channels" else _join_sequences(found)


def _join_channels(found: Sequence[Features]) -> Features:
    """Features [b, n, e_i] to [b, n, sum of e_i]. Members may have different padding after their features."""
    n = min(features.values.shape[1] for features in found)
    lengths = next((features.lengths for features in found if features.lengths is not None), None)
    return Features(torch.cat([features.values[:, :n] for features in found], dim=2), lengths)


def _join_sequences(found: Sequence[Features]) -> Features:
    """Features [b, n_i, e] to [b, sum of n_i, e], with all padding at the end."""
    values = torch.cat([features.values for features in found], dim=1)
    if all(features.lengths is None for features in found):
        return Features(values)
    lengths = [_lengths(features) for features in found]
    padding = torch.cat([_is_padding(f.values, own) for f, own in zip(found, lengths, strict=True)], dim=1)
    order = padding.long().argsort(dim=1, stable=True)
    return Features(values.gather(1, order[..., None].expand_as(values)), torch.stack(lengths).sum(0))


def _lengths(features: Features) -> Tensor:
    """The number of features of each item [b]."""
    if features.lengths is not None:
        return features.lengths
    b, n, _ = features.values.shape
    return torch.full((b,), n, device=features.values.device)


def _is_padding(values: Tensor, lengths: Tensor) -> Tensor:
    """[b, n], True after the features of an item."""
    return torch.arange(values.shape[1], device=values.device) >= lengths[:, None]
