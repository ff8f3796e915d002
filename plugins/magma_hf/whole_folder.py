"""Writes what reads a medium in a whole model: the folder that encoders and prefixes are built from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from magma import PartError, error_summary

from . import whole_model
from .whole_inputs import blank, default_processor, prepare_media
from .whole_model import TENSORS, UNUSED, Modality

EXAMPLES: dict[Modality, dict[str, Any]] = {
    "image": {
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, "projection_dim": 16},
    },
    "audio": {
        "model_type": "voxtral",
        "audio_config": {"model_type": "voxtral_encoder", "num_mel_bins": 16, "max_source_positions": 100},
    },
}
"""Small models, without `SIZES`."""
SIZES = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"model_type": "llama", **SIZES, "num_key_value_heads": 2, "vocab_size": 32}
EXAMPLE_WIDTH = 16
"""Width of the language model of the examples."""


def write_media(folder: Path, whole: Any, modality: Modality, processor: Any) -> None:
    """Write configuration, processor and tensors of what reads a medium.

    Raises:
        PartError: The feature function cannot be called with what the processor makes of one medium.
    """
    folder.mkdir()
    module = whole_model.feature_module(whole, modality)
    language_model = whole_model.language_model_names(whole, module)
    state = {name: tensor for name, tensor in module.state_dict().items() if name not in language_model}
    unused = [
        name for name in _unused_parameters(module, whole.config.model_type, modality, processor) if name in state
    ]
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, folder / TENSORS, {UNUSED: json.dumps([name for name in unused if name in state])})
    whole.config.save_pretrained(folder)
    processor.save_pretrained(folder)


def _unused_parameters(module: Any, model_type: str, modality: Modality, processor: Any) -> list[str]:
    names, required = whole_model.arguments(module, modality)
    function = whole_model.function_name(modality)
    try:
        given = prepare_media(modality, processor, [blank(modality, processor)], names)
        if not (missing := [name for name in required if name not in given]):
            return whole_model.unused_parameters(module, modality, given)
    except Exception as error:  # the library raises errors of many types
        raise PartError(f"{model_type}: {function} does not run on one {modality}: {error_summary(error)}") from error
    raise PartError(
        f"{model_type}: its {modality} processor does not give {', '.join(missing)}, which {function} needs"
    )


def write_example(folder: Path, modality: Modality) -> None:
    """Write a small model with random weights, for the conformance checks."""
    from transformers import AutoConfig

    fields = dict(EXAMPLES[modality])
    inner = "vision_config" if modality == "image" else "audio_config"
    fields |= {inner: {**SIZES, **fields[inner]}, "text_config": TEXT}
    architecture = AutoConfig.for_model(**fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = whole_model.whole_class(architecture)._from_config(architecture, dtype=torch.float32)
    write_media(folder, whole, modality, default_processor(modality, architecture))
