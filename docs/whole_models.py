"""The tables of reference/whole-models.md: `python docs/whole_models.py` writes them.

A slow test imports a tiny model of each type and compares it with its line (tests/whole_zoo.py).
"""

from __future__ import annotations

import sys

from pages import FOLDER, escape, fill, table

PAGE = FOLDER / "reference/whole-models.md"
sys.path.append(str(FOLDER.parent / "tests"))


def version() -> str:
    """The release that the tables are about."""
    import transformers

    return f"transformers {transformers.__version__}:"


def imported() -> str:
    """A row for every type that is imported."""
    import whole_zoo

    rows = (
        (f"`{name}`", modality, f"`{prefix}`")
        for name, inputs in sorted(whole_zoo.IMPORTED.items())
        for modality, prefix in inputs.items()
    )
    return table(("type", "reads", "prefix"), *rows)


def refused() -> str:
    """A row for every type that is refused."""
    import whole_zoo

    return table(("type", "why"), *((f"`{name}`", escape(why)) for name, why in sorted(whole_zoo.REFUSED.items())))


def count() -> str:
    """How many there are of each."""
    import whole_zoo

    total = len([*whole_zoo.IMPORTED, *whole_zoo.REFUSED, *whole_zoo.UNTRIED])
    untried = ", ".join(f"`{name}`" for name in whole_zoo.UNTRIED)
    imported = f"{len(whole_zoo.IMPORTED)} of {total} types are imported."
    return f"{imported} Not tried, because there is no tiny configuration of them here: {untried}."


def page(old: str) -> str:
    """The page with its tables as the code has them now."""
    for make in (version, count, imported, refused):
        old = fill(old, "whole_models.py", make.__name__, make())
    return old


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
