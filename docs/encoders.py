"""The tables of reference/encoders.md: `python docs/encoders.py` writes them, and a slow test compares.

It makes a tiny model of every tower of the installed transformers (tests/encoder_zoo.py); some minutes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from pages import FOLDER, escape, fill, table

PAGE = FOLDER / "reference/encoders.md"
sys.path.append(str(FOLDER.parent / "tests"))
HEAD = ("type", "input", "arguments", "size of the input")


def row(name: str, encoder: Any) -> tuple[str, ...]:
    """One line of the table.

    Args:
        name: The type.
        encoder: An `HF` of this type.
    """
    sample = encoder.sample
    arguments = [*sample.values, *([sample.mask] if sample.mask else [])]
    if sample.packed or "spatial_shapes" in sample.values:
        size = "any grid of patches"
    else:
        size = "any duration" if sample.mask else "one size"
    return f"`{name}`", encoder.modality, ", ".join(f"`{one}`" for one in arguments), size


def line(name: str, encoder: Any) -> str:
    """The line of a type as it is in the page."""
    return table((), row(name, encoder)).splitlines()[-1]


def supported() -> str:
    """A row for every type that works."""
    import encoder_zoo

    return table(HEAD, *(row(name, _encoder(name)) for name in encoder_zoo.names()))


def _encoder(name: str) -> Any:
    """An encoder with a tiny model of a type."""
    import encoder_checks

    with tempfile.TemporaryDirectory() as folder:
        return encoder_checks.Subject(name, Path(folder)).encoder


def others() -> str:
    """A row for every type that does not."""
    import encoder_zoo

    reasons = encoder_zoo.REASONS
    return table(("type", "why"), *((f"`{name}`", escape(reasons[name])) for name in sorted(reasons)))


def inside() -> str:
    """A row for every type of a whole model with a tower in it."""
    import encoder_zoo

    found = encoder_zoo.inside()
    rows = ((f"`{name}`", f"`{tower}`", f"`{path}`") for name, (tower, path) in sorted(found.items()))
    return table(("type", "tower", "field of its config"), *rows)


def counts() -> str:
    """How many there are."""
    import encoder_zoo

    works, refused = len(encoder_zoo.names()), len(encoder_zoo.REASONS)
    whole = len(encoder_zoo.inside())
    return f"{works} of {works + refused} types of towers work, and the towers in {whole} types of whole models."


def listed() -> list[str]:
    """The types of the first table, as the page has them."""
    part = text().partition("<!-- supported:")[2].partition("<!-- end of supported")[0]
    return [one.split("`")[1] for one in part.splitlines() if one.startswith("| `")]


def text() -> str:
    """The page as it is."""
    return PAGE.read_text(encoding="utf-8")


def version() -> str:
    """The release that the tables are about."""
    import transformers

    return f"transformers {transformers.__version__}:"


def page(old: str) -> str:
    """The page with its tables as the code has them now."""
    for make in (version, counts, supported, others, inside):
        old = fill(old, "encoders.py", make.__name__, make())
    return old


if __name__ == "__main__":
    PAGE.write_text(page(text()), encoding="utf-8")
