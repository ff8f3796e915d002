"""The part of a multimodal model of transformers that turns media into embeddings: everything but its language model.

It is read from a folder that `magma import hf` writes: config.json, and the tensors of that part in model.safetensors.

Axes: d width of the language model.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from magma import CheckpointError, PartError, error_summary, read_tensors

Modality = Literal["image", "video", "audio"]
MODALITIES: tuple[Modality, ...] = ("image", "video", "audio")
TENSORS = "model.safetensors"
UNUSED = "unused_parameters"
"""Key of the file's metadata: names of parameters that are not trained."""
NOT_MEDIA = ("vision_", "interpolate", "output_", "batch_num", "downsample_")
"""Beginnings of the names of arguments that are options."""


class Absent(nn.Module):
    """Stands for a module that was taken out: the language model."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = config


def whole_class(architecture: Any) -> Any:
    """The library's class that writes text about media. Raises `PartError` if it has none for this configuration."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

    for mapping in (MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(architecture) in mapping:
            return mapping[type(architecture)]
    raise PartError(
        f'given a model of type "{architecture.model_type}"; allowed: a type for which transformers writes text about '
        "images, video or audio"
    )


def function_name(modality: Modality) -> str:
    """The library's name of the function that gives the embeddings of media."""
    return f"get_{modality}_features"


def feature_module(whole: Any, modality: Modality) -> Any:
    """The module of a whole model that has the function for this modality; None if there is none."""
    return next((one for one in (whole.base_model, whole) if hasattr(one, function_name(modality))), None)


def can_read(whole: Any, modality: Modality) -> bool:
    """Whether a model has a function for a modality, and a configuration of what it calls."""
    parts = {"image": ("vision_config", "image_config"), "audio": ("audio_config", "encoder_config")}
    fields = [name for name in parts.get(modality, ()) if hasattr(whole.config, name)]
    there = not fields or any(getattr(whole.config, name) is not None for name in fields)
    return there and feature_module(whole, modality) is not None


def arguments(module: Any, modality: Modality) -> tuple[list[str], list[str]]:
    """Names of the arguments of the feature function that describe media; and those of them without a default."""
    function = inspect.unwrap(getattr(module, function_name(modality)))
    found = {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "args", "kwargs", "return_dict") and not name.startswith(NOT_MEDIA)
    }
    return list(found), [name for name, required in found.items() if required]


def call(module: Any, modality: Modality, given: Mapping[str, Tensor]) -> Tensor:
    """The embeddings of all media, one after the other: [n, d]."""
    found = getattr(module, function_name(modality))(**given)
    if not isinstance(found, Tensor | list | tuple):
        found = found.pooler_output if found.get("pooler_output") is not None else found.last_hidden_state
    tensors = list(_tensors(found))
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in tensors])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Sequence):
        for one in value:
            yield from _tensors(one)


def text_config(architecture: Any) -> Any:
    """The configuration of the language model inside."""
    return architecture.get_text_config(decoder=True)


def read_configuration(folder: Path) -> Any:
    """The configuration in a folder. Raises `PartError`."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # the library raises errors of many types
        raise PartError(f"{folder} cannot be read: {error_summary(error)}") from error


def unused_parameters(module: Any, modality: Modality, given: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters that do not contribute to the features of a medium, or that the library never trains."""
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        features = call(module, modality, given)
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features.dtype)
        gradients = torch.autograd.grad(features, list(parameters.values()), weights, allow_unused=True)
    used = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return [name for name, _ in module.named_parameters() if name not in used]


def stored_names(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the tensors in a folder, and those of unused parameters. Raises `PartError`.

    Nothing is read but the header.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / TENSORS, framework="pt") as opened:
            return list(opened.keys()), json.loads((opened.metadata() or {}).get(UNUSED, "[]"))
    except (OSError, SafetensorError) as error:
        raise PartError(f"{folder / TENSORS} cannot be read: {error}") from error


