"""The preparation that transformers has for a model: from the files beside the weights, or the default of its type."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magma import PartError, error_summary

from .samples import MASKS, Sample
from .towers import ARGUMENTS, GRIDS, Modality, Tower

FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
WHOLE_IMAGE: Mapping[str, Any] = {"do_image_splitting": False, "crop_to_patches": False, "do_pan_and_scan": False}
"""Options with which a processor does not cut an image into tiles."""
OTHER_NAMES = {"tgt_sizes": "target_sizes", "image_pixel_values": "pixel_values"}
"""What a processor calls an argument of the tower, where the names differ in more than a prefix."""
PREFIXES = ("image_", "pixel_", "video_", "input_features_", "padding_", "attention_")


def read_processor(folder: str, modality: Modality, hub: Mapping[str, Any]) -> Any:
    """The processor of a folder or a hub name; None if it has none. Raises `PartError` for one that cannot be read."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoVideoProcessor

    kinds: dict[str, tuple[Any, ...]] = {
        "image": (AutoImageProcessor,),
        "video": (AutoVideoProcessor, AutoImageProcessor),
        "audio": (AutoFeatureExtractor,),
    }
    if Path(folder).is_dir() and not any(Path(folder, file).is_file() for file in FILES):
        return None
    problem: Exception | None = None
    for kind in kinds.get(modality, ()):
        try:
            return kind.from_pretrained(folder, **hub)
        except Exception as error:  # libraries raise errors of many types
            problem = error
    if problem is None or _is_absent(problem):
        return None
    raise PartError(f"weights: the preparation in {folder} cannot be read: {error_summary(problem)}")


def _is_absent(problem: Exception) -> bool:
    """Whether there is no processor of this kind, rather than one that cannot be read."""
    return isinstance(problem, (ImportError, KeyError)) or "Unrecognized" in str(problem)


def default_processor(types: Iterable[Any], modality: Modality, fields: Mapping[str, Any]) -> Any:
    """The library's processor for the first of some configurations that has one, with default values; else None.

    Args:
        types: Configurations.
        modality: What it prepares.
        fields: Values that replace defaults, if the processor has them.
    """
    for architecture in types:
        for kind in _classes(architecture, modality):
            try:
                made = kind()
                known = {name: value for name, value in fields.items() if _has(made, name, value)}
                return kind(**known) if known else made
            except Exception:  # it needs more than defaults
                continue
    return None


def _has(processor: Any, name: str, value: Any) -> bool:
    """Whether a processor has a field, in the form of this value."""
    own = getattr(processor, name, None)
    return hasattr(processor, name) and (not isinstance(value, dict) or all((own or {}).get(key) for key in value))


def owners(architecture: Any) -> list[Any]:
    """Default configurations of whole models that have a tower of this type, from the same module of the library."""
    module = sys.modules[type(architecture).__module__]
    found = []
    for kind in vars(module).values():
        parts = getattr(kind, "sub_configs", None) if inspect.isclass(kind) else None
        if parts and type(architecture) in parts.values():
            try:
                found.append(kind())
            except Exception:  # a field without a default
                continue
    return found


def _classes(architecture: Any, modality: Modality) -> list[Any]:
    from transformers import FEATURE_EXTRACTOR_MAPPING, IMAGE_PROCESSOR_MAPPING
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

    mappings = {
        "image": [IMAGE_PROCESSOR_MAPPING],
        "video": [VIDEO_PROCESSOR_MAPPING, IMAGE_PROCESSOR_MAPPING],
        "audio": [FEATURE_EXTRACTOR_MAPPING],
    }
    found: list[Any] = []
    for mapping in mappings.get(modality, []):
        if type(architecture) not in mapping:
            continue
        kinds = mapping[type(architecture)]
        if isinstance(kinds, dict):
            kinds = [kinds[name] for name in ("torchvision", "pil") if name in kinds]
        found += [kind for kind in (kinds if isinstance(kinds, (list, tuple)) else [kinds]) if kind is not None]
    return found


def matched(found: Mapping[str, Any], tower: Tower, names: Iterable[str]) -> dict[str, Tensor]:
    """What a processor gives, by the tower's names of arguments, the main input first; the rest is left out."""
    names = list(names)
    result: dict[str, Tensor] = {}
    for key, value in found.items():
        name = _argument(key, tower, names)
        if name is not None and name not in result:
            result[name] = value if isinstance(value, Tensor) else torch.as_tensor(value)
    if tower.argument not in result:
        raise ValueError(f"its processor gives {', '.join(found)}, and not {tower.argument}")
    main = result.pop(tower.argument)
    return {tower.argument: main, **result}


def _argument(key: str, tower: Tower, names: list[str]) -> str | None:
    key = OTHER_NAMES.get(key, key)
    if key == tower.argument or (key in ARGUMENTS and tower.argument not in ARGUMENTS):
        return tower.argument
    if key in ARGUMENTS and set(ARGUMENTS[key]) & set(ARGUMENTS[tower.argument]):
        return tower.argument
    if key in names:
        return key
    ends = [name for name in names if name.endswith(f"_{key}") or key.endswith(f"_{name}")]
    if not ends and "mask" in key:
        ends = [name for name in names if name in MASKS]
    if not ends:
        ends = [name for name in names for a in PREFIXES if a in key and key.removeprefix(a) == _without_prefix(name)]
    return ends[0] if ends else None


def _without_prefix(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def as_item(given: Mapping[str, Tensor], modality: Modality, axis: int | None = None) -> Sample:
    """What a processor gives for one input, without the axis for rows."""
    main, *others = given
    grid = next((name for name in others if name in GRIDS), None)
    x = given[main]
    if grid is not None and x.shape[0] == int(given[grid].prod(-1).sum()):
        values = {main: x, **{name: given[name][0] for name in others}}
        return Sample(modality, values, grid, 0)
    if "target_sizes" in given and len(x) == 1:
        values = {name: value[0] for name, value in given.items()}
        return Sample(modality, values, "target_sizes", pack_axis=2, row_axis=True)
    if any(len(one) != 1 for one in given.values()):
        raise ValueError("its processor gives several rows for one input")
    return Sample(modality, {name: one[0] for name, one in given.items()}, None, axis)
