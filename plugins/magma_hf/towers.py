"""Finds the tower in a configuration of transformers: the model that reads an image, a video, audio or a series.

The names below are arguments of `forward` and fields of configurations, which the library uses in the same sense in all
its models. No model is named.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from magma import PartError

from .padding import mask_convolutions

Modality = Literal["image", "video", "audio", "timeseries"]
MODALITIES: tuple[Modality, ...] = ("image", "video", "audio", "timeseries")
ARGUMENTS: dict[str, tuple[Modality, ...]] = {
    "pixel_values": ("image", "video"),
    "pixel_values_videos": ("video",),
    "image": ("image",),
    "flattened_patches": ("image",),
    "input_features": ("audio",),
    "input_values": ("audio",),
    "audio_mel": ("audio",),
    "spectrogram": ("audio",),
    "mel_spectrogram": ("audio",),
    "past_values": ("timeseries",),
}
"""Main inputs, and what they can mean."""
GRIDS = ("grid_thw", "image_grid_thw", "grid_hws", "image_grid_hw")
"""Arguments with the numbers of patches of images of any size."""
PREFERRED = ("vision_config", "image_config", "video_config", "audio_config", "audio_video_config", "speech_config")
"""Fields with the configuration of a tower of a model that reads text too, in order of preference."""
SUBORDINATE = ("backbone_config", "keypoint_detector_config", "encoder_config", "encoder", "codec_config")
"""Fields with the configuration of the part that reads the media, in a model with something after it."""
WRAPPERS = ("vlm_config", "thinker_config", "detector_config")
"""Fields with the configuration of a whole multimodal model."""
MEANINGS: dict[str, tuple[Modality, ...]] = {
    "vision_config": ("image", "video"),
    "image_config": ("image",),
    "video_config": ("video",),
    "audio_config": ("audio",),
    "audio_video_config": ("audio", "video"),
    "speech_config": ("audio",),
    "codec_config": ("audio",),
}


@dataclass(frozen=True)
class Tower:
    """What is built and called."""

    architecture: Any
    """The configuration of the tower."""
    model_class: Any
    """The class of transformers that is built from it."""
    encoder_only: bool
    """Whether only its encoder is used: the model has a decoder or a head too."""
    argument: str
    """The name of the main input."""
    other: Modality | None = None
    """What the main input means if its name does not say it."""
    outer: str | None = None
    """The main input of the whole model, of which this is the encoder."""
    path: tuple[str, ...] = ()
    """Fields that lead from the whole configuration to that of the tower."""

    def build(self) -> Any:
        """The tower with random weights in float32, on the current device. Raises what the library raises."""
        import torch

        model = self.model_class._from_config(copy.deepcopy(self.architecture), dtype=torch.float32)
        return mask_convolutions(part_of(model) if self.encoder_only else model)

    def encoder(self) -> Tower | None:
        """The tower that is the encoder of this one, as codecs have it; None if there is none."""
        import torch

        if self.encoder_only:
            return None
        with torch.device("meta"):
            model = self.model_class._from_config(copy.deepcopy(self.architecture))
        inner = part_of(model)
        if inner is model or not isinstance(inner, torch.nn.Module):
            return None
        argument, *_ = [name for name in inspect.signature(type(inner).forward).parameters if name != "self"]
        other = meanings(self.argument, self.other)[0]
        return replace(self, encoder_only=True, argument=argument, other=other, outer=self.argument)


def part_of(model: Any) -> Any:
    """The encoder of a model that has a decoder or a head too; the model itself if it has none."""
    found = model.get_encoder() if hasattr(model, "get_encoder") else model
    return getattr(model, "encoder", model) if found is model else found


OTHER_ARGUMENTS: dict[str, Modality] = {
    "florence_vision": "image",
    "granite_speech_encoder": "audio",
    "granite_speech_plus_encoder": "audio",
    "idefics_vision": "image",
    "phi4_multimodal_audio": "audio",
    "perceiver": "image",
}
"""By type: what a tower reads whose main input has a name that does not say it."""


def find_tower(architecture: Any, modality: Modality | None) -> Tower:
    """The tower of a configuration.

    Args:
        architecture: The configuration of a tower, or of a whole model that contains one.
        modality: What it has to read. None: anything.

    Raises:
        PartError: There is none.
    """
    for found in _candidates(architecture, modality, (), frozenset()):
        return found
    wanted = f"{modality}s" if modality in ("image", "video") else modality or "images, videos, audio or series"
    raise PartError(
        f'given a model of type "{architecture.model_type}", in which no tower for {wanted} is found: no model of '
        f"transformers for this configuration, or for one in it, has a main input such as {', '.join(ARGUMENTS)}"
    )


def _candidates(
    architecture: Any, modality: Modality | None, path: tuple[str, ...], outer: frozenset[int]
) -> Iterator[Tower]:
    outer = outer | {id(architecture)}
    for name in (*PREFERRED, *WRAPPERS, *SUBORDINATE):
        inner = _field(architecture, name)
        if inner is None or id(inner) in outer or type(inner) is type(architecture):
            continue  # a field may be another name of the whole
        if _fits(MEANINGS.get(name, MODALITIES), modality):
            yield from _candidates(inner, modality, (*path, name), outer)
    if (found := _own_tower(architecture, modality, path)) is not None:
        yield found


def _field(architecture: Any, name: str) -> Any:
    """A configuration inside another one; None if there is none."""
    inner = getattr(architecture, name, None)
    return inner if hasattr(inner, "model_type") else None


def _own_tower(architecture: Any, modality: Modality | None, path: tuple[str, ...]) -> Tower | None:
    other = OTHER_ARGUMENTS.get(architecture.model_type)
    for kind in model_classes(type(architecture)):
        names = list(inspect.signature(kind.forward).parameters)[1:]
        argument = main_argument(kind) or (names[0] if other else None)
        if argument is not None and _fits(meanings(argument, other), modality):
            decodes = any(name.startswith("decoder_in") for name in names)
            return Tower(architecture, kind, decodes, argument, other, path=path)
    return None


def meanings(argument: str, other: Modality | None = None) -> tuple[Modality, ...]:
    """What a main input can mean; one with a grid of patches is an image or a video."""
    return (other,) if other else ARGUMENTS.get(argument, ("image", "video"))


def _fits(means: tuple[Modality, ...], modality: Modality | None) -> bool:
    return modality is None or modality in means


def main_argument(kind: Any) -> str | None:
    """The argument of a model's `forward` that media are given as; None if it has another main input."""
    names = list(inspect.signature(kind.forward).parameters)[1:]
    if not names:
        return None
    first = names[0]
    if first in ARGUMENTS:
        return first
    if "input_ids" not in names and any(name in GRIDS for name in names):
        return first
    declared = getattr(kind, "main_input_name", None)
    if declared in ARGUMENTS and declared in names:
        return str(declared)
    return None


def model_classes(config_class: Any) -> list[Any]:
    """The models of transformers for a configuration, the one without a head first."""
    from transformers import MODEL_MAPPING, PreTrainedModel

    found: list[Any] = []
    if config_class in MODEL_MAPPING:
        mapped = MODEL_MAPPING[config_class]
        found += mapped if isinstance(mapped, (list, tuple)) else [mapped]
    try:
        module = importlib.import_module(config_class.__module__.replace(".configuration_", ".modeling_"))
    except ImportError:
        return found
    own = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind)
        and issubclass(kind, PreTrainedModel)
        and kind.__module__ == module.__name__
        and getattr(kind, "config_class", None) is config_class
        and "forward" in vars(kind)
    ]
    return [*found, *(kind for kind in own if kind not in found)]
