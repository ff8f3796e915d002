"""Writes what reads a medium in a whole model: the folder that encoders and prefixes are built from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

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
    """Write configuration, processor and tensors of what reads a medium."""
    folder.mkdir()
    module = whole_model.feature_module(whole, modality)
    language_model = whole_model.language_model_names(whole, module)
    state = {name: tensor for name, tensor in module.state_dict().items() if name not in language_model}
    given = prepare_media(modality, processor, [blank(modality, processor)], whole_model.arguments(module, modality)[0])
    unused = [name for name in whole_model.unused_parameters(module, modality, given) if name in state]
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, folder / TENSORS, {UNUSED: json.dumps(unused)})
    whole.config.save_pretrained(folder)
    processor.save_pretrained(folder)


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
