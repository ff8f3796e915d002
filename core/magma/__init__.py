"""Any modality into a frozen language model. Everything that a plugin or a script may use is here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .deprecation import renamed_export
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
from .hub import find_local_folder, hub_has, hub_problem, is_folder, source_problems
from .io import atomic_write, error_summary, folder_lock
from .packages import find_in_package, is_in_package
from .plugins.hookspecs import API_VERSION, hookimpl

if TYPE_CHECKING:
    from .adapter_tables import AdapterTable
    from .callbacks import Callback, CallbackContext
    from .checkpoint import load, save, save_tensors
    from .context import Context
    from .data.sequence import Batch
    from .evaluation.evaluator import evaluate
    from .feature_cache.cache import FeatureCache
    from .generation.decoding import Decoding
    from .inputs import Input
    from .interfaces import (
        Adapter,
        DataSource,
        Encoder,
        FrozenLM,
        Head,
        Module,
        Part,
        PartConfig,
        Prefix,
        Sublayer,
        Task,
    )
    from .key_values import KeyValueShape, KeyValueSlot
    from .losses import LossContext
    from .model import Magma
    from .piecewise import PiecewiseEncoder
    from .plugins.part_of import PartOf
    from .plugins.program import Program
    from .recipe.assemble import assemble
    from .recipe.paths import LocalPath, Weights
    from .recipe.recipe import Recipe
    from .runs.run import run
    from .sites import Site
    from .tensors import read_tensors
    from .values import (
        BatchLayout,
        Cache,
        CheckInputs,
        Example,
        Features,
        Media,
        Prediction,
        Prepared,
        Question,
        SourceState,
        Text,
        Tokens,
    )

# Imported at first use, because importing torch takes seconds.
_NAMES_BY_MODULE = {
    "adapter_tables": ["AdapterTable"],
    "callbacks": ["Callback", "CallbackContext"],
    "checkpoint": ["load", "save", "save_tensors"],
    "context": ["Context"],
    "data.sequence": ["Batch"],
    "evaluation.evaluator": ["evaluate"],
    "feature_cache.cache": ["FeatureCache"],
    "generation.decoding": ["Decoding"],
    "inputs": ["Input"],
    "interfaces": [
        *("Adapter", "DataSource", "Encoder", "FrozenLM", "Head", "Module", "Part", "PartConfig", "Prefix"),
        *("Sublayer", "Task"),
    ],
    "key_values": ["KeyValueShape", "KeyValueSlot"],
    "losses": ["LossContext"],
    "model": ["Magma"],
    "piecewise": ["PiecewiseEncoder"],
    "plugins.part_of": ["PartOf"],
    "plugins.program": ["Program"],
    "recipe.assemble": ["assemble"],
    "recipe.paths": ["LocalPath", "Weights"],
    "recipe.recipe": ["Recipe"],
    "runs.run": ["run"],
    "sites": ["Site"],
    "tensors": ["read_tensors"],
    "values": [
        *("BatchLayout", "Cache", "CheckInputs", "Example", "Features", "Media", "Prediction"),
        *("Prepared", "Question", "SourceState", "Text", "Tokens"),
    ],
}
_LAZY = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = [
    "API_VERSION",
    "Adapter",
    "AdapterTable",
    "Batch",
    "BatchLayout",
    "Cache",
    "Callback",
    "CallbackContext",
    "CheckInputs",
    "CheckpointError",
    "Context",
    "DataSource",
    "Decoding",
    "Encoder",
    "Example",
    "FeatureCache",
    "Features",
    "FrozenLM",
    "Head",
    "Input",
    "InputError",
    "KeyValueShape",
    "KeyValueSlot",
    "LocalPath",
    "LossContext",
    "Magma",
    "MagmaError",
    "Media",
    "Module",
    "OutOfMemory",
    "Part",
    "PartConfig",
    "PartError",
    "PartOf",
    "PiecewiseEncoder",
    "PluginError",
    "Prediction",
    "Prefix",
    "Prepared",
    "Program",
    "Question",
    "Recipe",
    "RecipeError",
    "Site",
    "SourceState",
    "Sublayer",
    "Task",
    "Text",
    "Tokens",
    "TooLong",
    "TrainingError",
    "Weights",
    "assemble",
    "atomic_write",
    "did_you_mean",
    "error_summary",
    "evaluate",
    "find_in_package",
    "find_local_folder",
    "folder_lock",
    "hookimpl",
    "hub_has",
    "hub_problem",
    "is_folder",
    "is_in_package",
    "load",
    "read_tensors",
    "run",
    "save",
    "save_tensors",
    "source_problems",
]

_RENAMED = {
    "Layout": "BatchLayout",
    "Place": "Sublayer",
    "State": "SourceState",
    "Trial": "CheckInputs",
    "at_hand": "find_local_folder",
}
"""Former names of exports. They work for one version, with a `DeprecationWarning`."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        return getattr(importlib.import_module(__name__), renamed_export(__name__, name, _RENAMED))
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
