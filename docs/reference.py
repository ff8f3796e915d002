"""The tables of reference/: `python docs/reference.py` writes them, and a test compares.

A key's sentence is the description of its pydantic field.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import typer
from pages import FOLDER, escape, fill, table
from pydantic import BaseModel

from magma.cli.app import cli
from magma.plugins.registry import installed
from magma.recipe.keys import FRAMEWORK_TABLES, keys_of

KEYS_PAGE = FOLDER / "reference/recipe-keys.md"
CLI_PAGE = FOLDER / "reference/cli.md"
DISTRIBUTION = "magma-multimodal"
OF_THE_MACHINE = {"workers": "number of CPUs, at most 8"}
"""Defaults of options that differ between machines."""
KIND_TITLES = {
    "encoder": "Encoders: `encoder` of `[inputs.NAME]`",
    "prefix": "Prefixes: `prefix` of `[inputs.NAME]`",
    "adapter": "Adapters: `[adapters.NAME]`",
    "lm": "Language models: `[lm]`",
    "head": "Heads: `[head]`",
    "data": "Data sources: `[[data.train]]` and `[[data.evaluation]]`",
    "task": "Tasks: `[[tasks]]`",
    "callback": "Callbacks: `[[callbacks]]`",
}


# Recipe keys


def key_rows(model: type[BaseModel]) -> str:
    """A row a key: type, default, sentence."""
    rows = [("key", "type", "default", "meaning")]
    for key in keys_of(model):
        default = key.default if key.default in ("required", "none") else f"`{escape(key.default)}`"
        rows.append((f"`{key.name}`", escape(key.type), default, escape(key.description)))
    return table(*rows)


def framework() -> str:
    """Every table that the framework itself reads."""
    return "\n\n".join(f"### {title}\n\n{key_rows(model)}" for title, model in FRAMEWORK_TABLES.items())


def parts() -> str:
    """Every part of this distribution, kind by kind."""
    texts = []
    for kind, title in KIND_TITLES.items():
        texts.append(f"## {title}")
        if kind not in {entry.kind for entry in _ours()}:
            texts.append("None is included.")
        for entry in _ours():
            if entry.kind == kind:
                about = " ".join((entry.part.__doc__ or "").split("\n\n")[0].split())
                texts.append(f'### `use = "{entry.name}"` ({kind})\n\n{about}')
                config = entry.part.Config
                texts.append(key_rows(config) if config.model_fields else "No keys.")
    return "\n\n".join(texts)


def without_sentence() -> list[str]:
    """Keys that mean something nobody wrote down."""
    tables = {**FRAMEWORK_TABLES, **{f"{entry.kind} {entry.name}": entry.part.Config for entry in _ours()}}
    return [f"{title} {key.name}" for title, model in tables.items() for key in keys_of(model) if not key.description]


def _ours() -> list[Any]:
    return [entry for entry in installed().entries() if entry.plugin.distribution == DISTRIBUTION]


# The program


def commands() -> str:
    """Every command with its arguments and options, those of this distribution's plugins too."""
    for entry in entry_points(group="magma.commands"):
        if entry.dist is not None and entry.dist.name == DISTRIBUTION:
            entry.load().magma_commands(cli)  # a command that is there already is replaced by itself
    return "\n\n".join(_command(command, name) for name, command in _leaves(typer.main.get_command(cli), "magma"))


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, below in sorted(command.commands.items()):
        yield from _leaves(below, f"{name} {word}")


def _command(command: Any, name: str) -> str:
    name = name.removesuffix(" ask")  # the command that a group runs by default
    parameters = [one for one in command.params if not getattr(one, "hidden", False) and "--help" not in one.opts]
    arguments = [_argument(one) for one in parameters if one.param_type_name == "argument"]
    usage = " ".join([name, *arguments, "[OPTIONS]"])
    text = f"## `{name}`\n\n{_prose(command.help or '')}\n\n```text\n{usage}\n```"
    rows = [("argument or option", "default", "meaning")]
    for parameter in parameters:
        names = ", ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))
        if parameter.param_type_name == "argument":
            names = f"`{_argument(parameter)}`"
        rows.append((names, _option_default(parameter), escape(getattr(parameter, "help", None) or "")))
    return f"{text}\n\n{table(*rows)}" if len(rows) > 1 else text


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name).upper()
    return name if parameter.nargs == 1 or name.endswith("...") else f"{name}..."


def _prose(text: str) -> str:
    """Help as Markdown: paragraphs, and what is indented or follows a line end stays on its line."""
    return "\n\n".join("  \n".join(line.strip() for line in part.splitlines()) for part in text.split("\n\n"))


def _option_default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.name in OF_THE_MACHINE:
        return OF_THE_MACHINE[parameter.name]
    default = parameter.default
    if default is None or isinstance(default, bool) or default == [] or callable(default):
        return {True: "on", False: "off"}.get(default, "")
    return f"`{default}`"


def keys_page(text: str) -> str:
    """The page of recipe keys as the code has them now."""
    for make in (framework, parts):
        text = fill(text, "reference.py", make.__name__, make())
    return text


def cli_page(text: str) -> str:
    """The page of the program as the code has it now."""
    return fill(text, "reference.py", "commands", commands())


PAGES = {KEYS_PAGE: keys_page, CLI_PAGE: cli_page}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
