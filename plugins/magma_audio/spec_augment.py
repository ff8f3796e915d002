"""SpecAugment (Park et al. 2019): spans of time and bands of frequency are masked at random in training.

Axes: f frames, m mel bands.
"""

from __future__ import annotations

import random

from pydantic import Field
from torch import Tensor

from magma import PartConfig


class SpecAugment(PartConfig):
    """Which parts of a spectrogram are masked."""

    time_masks: int = Field(2, ge=0)
    """Number of masked time spans."""
    max_time: float = Field(0.2, gt=0, le=1)
    """Largest length of one, as a fraction of the recording."""
    frequency_masks: int = Field(2, ge=0)
    """Number of masked frequency bands."""
    max_frequency: float = Field(0.2, gt=0, le=1)
    """Largest height of one, as a fraction of all mel bands."""


class SpecAugmentConfig(PartConfig):
    """The key of encoders that read spectrograms."""

    spec_augment: bool | SpecAugment = False
    """Mask time spans and frequency bands in training (SpecAugment, Park et al. 2019): `true`, or a table such as
    `{ time_masks = 2, max_time = 0.1 }`."""

    @property
    def masks(self) -> SpecAugment | None:
        """What is masked in training; None: nothing."""
        if isinstance(self.spec_augment, SpecAugment):
            return self.spec_augment
        return SpecAugment() if self.spec_augment else None


def mask_spectrogram(frames: Tensor, settings: SpecAugment, rng: random.Random, value: float) -> Tensor:
    """Frames [f, m] with masks of `value`; sizes and places are uniformly distributed."""
    frames = frames.clone()
    spans = [(0, settings.max_time)] * settings.time_masks + [(1, settings.max_frequency)] * settings.frequency_masks
    for axis, largest in spans:
        size = frames.shape[axis]
        width = rng.randint(0, int(size * largest + 1e-9))
        start = rng.randint(0, size - width)
        frames.narrow(axis, start, width).fill_(value)
    return frames
