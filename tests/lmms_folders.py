"""A folder of a model with an image and an audio input, for lmms-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import magma

IMAGE = {
    "encoder": {"use": "clip", "layers": [1, 1, 1, 1], "width": 16, "image_size": 64},
    "prefix": {"use": "linear", "layernorm": True},
}

SOUND = {
    "encoder": {"use": "spectrogram", "rate": 8000, "seconds": 2.0, "bands": 16, "width": 16, "heads": 2},
    "prefix": {"use": "linear", "layernorm": True},
}


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write(folder: Path, **inputs: Any) -> Path:
    """A model with adapters so strong that every prompt has its own answer."""
    model = magma.assemble(
        {
            "name": "seeing",
            "seed": 1,
            "lm": {"use": "gptj", "weights": "bundled:tiny"},
            "inputs": inputs,
            "adapters": {"mlp": {"use": "sequential", "downsample": 8}},
        }
    )
    with torch.no_grad():
        for adapter in model.lm.all_adapters():
            for parameter in adapter.parameters():
                parameter.mul_(200)
    return magma.save(model, folder)
