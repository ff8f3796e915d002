"""Reads configurations and weights of towers.

A tower inside a whole model is taken out of that model, as the library loads it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from magma import PartError, Weights, error_summary, find_local_folder, hub_has, is_folder, source_problems

from .padding import mask_convolutions
from .preparation import quiet
from .towers import Tower, model_classes, part_of

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
ALLOWED = "Allowed: a hub name, or a folder in transformers' format (config.json, *.safetensors)"
OVERRIDES: Mapping[str, Any] = {
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "apply_spec_augment": False,
}
"""Fields that are replaced, so that every batch runs the same modules."""


def weights_problems(source: str | None) -> list[str]:
    """Missing folders and files, and unavailable hub names, one line each."""
    if source is None:
        return []
    return [f"weights: {problem}" for problem in source_problems(source, ("config.json",), WEIGHTS)]


def locate(source: str, *any_of: str) -> str | None:
    """The folder on this machine that has one of the files, else the hub name if the hub has it, else None."""
    if found := find_local_folder(source, *any_of):
        return str(found)
    return source if not is_folder(source) and hub_has(source, *any_of) else None


def read_architecture(source: str | None, fields: Mapping[str, Any]) -> Any:
    """The configuration of a whole model or of a tower, from a file or from its fields. Raises `PartError`."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if source is not None and (where := locate(source, "config.json")) is not None:
        return _load(source, AutoConfig.from_pretrained, where)
    if source is not None and (is_folder(source) or not fields):
        problem = next(iter(weights_problems(source)), f"weights: {source} has no config.json")
        raise PartError(f"{problem}. {ALLOWED}")
    given = dict(fields)
    name = given.pop("model_type", None)
    if name not in CONFIG_MAPPING:
        raise PartError(f'config.model_type: given {name!r}; allowed: a type of transformers, such as "dinov2"')
    try:
        return CONFIG_MAPPING[name](**given)
    except Exception as error:  # libraries raise errors of many types
        raise PartError(f"config: transformers refuses these fields: {error_summary(error)}") from error


def override(architecture: Any) -> None:
    """Set the fields of `OVERRIDES` that the configuration has."""
    for name, value in OVERRIDES.items():
        if hasattr(architecture, name):
            setattr(architecture, name, value)


def load_tower(source: str, architecture: Any, tower: Tower) -> Any:
    """Load the weights of a tower in the precision of the file.

    Args:
        source: A folder or a hub name.
        architecture: The configuration of the whole model.
        tower: The tower in it.

    Raises:
        PartError: The files cannot be read, or tensors of the tower are missing or have other shapes.
    """
    where = locate(source, *WEIGHTS)
    if where is None:
        problem = next(iter(weights_problems(source)), f"weights: {source} has no {' or '.join(WEIGHTS)}")
        raise PartError(f"{problem}. {ALLOWED}")
    whole = tower.model_class if not tower.path else whole_class(architecture)
    model, report = _load(
        source,
        whole.from_pretrained,
        where,
        config=copy.deepcopy(tower.architecture if not tower.path else architecture),
        dtype="auto",
        ignore_mismatched_sizes=True,  # they are reported below
        output_loading_info=True,
    )
    found, path = (model, "") if not tower.path else _inside(model, tower, source)
    if tower.encoder_only:
        encoder = part_of(found)
        path = next(name for name, module in model.named_modules() if module is encoder)
        found = encoder
    _check_report(report, source, f"{path}." if path else "")
    return mask_convolutions(found)


def whole_class(architecture: Any) -> Any:
    """The class of a whole model: the one that its configuration names, else the first of its type."""
    import transformers

    named = (getattr(transformers, name, None) for name in getattr(architecture, "architectures", None) or ())
    return next((kind for kind in named if kind is not None), None) or model_classes(type(architecture))[0]


def _inside(model: nn.Module, tower: Tower, source: str) -> tuple[Any, str]:
    for path, module in model.named_modules():
        if type(module) is tower.model_class:
            return module, path
    raise PartError(f"weights: {source}: no {tower.model_class.__name__} is found in its {type(model).__name__}")


def _check_report(report: Mapping[str, Any], source: str, prefix: str) -> None:
    """Raise `PartError` for tensors of the tower that are missing or have another shape."""
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"]) if name.startswith(prefix)]
    problems += [
        f"{name} has the shape {list(given)}, in the tower {list(wanted)}"
        for name, given, wanted in sorted(report["mismatched_keys"])
        if name.startswith(prefix)
    ]
    if problems:
        shown = "\n".join(f"  - {problem}" for problem in problems[:8])
        raise PartError(f"weights: {source}: {len(problems)} tensors do not fit the tower:\n{shown}")


def _load(source: Weights, load: Callable[..., Any], where: str, **options: Any) -> Any:
    try:
        with quiet():
            return load(where, **options)
    except Exception as error:  # of safetensors, torch, the hub's client or transformers
        reason = error_summary(error).rstrip(".")
        raise PartError(f"weights: given {source!r}, which cannot be read: {reason}. {ALLOWED}") from error
