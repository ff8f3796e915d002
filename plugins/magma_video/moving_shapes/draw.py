"""Draws clips of a shape that moves in one of four directions.

Axes: f frames, h height, w width.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
SHAPES = ("circle", "square", "triangle")
FRAMES, SIZE, RATE = 12, 64, 12
"""Frames of a clip, pixels per side, and frames per second."""
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class MovingShape:
    """What a clip shows: a bright shape on a dark background. Lengths are fractions of the side of a frame."""

    direction: str
    shape: str
    radius: float
    middle: tuple[float, float]
    """Where the shape is in the middle of the clip."""
    distance: float
    """How far it moves."""
    colour: tuple[int, int, int]
    background: tuple[int, int, int]

    @classmethod
    def random(cls, direction: str, draw: random.Random) -> MovingShape:
        """A random clip in a direction. One frame of it may as well be from a clip in the opposite direction."""
        radius, distance = draw.uniform(0.08, 0.16), draw.uniform(0.3, 0.6)
        along = draw.uniform(distance / 2 + radius, 1 - distance / 2 - radius)
        across = draw.uniform(radius, 1 - radius)
        horizontal = DIRECTIONS[direction][0] != 0
        colour, background = (tuple(draw.randrange(*limits) for _ in range(3)) for limits in ((120, 256), (0, 60)))
        return cls(
            *(direction, draw.choice(SHAPES), radius, (along, across) if horizontal else (across, along), distance),
            *(colour, background),  # type: ignore[arg-type]  # both have three values
        )

    def frames(self) -> NDArray[np.uint8]:
        """The clip [f, h, w, 3]."""
        return np.stack([self._frame(i / (FRAMES - 1) - 0.5) for i in range(FRAMES)])

    def _frame(self, moment: float) -> NDArray[np.uint8]:
        """[h, w, 3] at a moment from -0.5 to 0.5."""
        side = SIZE * _SUPERSAMPLING
        image = Image.new("RGB", (side, side), self.background)
        x, y = (
            (middle + moment * self.distance * step) * side
            for middle, step in zip(self.middle, DIRECTIONS[self.direction], strict=True)
        )
        r, canvas = self.radius * side, ImageDraw.Draw(image)
        if self.shape == "circle":
            canvas.ellipse((x - r, y - r, x + r, y + r), self.colour)
        elif self.shape == "square":
            canvas.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), self.colour)
        else:
            canvas.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], self.colour)
        return np.asarray(image.reduce(_SUPERSAMPLING))
