"""What the scripts of this folder share: blocks of a page that are generated, and tables in Markdown."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"<!-- (\w+): python (docs/\w+\.py) -->\n.*?\n<!-- end of \1 -->", re.DOTALL)
"""A generated block of a page."""


def fill(text: str, script: str, name: str, content: str) -> str:
    """The page with the block `name`, which `script` generates, replaced by `content`."""
    begin, end = f"<!-- {name}: python docs/{script} -->\n", f"\n<!-- end of {name} -->"
    before, mark, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    assert mark, f"the page lacks {begin!r}"
    assert closing, f"the page lacks {end!r}"
    return before + begin + content + end + after


def table(*rows: tuple[str, ...]) -> str:
    """Markdown; the first row is the head."""
    head, *rest = rows
    lines = [head, tuple("---" for _ in head), *rest]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escape(text: str) -> str:
    """One line that may be a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def first_sentence(thing: object) -> str:
    """The first sentence of a docstring, as a cell of a table."""
    text = " ".join((inspect.getdoc(thing) or "").split())
    return escape(re.split(r"(?<=\.) (?=[A-Z`])", text)[0])
