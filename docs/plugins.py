"""The parts of plugins.md that the code says itself: `python docs/plugins.py` writes them anew, a test compares."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from pydantic_core import PydanticUndefined

import magma
from magma import testing
from magma.interfaces import KINDS, Module, Part
from magma.plugins import hookspecs
from magma.plugins.registry import installed

PAGE = Path(__file__).with_name("plugins.md")


def first(thing: object) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join((inspect.getdoc(thing) or "").split())
    return re.split(r"(?<=\.) (?=[A-Z`])", text)[0].replace("|", "\\|")


def table(*rows: tuple[str, ...]) -> str:
    """Markdown; the first row is the head."""
    head, *rest = rows
    lines = [head, tuple("---" for _ in head), *rest]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def hooks() -> str:
    """Every hook specification."""
    groups = {"magma_parts": hookspecs.PARTS_GROUP, "magma_commands": hookspecs.COMMANDS_GROUP}
    rows = [("hook", "entry-point group", "arguments", "what it gives")]
    for name, group in groups.items():
        hook = getattr(hookspecs, name)
        arguments = ", ".join(f"`{argument}`" for argument in inspect.signature(hook).parameters) or "none"
        rows.append((f"`{name}`", f"`{group}`", arguments, first(hook)))
    return table(*rows)


def kinds() -> str:
    """Every kind of part, with what a subclass has to bring."""
    rows = [("kind", "subclass", "built as", "what it is", "what it has to define")]
    for kind, base in KINDS.items():
        built = f"({', '.join(_arguments(base))})"
        missing = sorted(base.__abstractmethods__ - {"__init__"})  # type: ignore[attr-defined]  # an ABC has it
        needed = ", ".join(f"`{name}`" for name in missing)
        rows.append((f"`{kind}`", f"`magma.{base.__name__}`", f"`{built}`", first(base), needed))
    return table(*rows)


def _arguments(base: type[Part]) -> list[str]:
    return [name for name in inspect.signature(base.__init__).parameters if name != "self"]


def promises() -> str:
    """Every check of the conformance kit."""
    rows = [("for", "check", "promise")]
    named = {Part: "every part", Module: "parts with weights"} | {base: f"`{kind}`" for kind, base in KINDS.items()}
    rows += [(named[kind], f"`{check.__name__}`", first(check)) for kind, check in testing.ALL]
    return table(*rows)


def shipped() -> str:
    """Every part of this distribution, with the fields of its config."""
    rows = [("kind", "name", "what it is", "fields")]
    for entry in installed().entries():
        if entry.plugin.distribution == "magma-multimodal":
            fields = [_field(name, field.default) for name, field in entry.part.Config.model_fields.items()]
            rows.append((f"`{entry.kind}`", f"`{entry.name}`", first(entry.part), ", ".join(fields) or "none"))
    return table(*rows)


def _field(name: str, default: object) -> str:
    return f"`{name}`" if default is PydanticUndefined else f"`{name}={default!r}`".replace("|", "\\|")


def public() -> str:
    """What `from magma import ...` gives."""
    return ", ".join(f"`{name}`" for name in magma.__all__)


def page(text: str) -> str:
    """The page with every generated part as the code has it now."""
    for make in (hooks, kinds, promises, shipped, public):
        begin, end = f"<!-- {make.__name__}: python docs/plugins.py -->\n", f"\n<!-- end of {make.__name__} -->"
        before, mark, rest = text.partition(begin)
        assert mark, f"{PAGE.name} lacks {begin!r}"
        text = before + begin + make() + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
