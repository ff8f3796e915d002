"""The tables of guides/published-data.md: `python docs/data.py` writes them, and a test compares."""

from __future__ import annotations

import inspect

from magma_data.convert.base_set import OfficialSet
from magma_data.convert.registry import SETS
from pages import FOLDER, fill, table

PAGE = FOLDER / "guides/published-data.md"


def about() -> str:
    """A row a set: what it is and the command."""
    rows = [("set", "kind", "what it is", "command")]
    for name, one in SETS.items():
        said = " ".join((inspect.getdoc(one) or "").split())
        command = f"`magma data convert {name} FOLDER --out {name}`"
        rows.append((f"[`{name}`]({one.home})", one.kind, said, command))
    return table(*rows)


def files() -> str:
    """A row an official file."""
    rows = [("set", "splits", "looked for, anywhere below the folders", "from")]
    return table(*rows, *(row for name, one in SETS.items() for row in _rows(name, one)))


def _rows(name: str, one: type[OfficialSet]) -> list[tuple[str, ...]]:
    splits: dict[tuple[str, str, str], list[str]] = {}
    for each in one.required_files:
        splits.setdefault((each.layout, " or ".join(f"`{n}`" for n in each.names), each.origin), []).append(
            f"{each.split}{'*' if each.split in one.optional else ''}"
        )
    return [
        (f"`{name}`{f' ({layout})' if layout else ''}", ", ".join(found), names, origin)
        for (layout, names, origin), found in splits.items()
    ]


def page(text: str) -> str:
    """The page with both tables as the code has them now."""
    for make in (about, files):
        text = fill(text, "data.py", make.__name__, make())
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
