"""Prepares images and recordings for the feature functions of whole models, with the library's own processors.

A prepared medium is a dictionary from arguments of the feature function to tensors. The first axis of each counts
images, tiles, patches or windows: media are joined along it.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from magma_media.decode import looks_like_audio
from magma_media.image_file import open_image
from magma_media.image_values import looks_like_image
from magma_media.preprocessing import to_displayed_rgb
from magma_media.waveform import load_mono
from PIL import Image
from torch import Tensor

from magma import PartError

from .whole_model import Modality

SMALL_SIDE, SMALL_SECONDS = 64, 0.5
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_processor(modality: Modality, folder: str | Path, architecture: Any) -> Any:
    """The image processor or feature extractor beside the weights, or else that of the model's type.

    Raises:
        PartError: There is none.
    """
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    auto = AutoImageProcessor if modality == "image" else AutoFeatureExtractor
    if any(Path(folder, name).is_file() for name in PROCESSOR_FILES):
        return auto.from_pretrained(folder)
    return default_processor(modality, architecture)


def default_processor(modality: Modality, architecture: Any) -> Any:
    """The processor of a type, with the sizes of the configuration. Raises `PartError` if the library has none."""
    if modality == "image":
        kind = _image_processor_class(architecture.model_type)
        if kind is not None:
            return kind(**_image_fields(kind, architecture))
    else:
        from transformers import FEATURE_EXTRACTOR_MAPPING

        if type(architecture) in FEATURE_EXTRACTOR_MAPPING:
            kind = FEATURE_EXTRACTOR_MAPPING[type(architecture)]
            return kind(**_audio_fields(kind, architecture))
    raise PartError(
        f"its folder has no {PROCESSOR_FILES[0]}, and transformers has no {modality} processor for a model of type "
        f'"{architecture.model_type}"'
    )


def _image_processor_class(model_type: str) -> Any:
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    found: Any = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
    if isinstance(found, dict):
        found = found.get("torchvision") or found.get("pil")
    elif isinstance(found, Sequence) and not isinstance(found, str):
        found = next((name for name in reversed(found) if name), None)
    return getattr(transformers, found) if found else None


def _part(architecture: Any, *names: str) -> Mapping[str, Any]:
    """The fields of the configuration of the tower."""
    inner = next((one for name in names if (one := getattr(architecture, name, None)) is not None), architecture)
    return {name: getattr(inner, name, None) for name in {*inner.to_dict(), *inner.attribute_map}}


def _image_fields(kind: Any, architecture: Any) -> dict[str, Any]:
    """What the configuration says about the sizes of images, in the terms of the processor."""
    given, default = _part(architecture, "vision_config"), kind().to_dict()
    found: dict[str, Any] = {}
    side = given.get("image_size")
    side = side[0] if isinstance(side, list | tuple) else side
    for name in ("size", "crop_size"):
        if isinstance(size := default.get(name), dict) and isinstance(side, int):
            sides = [key for key in size if key in ("height", "width", "shortest_edge")]
            if sides and not (set(size) - {"height", "width", "shortest_edge"}):
                found[name] = dict.fromkeys(size, side)
    for name in ("tile_size", "max_image_size"):
        if isinstance(default.get(name), dict if name == "max_image_size" else int) and isinstance(side, int):
            found[name] = dict.fromkeys(default[name], side) if isinstance(default[name], dict) else side
    for name, fields in {
        "patch_size": ("patch_size",),
        "merge_size": ("spatial_merge_size", "merge_size"),
        "temporal_patch_size": ("temporal_patch_size",),
    }.items():
        value = next((given[field] for field in fields if isinstance(given.get(field), int)), None)
        if name in default and value is not None:
            found[name] = dict.fromkeys(default[name], value) if isinstance(default[name], dict) else value
    if "image_grid_pinpoints" in default and hasattr(architecture, "image_grid_pinpoints"):
        found["image_grid_pinpoints"] = architecture.image_grid_pinpoints
    return found


def _audio_fields(kind: Any, architecture: Any) -> dict[str, Any]:
    given, default = _part(architecture, "audio_config", "encoder_config"), kind().to_dict()
    found: dict[str, Any] = {}
    bands = next((given[name] for name in ("num_mel_bins",) if isinstance(given.get(name), int)), None)
    if bands is not None and default.get("feature_size", 1) > 1:
        found["feature_size"] = bands
    frames = given.get("max_source_positions")
    if isinstance(frames, int) and "chunk_length" in default:
        found["chunk_length"] = max(1, 2 * frames * default["hop_length"] // default["sampling_rate"])
    return found


def looks_readable(modality: Modality, raw: Any) -> bool:
    """Whether a value looks like a medium. No file is opened."""
    return looks_like_image(raw) if modality == "image" else looks_like_audio(raw)


def open_medium(modality: Modality, processor: Any, raw: Any, seconds: float, rng: random.Random | None) -> Any:
    """A picture in RGB, or a waveform [s] at the rate of the processor. Raises `InputError`."""
    if modality == "image":
        return to_displayed_rgb(open_image(raw), (255, 255, 255))
    return load_mono(raw, processor.sampling_rate, seconds, "none", rng)


def blank(modality: Modality, processor: Any, size: float | None = None) -> Any:
    """A grey image of `size` pixels per side, or `size` seconds of noise, with which numbers of features are found."""
    if modality == "image":
        side = int(size or SMALL_SIDE)
        return Image.new("RGB", (side, side), "grey")
    samples = int((size or SMALL_SECONDS) * processor.sampling_rate)
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))


def prepare_media(modality: Modality, processor: Any, media: Sequence[Any], names: Sequence[str]) -> dict[str, Tensor]:
    """The arguments of the feature function for images, or for recordings [s] at the processor's rate."""
    if modality == "image":
        return _chosen(processor(images=list(media), return_tensors="pt"), names)
    options: dict[str, Any] = {"sampling_rate": processor.sampling_rate, "return_tensors": "pt"}
    if any(name.endswith("_mask") for name in names):
        options["return_attention_mask"] = True
    accepted = inspect.signature(processor.__call__).parameters
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in accepted.values()):
        options = {name: value for name, value in options.items() if name in accepted}
    found = dict(processor([one.numpy() for one in media], **options))
    masks = [name for name in found if name.endswith("mask")]
    for name in names:
        if name.endswith("mask") and name not in found and len(masks) == 1:
            found[name] = found[masks[0]]
    return _chosen(found, names)


def joined_axes(modality: Modality, processor: Any, names: Sequence[str]) -> dict[str, int]:
    """The axis of each argument along which the processor joins two equal media."""
    medium = blank(modality, processor)
    one, two = (prepare_media(modality, processor, [medium] * count, names) for count in (1, 2))
    axes = {}
    for name, tensor in one.items():
        longer = [
            i for i, (size, both) in enumerate(zip(tensor.shape, two[name].shape, strict=True)) if both == 2 * size
        ]
        axes[name] = longer[0] if longer else 0
    return axes


def _chosen(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tensor]:
    tensors = {name: torch.as_tensor(found[name]) for name in names if found.get(name) is not None}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
