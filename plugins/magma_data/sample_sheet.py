"""A sheet of pictures with a model's captions: right ones in green, wrong ones in red."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magma import atomic_write

SAMPLES = 24
_COLUMNS, _ROWS = 6, 4
_WIDTH, _HEIGHT, _DPI = 12, 10, 80
"""Of the sheet, in inches, and pixels per inch."""
_PICTURE = 0.6
"""Share of the height of a cell for the picture; the text is below it."""
_LINE_WIDTH, _MAX_LINES = 24, 3
"""Characters of a line, and lines of a caption."""
_RIGHT, _WRONG, _ANSWER = "#1a7f37", "#cf222e", "#57606a"


@dataclass(frozen=True)
class Sample:
    """A picture with its caption."""

    picture: Any
    """Pixels [h, w], from white to black, or [h, w, 3 or 4], as matplotlib shows them."""
    caption: str
    answer: str
    """The right answer, which is shown if the caption is wrong."""
    is_right: bool


def draw_samples(samples: Sequence[Sample], path: Path) -> Path:
    """Draw the first `SAMPLES` samples into a PNG file. A picture whose caption is wrong has the answer, too."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, facecolor="white")
    for i, sample in enumerate(samples[:SAMPLES]):
        row, column = divmod(i, _COLUMNS)
        left, bottom = column / _COLUMNS, 1 - (row + 1) / _ROWS
        picture = (_PICTURE - 0.06) / _ROWS
        ax = figure.add_axes((left + 0.1 / _COLUMNS, bottom + (1 - _PICTURE) / _ROWS, 0.8 / _COLUMNS, picture))
        ax.axis("off")
        ax.imshow(sample.picture, cmap="gray_r", interpolation="antialiased")
        x, y = left + 0.5 / _COLUMNS, bottom + (1 - _PICTURE - 0.04) / _ROWS
        caption = textwrap.wrap(sample.caption, _LINE_WIDTH, max_lines=_MAX_LINES, placeholder=" ...") or ["(nothing)"]
        color = _RIGHT if sample.is_right else _WRONG
        style: dict[str, Any] = {"ha": "center", "va": "top", "parse_math": False, "linespacing": 1.15}
        figure.text(x, y, "\n".join(caption), color=color, fontsize=10, weight="bold", **style)
        if not sample.is_right:
            answer = textwrap.wrap(f"right: {sample.answer}", _LINE_WIDTH + 4, max_lines=2, placeholder=" ...")
            below = y - 0.18 * len(caption) / _HEIGHT
            figure.text(x, below, "\n".join(answer), color=_ANSWER, fontsize=9, **style)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))
    return path
