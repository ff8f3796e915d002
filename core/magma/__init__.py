"""Any modality into a frozen language model. Everything that a plugin or a script may use is here."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointError,
    InputError,
    MagmaError,
    OutOfMemory,
    PartError,
    PluginError,
    RecipeError,
    TooLong,
    TrainingError,
    did_you_mean,
)
from .hookspecs import API_VERSION, hookimpl
from .hub import at_hand, hub_has, hub_problem, is_folder, source_problems

if TYPE_CHECKING:
    from .assemble import assemble
    from .checkpoint import load, save, save_tensors
    from .cli import Program
    from .evaluate import evaluate
    from .generate import Decoding
    from .interfaces import (
        Adapter,
        Cache,
        DataSource,
        Encoder,
        Features,
        FrozenLM,
        Head,
        Layout,
        Module,
        Part,
        PartConfig,
        Place,
        Prediction,
        Prefix,
        Question,
        State,
        Task,
        Trial,
    )
    from .model import Input, Magma
    from .recipe import LocalPath, Recipe, Weights
    from .run import run
    from .segments import Batch, Example, Media, Text, Tokens
    from .tensors import read_tensors

# Imported at first use: `import magma` is quick, torch is not.
_HOME = {
    "assemble": ["assemble"],
    "checkpoint": ["load", "save", "save_tensors"],
    "cli": ["Program"],
    "evaluate": ["evaluate"],
    "generate": ["Decoding"],
    "interfaces": [
        *("Adapter", "Cache", "DataSource", "Encoder", "Features", "FrozenLM", "Head", "Layout", "Module", "Part"),
        *("PartConfig", "Place", "Prediction", "Prefix", "Question", "State", "Task", "Trial"),
    ],
    "model": ["Input", "Magma"],
    "recipe": ["LocalPath", "Recipe", "Weights"],
    "run": ["run"],
    "segments": ["Batch", "Example", "Media", "Text", "Tokens"],
    "tensors": ["read_tensors"],
}
_LAZY = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "API_VERSION",
    "Adapter",
    "Batch",
    "Cache",
    "CheckpointError",
    "DataSource",
    "Decoding",
    "Encoder",
    "Example",
    "Features",
    "FrozenLM",
    "Head",
    "Input",
    "InputError",
    "Layout",
    "LocalPath",
    "Magma",
    "MagmaError",
    "Media",
    "Module",
    "OutOfMemory",
    "Part",
    "PartConfig",
    "PartError",
    "Place",
    "PluginError",
    "Prediction",
    "Prefix",
    "Program",
    "Question",
    "Recipe",
    "RecipeError",
    "State",
    "Task",
    "Text",
    "Tokens",
    "TooLong",
    "TrainingError",
    "Trial",
    "Weights",
    "assemble",
    "at_hand",
    "did_you_mean",
    "evaluate",
    "hookimpl",
    "hub_has",
    "hub_problem",
    "is_folder",
    "load",
    "read_tensors",
    "run",
    "save",
    "save_tensors",
    "source_problems",
]


class _Package(ModuleType):
    """Importing a submodule sets it on its package; where a public function has its name, the function wins."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'magma' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
