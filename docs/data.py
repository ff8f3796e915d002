"""The parts of data.md that the code says itself: `python docs/data.py` writes them anew, a test compares."""

from __future__ import annotations

import inspect
from pathlib import Path

from magma_data.convert.base_set import OfficialSet
from magma_data.convert.registry import SETS

PAGE = Path(__file__).with_name("data.md")


def about() -> str:
    """A row a set: what it is and the command."""
    lines = ["| set | kind | what it is | command |", "|---|---|---|---|"]
    for name, one in SETS.items():
        said = " ".join((inspect.getdoc(one) or "").split())
        lines.append(
            f"| [`{name}`]({one.home}) | {one.kind} | {said} | `magma data convert {name} FOLDER --out {name}` |"
        )
    return "\n".join(lines)


def files() -> str:
    """A row an official file."""
    lines = ["| set | splits | looked for, anywhere below the folders | from |", "|---|---|---|---|"]
    return "\n".join([*lines, *(row for name, one in SETS.items() for row in _rows(name, one))])


def _rows(name: str, one: type[OfficialSet]) -> list[str]:
    splits: dict[tuple[str, str, str], list[str]] = {}
    for each in one.required_files:
        splits.setdefault((each.layout, " or ".join(f"`{n}`" for n in each.names), each.origin), []).append(
            f"{each.split}{'*' if each.split in one.optional else ''}"
        )
    return [
        f"| `{name}`{f' ({layout})' if layout else ''} | {', '.join(found)} | {names} | {origin} |"
        for (layout, names, origin), found in splits.items()
    ]


def page(text: str) -> str:
    """The page with both tables as the code has them now."""
    for make in (about, files):
        begin, end = f"<!-- {make.__name__}: python docs/data.py -->\n", f"\n<!-- end of {make.__name__} -->"
        before, mark, rest = text.partition(begin)
        assert mark, f"{PAGE.name} lacks {begin!r}"
        text = before + begin + make() + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
