"""The table of reference/language-models.md: `python docs/language_models.py` writes it, and a slow test compares.

It makes a tiny model of every causal family of the installed transformers (tests/causal_zoo.py); a minute.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from typing import Any

from pages import FOLDER, escape, fill, table

from magma.interfaces import SUBLAYERS

PAGE = FOLDER / "reference/language-models.md"
sys.path.append(str(FOLDER.parent / "tests"))
HEAD = ("family", "attention or mixer", "feed-forward", "packing", "decoding")
DECODING = {"batched": "batch", "single": "row by row", "recomputed": "no cache"}


def row(name: str, lm: Any) -> tuple[str, ...]:
    """One line of the table.

    Args:
        name: The family.
        lm: A `Causal` of this family.
    """
    structure = lm.structure
    counts = [Counter(place.block for place in structure.sublayers if place.path == sublayer) for sublayer in SUBLAYERS]
    blocks = len(structure.blocks)
    return (
        f"`{name}`",
        *(_places(count, blocks) for count in counts),
        "one row" if structure.packs else "unpacked",
        DECODING[structure.mode.rows],
    )


def _places(count: Counter[int], blocks: int) -> str:
    if not count:
        return "none"
    where = "every block" if len(count) == blocks else "some blocks"
    each = " or ".join(map(str, sorted(set(count.values()))))
    return where if each == "1" else f"{each} in {where}"


def line(name: str, lm: Any) -> str:
    """The line of a family as it is in the page."""
    return table((), row(name, lm)).splitlines()[-1]


def supported() -> str:
    """A row for every family that works."""
    import causal_zoo

    return table(HEAD, *(row(name, _language_model(name)) for name in causal_zoo.names()))


def _language_model(name: str) -> Any:
    """A tiny model of a family, on meta."""
    import causal_zoo
    from magma_lms.causal import Causal

    with tempfile.TemporaryDirectory() as folder:
        causal_zoo.configuration(name).save_pretrained(folder)
        return Causal(Causal.Config(weights=folder))


def others() -> str:
    """A row for every family that does not."""
    import causal_zoo

    reasons = causal_zoo.REASONS
    return table(("family", "why"), *((f"`{name}`", escape(reasons[name])) for name in sorted(reasons)))


def text() -> str:
    """The page as it is."""
    return PAGE.read_text(encoding="utf-8")


def version() -> str:
    """The release that the table is about."""
    import transformers

    return f"transformers {transformers.__version__}:"


def page(old: str) -> str:
    """The page with its tables as the code has them now."""
    for make in (version, supported, others):
        old = fill(old, "language_models.py", make.__name__, make())
    return old


if __name__ == "__main__":
    PAGE.write_text(page(text()), encoding="utf-8")
