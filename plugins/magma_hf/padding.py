"""Recordings of unequal lengths in a batch: normalisation over time must not see padding."""

from __future__ import annotations

from typing import Any

from magma_media.masked_convolutions import MaskedConvolutions
from torch import nn


def mask_convolutions(model: Any) -> Any:
    """Replace convolutions that normalise a waveform over time, with one group for each channel. Returns the model."""
    extractor = getattr(model, "feature_extractor", None)
    layers = getattr(extractor, "conv_layers", None)
    if isinstance(layers, nn.ModuleList) and isinstance(getattr(layers[0], "layer_norm", None), nn.GroupNorm):
        model.feature_extractor = MaskedConvolutions(extractor)
    return model


def keeps_padding(model: Any) -> bool:
    """Whether the model finds `PADDING` itself."""
    return isinstance(getattr(model, "feature_extractor", None), MaskedConvolutions)
