"""Which names an input may have: a name is a key of the model, an option of commands and a key of a recipe."""

from __future__ import annotations

OPTIONS = (
    *("text", "max_tokens", "temperature", "top_k", "top_p", "stop", "seed", "device", "lm", "help"),
    *("folder", "prompt", "context"),
)
"""Options and arguments of `generate` in Python and on the command line, which inputs must not shadow."""


def name_problem(name: str) -> str | None:
    """Why an input cannot have this name; None if it can."""
    if not (name.isascii() and name.isidentifier()):
        return "a letter or underscore, then letters, digits and underscores"
    if name in OPTIONS:
        return f'another name: "{name}" is an option of `magma generate`, which has an option for each input'
    return module_problem(name)


def module_problem(name: str) -> str | None:
    """Why torch cannot hold a module under this name; None if it can."""
    from torch import nn

    if not name or "." in name:
        return "a name without dots that is not empty"
    if hasattr(nn.ModuleDict(), name):
        return f'another name: "{name}" is an attribute of torch.nn.ModuleDict, which holds the inputs'
    return None
