"""Reads configurations and weights of towers.

A tower inside a whole model is taken out of that model, as the library loads it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from magma_media.transformers_files import ALLOWED, WEIGHTS, locate, silence_transformers
from torch import nn

from magma import PartError, Weights, error_summary, is_folder, source_problems

from .padding import mask_convolutions
from .towers import Tower, model_classes, part_of

OVERRIDES: Mapping[str, Any] = {
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "apply_spec_augment": False,
    "mask_ratio": 0.0,  # of masked autoencoders
}
"""Fields that are replaced, so that nothing is masked. Every `...layerdrop` is 0: all batches run the same modules."""


def weights_problems(source: str | None) -> list[str]:
    """Missing folders and files, and unavailable hub names, one line each."""
    if source is None:
        return []
    return [f"weights: {problem}" for problem in source_problems(source, ("config.json",), WEIGHTS)]


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
    """Set the fields of `OVERRIDES` that the configuration has, and each probability to drop a layer."""
    for name in [name for name in vars(architecture) if name.endswith("layerdrop")]:
        setattr(architecture, name, 0.0)
    for name, value in OVERRIDES.items():
        if hasattr(architecture, name):
            setattr(architecture, name, value)


def load_tower(source: str, architecture: Any, tower: Tower, is_unused: Callable[[str], bool]) -> Any:
    """Load the weights of a tower in the precision of the file.

    Args:
        source: A folder or a hub name.
        architecture: The configuration of the whole model.
        tower: The tower in it.
        is_unused: Whether the features do not depend on a tensor of the tower, such as a pooler: it may be missing.

    Raises:
        PartError: The files cannot be read, or tensors of the tower are missing or have other shapes.
    """
    where = locate(source, *WEIGHTS)
    if where is None:
        problem = next(iter(weights_problems(source)), f"weights: {source} has no {' or '.join(WEIGHTS)}")
        raise PartError(f"{problem}. {ALLOWED}")
    whole = whole_class(architecture)
    inside = bool(tower.path)
    model, report = _read(
        source, where, *((whole, architecture) if inside else (tower.model_class, tower.architecture))
    )
    if not inside and report["missing_keys"] and whole is not tower.model_class:
        inside = True  # the file has a whole model of the same type
        model, report = _read(source, where, whole, architecture)
    found, path = _inside(model, tower, source) if inside else (model, "")
    if tower.encoder_only:
        encoder = part_of(found)
        path = next(name for name, module in model.named_modules() if module is encoder)
        found = encoder
    lacking = _check_report(report, source, f"{path}." if path else "", is_unused)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if name in lacking:  # the library drew it at random; so that checkpoints agree
                parameter.zero_()
    return mask_convolutions(found)


def _read(source: str, where: str, kind: Any, architecture: Any) -> tuple[Any, Mapping[str, Any]]:
    """A model with the weights of a file, and the library's report."""
    found: tuple[Any, Mapping[str, Any]] = _load(
        source,
        partial(_in_its_precision, kind),
        where,
        config=copy.deepcopy(architecture),
        ignore_mismatched_sizes=True,  # they are reported below
        output_loading_info=True,
    )
    return found


def _in_its_precision(kind: Any, where: str, **options: Any) -> Any:
    """Call a class's `from_pretrained` with the precision of the file, if the class can do that."""
    try:
        return kind.from_pretrained(where, dtype="auto", **options)
    except AttributeError:  # a wrapper of another library
        return kind.from_pretrained(where, **options)


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


def _check_report(report: Mapping[str, Any], source: str, prefix: str, is_unused: Callable[[str], bool]) -> set[str]:
    """Names of unused tensors that are not in the file. Raises `PartError` for others, and for other shapes."""
    missing = [name for name in sorted(report["missing_keys"]) if name.startswith(prefix)]
    problems = [f"{name} is missing" for name in missing if not is_unused(name.removeprefix(prefix))]
    problems += [
        f"{name} has the shape {list(given)}, in the tower {list(wanted)}"
        for name, given, wanted in sorted(report["mismatched_keys"])
        if name.startswith(prefix) and not is_unused(name.removeprefix(prefix))
    ]
    if problems:
        shown = "\n".join(f"  - {problem}" for problem in problems[:8])
        raise PartError(f"weights: {source}: {len(problems)} tensors do not fit the tower:\n{shown}")
    other = (name for name, *_ in report["mismatched_keys"] if name.startswith(prefix))
    return {name.removeprefix(prefix) for name in (*missing, *other)}


def _load(source: Weights, load: Callable[..., Any], where: str, **options: Any) -> Any:
    try:
        with silence_transformers():
            return load(where, **options)
    except Exception as error:  # of safetensors, torch, the hub's client or transformers
        reason = error_summary(error).rstrip(".")
        raise PartError(f"weights: given {source!r}, which cannot be read: {reason}. {ALLOWED}") from error
