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
_LINE_WIDTH = 26
"""Characters of a line above a picture."""
_RIGHT, _WRONG = "#1a7f37", "#cf222e"


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
    """Draw the first `SAMPLES` samples into a PNG file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(_ROWS, _COLUMNS, figsize=(12, 10))
    for ax in axes.flat:
        ax.axis("off")
    for ax, sample in zip(axes.flat, samples, strict=False):
        ax.imshow(sample.picture, cmap="gray_r")
        said = ["right" if sample.is_right else f"wrong: {sample.answer}"]
        lines = [line for text in (sample.caption, *said) for line in textwrap.wrap(text, _LINE_WIDTH) or [""]]
        ax.set_title("\n".join(lines), color=_RIGHT if sample.is_right else _WRONG, fontsize=9, parse_math=False)
    figure.tight_layout(h_pad=2)
    atomic_write(path, lambda partial: figure.savefig(partial, dpi=80, format="png"))
    plt.close(figure)
    return path
