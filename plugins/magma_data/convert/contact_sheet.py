"""`magma data show`: a contact sheet of random images of a folder of shards, with their texts."""

from __future__ import annotations

import json
import random
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from magma import InputError

from .shard_format import IMAGE_ENDINGS, ShardEntry, read_index, read_samples

_COLUMNS = 6
_LINE_WIDTH = 36
"""Characters per line below an image."""
_MAX_LINES = 7
"""Maximum number of lines below an image."""


def draw_contact_sheet(folder: Path, png: Path, count: int = 24, seed: int = 0, split: str | None = None) -> int:
    """Draw random samples with their texts. Returns the number of samples on the sheet."""
    index = read_index(folder)
    if split is not None and split not in index.splits:
        raise InputError(f"--split: given {split!r}; allowed for {folder}: {', '.join(index.splits)}")
    entries = [e for name, entry in index.splits.items() if split in (None, name) for e in entry.shards]
    total = sum(entry.samples for entry in entries)
    picked = sorted(random.Random(seed).sample(range(total), min(count, total)))
    _draw_sheet(folder.name, list(_read_picked(folder, entries, picked)), png)
    return len(picked)


def _read_picked(folder: Path, entries: list[ShardEntry], picked: list[int]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples with these numbers, counted over all shards. Only the necessary shards are read."""
    start = 0
    for entry in entries:
        here = {number - start for number in picked if start <= number < start + entry.samples}
        if here:
            yield from (one for i, one in enumerate(read_samples(folder / entry.file)) if i in here)
        start += entry.samples


def _draw_sheet(title: str, chosen: list[tuple[str, dict[str, bytes]]], png: Path) -> None:
    import io
    import warnings

    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image, ImageOps

    columns = min(_COLUMNS, max(1, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    width, picture, text, header = 2.5, 2.1, 1.25, 0.45  # inches
    figure = Figure(figsize=(columns * width, rows * (picture + text) + header), dpi=120, facecolor="white")
    height = rows * (picture + text) + header
    figure.text(0.12 / (columns * width), 1 - 0.3 / height, title, fontsize=11, weight="bold", parse_math=False)
    for place, (key, files) in enumerate(chosen):
        row, column = divmod(place, columns)
        top = 1 - (header + row * (picture + text)) / height
        left = (column + 0.05) / columns
        axes = figure.add_axes((left, top - picture / height, 0.9 / columns, (picture - 0.08) / height))
        axes.axis("off")
        ending = next(e for e in IMAGE_ENDINGS if e in files)
        with Image.open(io.BytesIO(files[ending])) as opened:
            opened.load()
        image: Image.Image = opened
        with suppress(Exception):  # damaged EXIF raises many kinds, and is ignored
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = image.convert("RGBA")  # the sheet is white
        image.thumbnail((300, 300))
        axes.imshow(image)
        axes.set_anchor("S")
        below = top - (picture + 0.05) / height
        figure.text(left, below, key, fontsize=5.5, color="0.45", va="top", family="monospace", parse_math=False)
        shown = "\n".join(_text_lines(json.loads(files["json"])))
        figure.text(left, below - 0.13 / height, shown, fontsize=7, va="top", linespacing=1.15, parse_math=False)
    with warnings.catch_warnings():
        # Letters of scripts that are missing in the bundled font.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, format="png")


def _text_lines(fields: dict[str, Any]) -> list[str]:
    """The texts of a sample, wrapped and truncated to `_MAX_LINES`."""
    if "questions" in fields:
        texts = [f"Q: {q['question']} A: {_summarize_answers(q['answers'])}" for q in fields["questions"]]
    elif "statements" in fields:
        texts = [f"{one['text']} [{one['label']}]" for one in fields["statements"]]
    else:
        texts = fields["captions"] or ["(no captions)"]
    lines = [line for text in texts for line in textwrap.wrap(text, _LINE_WIDTH, subsequent_indent="  ")]
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], f"{lines[_MAX_LINES - 1][: _LINE_WIDTH - 2]} \N{HORIZONTAL ELLIPSIS}"]
    return lines


def _summarize_answers(answers: list[str]) -> str:
    """The most frequent answer, with its count if there are several answers."""
    if not answers:
        return "?"
    best = max(dict.fromkeys(answers), key=answers.count)
    count = f"({answers.count(best)} of {len(answers)})".replace(" ", "\N{NO-BREAK SPACE}")
    return best if len(answers) == 1 else f"{best} {count}"
