"""Sizes of the input that a configuration gives, under the names that the library uses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

IMAGE_SIDE = 224
"""Side of an image for a tower that has no size, in pixels."""
BANDS = (80, 128, 64)
"""Usual numbers of mel bands."""
RATE = 16_000
"""Sample rate of a tower that has none, in Hz."""
FRAMES = 8
"""Frames of a video for a tower that has no number of them."""


def pair(value: Any) -> tuple[int, int] | None:
    """Height and width from a number, a list or a dictionary; None if it has another form."""
    if isinstance(value, dict):
        height, width = value.get("height"), value.get("width")
        side = value.get("shortest_edge")
        return pair([height, width]) if height and width else pair(side)
    if isinstance(value, (list, tuple)) and len(value) >= 2 and all(isinstance(one, int) for one in value):
        return int(value[-2]), int(value[-1])
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def image_size(architecture: Any) -> tuple[int, int] | None:
    """Height and width of an image in pixels; None if the configuration has no size."""
    for name in ("image_size", "img_size", "input_size", "pretrain_image_size", "size", "tile_size"):
        if found := pair(getattr(architecture, name, None)):
            return found
    inner = (getattr(architecture, name, None) for name in getattr(architecture, "sub_configs", ()))
    return next((found for one in inner if one is not None and (found := image_size(one))), None)


def patch_size(architecture: Any) -> tuple[int, int] | None:
    """Height and width of a patch in pixels; None if there are no patches."""
    for name in ("patch_size", "patch_sizes", "tubelet_size"):
        value = getattr(architecture, name, None)
        if isinstance(value, (list, tuple)) and len(value) > 3:
            return None  # of stages
        if found := pair(value):
            return found
    return None


def channels(architecture: Any, model: nn.Module) -> int:
    """Channels of an image."""
    for name in ("num_channels", "in_channels", "in_chans", "n_channels", "num_input_channels"):
        value = getattr(architecture, name, None)
        if isinstance(value, int):
            return value
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def frames(architecture: Any) -> int:
    """Frames of a video."""
    for name in ("num_frames", "frames_per_clip", "num_image_with_embedding"):
        value = getattr(architecture, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return FRAMES


def bands(architecture: Any, model: nn.Module) -> Iterator[int]:
    """Possible numbers of mel bands, or of other features of a frame; the most likely one first."""
    names = (
        "num_mel_bins",
        "n_mels",
        "mel_bins",
        "input_feat_per_channel",
        "feature_projection_input_dim",
        "input_dim",
    )
    names += ("feature_size", "input_size", "model_in_dim", "input_feat_size", "num_mel_channels")
    found = [getattr(architecture, name, None) for name in names]
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            found.append(module.in_features if isinstance(module, nn.Linear) else module.in_channels)
            break
    yield from dict.fromkeys(one for one in (*found, *BANDS) if isinstance(one, int) and one > 0)


def stride(architecture: Any) -> int:
    """Samples of a waveform for one feature."""
    for name in ("patch_sizes", "strides", "downsampling_ratios", "upsampling_ratios"):
        value = getattr(architecture, name, None)
        if isinstance(value, (list, tuple)) and value and all(isinstance(one, int) for one in value):
            return math.prod(value)
    return 1


def rate(architecture: Any) -> int:
    """Sample rate of recordings in Hz."""
    for name in ("sampling_rate", "sample_rate"):
        if isinstance(value := getattr(architecture, name, None), int):
            return value
    return RATE


def widths(architecture: Any) -> set[int]:
    """Every number in the configuration that may be the width of features."""
    found: set[int] = set()
    for name in ("hidden_size", "embed_dim", "d_model", "hidden_sizes", "embed_dims", "encoder_hidden_size", "width"):
        value = getattr(architecture, name, None)
        if isinstance(value, int):
            found.add(value)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[-1], int):
            found.add(value[-1])
    return found


def series(architecture: Any) -> tuple[int, int | None]:
    """Length of a time series, and its number of channels; None if it has only one axis."""
    length = next(
        (
            value
            for name in ("context_length", "sequence_length", "prediction_length")
            if isinstance(value := getattr(architecture, name, None), int)
        ),
        64,
    )
    lags = getattr(architecture, "lags_sequence", None)
    if lags:
        length += max(lags)
    count = getattr(architecture, "num_input_channels", None)
    if count is None and isinstance(size := getattr(architecture, "input_size", None), int) and size > 1:
        count = size
    return length, count
