"""Chooses frames by their times, which need not be evenly spaced."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown."""

    times: Sequence[int]
    """Of each frame, when it appears: increasing, in units of `unit`."""
    end: int
    """When the last frame disappears."""
    unit: Fraction
    """Seconds. It has no meaning if `has_seconds` is False."""
    has_seconds: bool = True
    """Whether times are known in seconds; without, the frames have only an order."""

    def choose(self, count: int, per_second: float | None = None) -> list[int]:
        """The indices of at most `count` frames, in order, without repetition.

        Without `per_second`, `count` moments are evenly spaced from the first to the last frame; one moment is in the
        middle. With `per_second`, they begin at the first frame and have that distance; if they were more than
        `count`, they are chosen as without it. The frame of a moment is the one that is shown then.

        For a constant frame rate these are the indices `numpy.linspace(0, n - 1, count).astype(int)`, or
        `floor(i * rate / per_second)`.
        """
        first, span = self.times[0], self.times[-1] - self.times[0]
        if per_second is not None:
            ticks = 1 / (Fraction(str(per_second)) * self.unit)  # between two moments
            moments = math.ceil((self.end - first) / ticks)
            if moments <= count:
                return self._shown_at([first + math.floor(i * ticks) for i in range(max(moments, 1))])
        if count == 1:
            return self._shown_at([first + span // 2])
        return self._shown_at([first + span * i // (count - 1) for i in range(count)])

    def _shown_at(self, moments: Sequence[int]) -> list[int]:
        return sorted({bisect_right(self.times, moment) - 1 for moment in moments})


def evenly_spaced(count: int, rate: float | Fraction | None) -> Timeline:
    """`count` frames with a frame rate, or with only an order."""
    if rate is None:
        return Timeline(range(count), count, Fraction(1), has_seconds=False)
    return Timeline(range(count), count, 1 / Fraction(str(rate)))