def build(architecture: Any, modality: Modality, names: Collection[str]) -> Any:
    """The module with the feature function, on the current device, without values.

    Args:
        architecture: The configuration of the whole model.
        modality: What is read.
        names: The tensors that it has. Modules without any of them are taken out.

    Raises:
        PartError: It cannot be built.
    """
    from transformers.initialization import no_init_weights

    kind = whole_class(architecture)
    try:
        with no_init_weights():
            try:
                whole = kind._from_config(copy.deepcopy(_with_short_language_model(architecture)))
            except Exception:  # a language model that cannot be shortened like this
                whole = kind._from_config(copy.deepcopy(architecture))
    except Exception as error:  # the library raises errors of many types
        raise PartError(f"a {architecture.model_type} cannot be built: {error_summary(error)}") from error
    return prune(feature_module(whole, modality), names).float().eval()


def _with_short_language_model(architecture: Any) -> Any:
    """The same configuration, with one layer in the language model, which is taken out anyway."""
    small = copy.deepcopy(architecture)
    text = text_config(small)
    if text is not small and isinstance(getattr(text, "num_hidden_layers", None), int):
        text.num_hidden_layers = 1
        if isinstance(getattr(text, "layer_types", None), list):
            text.layer_types = text.layer_types[:1]
    return small


def prune(module: Any, names: Collection[str], path: str = "") -> Any:
    """Take out the modules of which no tensor is in `names`, but which have tensors."""
    for name, child in list(module.named_children()):
        here = f"{path}{name}."
        if any(one.startswith(here) for one in names):
            prune(child, names, here)
        elif any(True for _ in child.state_dict()):
            setattr(module, name, Absent(getattr(child, "config", None)))
    return module


def load(module: nn.Module, folder: Path, without: str | None = None, inside: str | None = None) -> None:
    """Fill a module with the tensors of a folder, in their precision.

    Args:
        module: What `build` returns, or a module in it.
        folder: The folder.
        without: Path of a module inside, whose tensors are left out.
        inside: Path of `module` in what `build` returns.

    Raises:
        PartError: The tensors do not fit.
    """
    try:
        found, _ = read_tensors(folder / TENSORS)
        if without is not None:
            found = {name: tensor for name, tensor in found.items() if not name.startswith(f"{without}.")}
        if inside is not None:
            start = f"{inside}."
            found = {name.removeprefix(start): tensor for name, tensor in found.items() if name.startswith(start)}
        module.load_state_dict(found, strict=True, assign=True)
    except (CheckpointError, RuntimeError) as error:
        raise PartError(f"{folder} does not fit: {error_summary(error)}") from error
    module.requires_grad_(True)


def language_models(whole: Any) -> list[Any]:
    """The modules of the library with the configuration of the language model, except for the whole itself."""
    kind = type(text_config(whole.config))
    return [
        part
        for part in whole.modules()
        if hasattr(part, "base_model") and type(getattr(part, "config", None)) is kind and part is not whole
    ]


def language_model_names(whole: Any, module: Any) -> set[str]:
    """Names in `module` of the tensors of the language model and its head."""
    parts = [*language_models(whole), whole.get_input_embeddings(), whole.get_output_embeddings()]
    inside = {id(tensor) for part in parts if part is not None for tensor in part.state_dict(keep_vars=True).values()}
    return {name for name, tensor in module.state_dict(keep_vars=True).items() if id(tensor) in inside}


def shorten(module: nn.Module) -> nn.Module:
    """The same module with only the last of several equal blocks, which gives as many features."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) > 1 and len({type(one) for one in child}) == 1:
                _say_layers(module, len(child))
                setattr(parent, name, nn.ModuleList([child[-1]]))
    return module


def _say_layers(module: nn.Module, layers: int) -> None:
    """Let the configurations of all parts with this number of layers say that there is one."""
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if getattr(config, "num_hidden_layers", None) == layers:
            config.num_hidden_layers = 1
