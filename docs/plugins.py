"""The tables of guides/plugins.md: `python docs/plugins.py` writes them, and a test compares."""

from __future__ import annotations

import inspect

from pages import FOLDER, fill, first_sentence, table

import magma
from magma import testing
from magma.interfaces import KINDS, Module, Part
from magma.plugins import hookspecs

PAGE = FOLDER / "guides/plugins.md"


def hooks() -> str:
    """Every hook specification."""
    groups = {"magma_parts": hookspecs.PARTS_GROUP, "magma_commands": hookspecs.COMMANDS_GROUP}
    rows = [("hook", "entry-point group", "arguments", "what it gives")]
    for name, group in groups.items():
        hook = getattr(hookspecs, name)
        arguments = ", ".join(f"`{argument}`" for argument in inspect.signature(hook).parameters) or "none"
        rows.append((f"`{name}`", f"`{group}`", arguments, first_sentence(hook)))
    return table(*rows)


def kinds() -> str:
    """Every kind of part, with what a subclass has to bring."""
    rows = [("kind", "subclass", "built as", "what it is", "what it has to define")]
    for kind, base in KINDS.items():
        built = f"({', '.join(_arguments(base))})"
        missing = sorted(base.__abstractmethods__ - {"__init__"})  # type: ignore[attr-defined]  # an ABC has it
        needed = ", ".join(f"`{name}`" for name in missing)
        rows.append((f"`{kind}`", f"`magma.{base.__name__}`", f"`{built}`", first_sentence(base), needed))
    return table(*rows)


def _arguments(base: type[Part]) -> list[str]:
    return [name for name in inspect.signature(base.__init__).parameters if name != "self"]


def promises() -> str:
    """Every check of the conformance kit."""
    rows = [("for", "check", "promise")]
    named = {Part: "every part", Module: "parts with weights"} | {base: f"`{kind}`" for kind, base in KINDS.items()}
    rows += [(named[kind], f"`{check.__name__}`", first_sentence(check)) for kind, check in testing.ALL]
    return table(*rows)


def public() -> str:
    """What `from magma import ...` gives."""
    return ", ".join(f"`{name}`" for name in magma.__all__)


def page(text: str) -> str:
    """The page with every generated part as the code has it now."""
    for make in (hooks, kinds, promises, public):
        text = fill(text, "plugins.py", make.__name__, make())
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
