"""Inputs of a tower as its configuration describes them, for towers whose library has no preparation.

Axes: h, w height and width, c channels, t frames, p patches, s samples, f frames of a spectrogram, m mel bands.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from . import sizes
from .towers import GRIDS, Modality, Tower, meanings

MASKS = ("mask", "attention_mask", "input_features_mask", "pixel_mask", "padding_mask", "pixel_attention_mask")
MASKS += ("patch_attention_mask", "observed_mask", "past_observed_mask")
INVERTED = ("audio_mel_mask", "past_values_padding")
"""Masks that are True, or 1, at padding."""

SAMPLE_COUNTS = ("chunk_sample_lengths",)
"""Arguments with the number of samples of a recording, for towers that read spectrograms."""
SIZES = ("image_sizes",)
"""Arguments with height and width of images that are padded to one size."""
FURTHER = {"freq": torch.zeros(1, dtype=torch.long)}
"""Other arguments that some towers need, and a value for any input: the frequency class of TimesFM."""


@dataclass(frozen=True)
class Sample:
    """One item: the arguments of the tower without an axis for rows."""

    modality: Modality
    values: Mapping[str, Tensor]
    """By the names of arguments, the main input first."""
    packed: str | None = None
    """The argument with the grid of patches, if the patches [p, d] of all rows form one sequence."""
    axis: int | None = None
    """The axis of the main input whose length may vary. None: it has one size."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments, which are the same for all items."""
    mask: str | None = None
    """The argument that says which positions along `axis` are real, not padding."""
    mask_dtype: torch.dtype = torch.long
    pack_axis: int = 0
    """The axis of the main input along which packed patches follow each other."""
    row_axis: bool = False
    """Whether packed patches get an axis for one row: [1, p, ...]."""

    @property
    def main(self) -> Tensor:
        return next(iter(self.values.values()))


def samples(tower: Tower, model: Any, modality: Modality | None, side: int | None, seconds: float) -> Iterator[Sample]:
    """Possible zero inputs of a tower, in the order in which they are tried.

    Args:
        tower: The tower.
        model: It, perhaps on meta.
        modality: What it has to read. None: anything.
        side: Side of an image in pixels. None: that of the configuration.
        seconds: Duration of a recording without a fixed size.
    """
    kinds = {"image": _images, "video": _videos, "audio": _recordings, "timeseries": _series}
    for kind in meanings(tower.argument, tower.other):
        if modality is None or kind == modality:
            found = kinds[kind](tower, model, side) if kind != "audio" else _recordings(tower, model, seconds)
            for sample in found:
                yield _with_required(model, sample)


def parameters(model: Any) -> dict[str, inspect.Parameter]:
    """The arguments of a model's `forward`."""
    return dict(inspect.signature(type(model).forward).parameters)


def _images(tower: Tower, model: Any, side: int | None) -> Iterator[Sample]:
    config, names = tower.architecture, parameters(model)
    height, width = (side, side) if side else sizes.image_size(config) or (sizes.IMAGE_SIDE, sizes.IMAGE_SIDE)
    count = sizes.channels(config, model)
    if grid := next((name for name in GRIDS if name in names), None):
        yield from _patches(tower, model, grid, (height, width), count)
    if "spatial_shapes" in names:
        ph, pw = sizes.patch_size(config) or (16, 16)
        shape = torch.tensor([height // ph, width // pw])
        if (limit := getattr(config, "num_patches", None)) and side is None:
            shape = torch.tensor([int(limit**0.5)] * 2)
        p = int(shape.prod())
        mask = torch.ones(p, dtype=torch.long)
        values = {tower.argument: torch.zeros(p, count * ph * pw), "pixel_attention_mask": mask}
        yield Sample("image", {**values, "spatial_shapes": shape}, axis=0)
    image = torch.zeros(count, height, width)
    if "image_sizes" in names:
        yield Sample("image", {tower.argument: image, "image_sizes": torch.tensor([height, width])})
    if "target_sizes" in names:
        ph, pw = sizes.patch_size(config) or (14, 14)
        shape = torch.tensor([height // ph, width // pw])
        strip = torch.zeros(count, ph, pw * int(shape.prod()))
        values = {tower.argument: strip, "target_sizes": shape}
        yield Sample("image", values, "target_sizes", pack_axis=2, row_axis=True)
    yield Sample("image", {tower.argument: image})
    if patch := sizes.patch_size(config):
        p = (height // patch[0]) * (width // patch[1])
        yield Sample("image", {tower.argument: torch.zeros(p, count * patch[0] * patch[1])})


def _patches(tower: Tower, model: Any, grid: str, size: tuple[int, int], count: int) -> Iterator[Sample]:
    config = tower.architecture
    ph, pw = sizes.patch_size(config) or (14, 14)
    merge = getattr(config, "spatial_merge_size", None) or getattr(config, "merge_size", None) or 2
    merge = int(merge[0] if isinstance(merge, (list, tuple)) else merge)
    rows, columns = (max(1, side // (patch * merge)) * merge for side, patch in zip(size, (ph, pw), strict=True))
    frames = getattr(config, "temporal_patch_size", None) or 1
    for depth in dict.fromkeys((frames, 1)):
        for shape in ((rows * columns, count * depth * ph * pw), (rows * columns, count, ph, pw)):
            values = torch.tensor([rows, columns] if grid.endswith(("_hw", "_hws")) else [1, rows, columns])
            options = {"merge_sizes": torch.tensor([merge])} if "merge_sizes" in parameters(model) else {}
            sample = Sample("image", {tower.argument: torch.zeros(shape), grid: values}, grid, 0, options)
            yield sample
            yield replace(sample, row_axis=True)


def _videos(tower: Tower, model: Any, side: int | None) -> Iterator[Sample]:
    config, names = tower.architecture, parameters(model)
    height, width = (side, side) if side else sizes.image_size(config) or (sizes.IMAGE_SIDE, sizes.IMAGE_SIDE)
    count, frames = sizes.channels(config, model), sizes.frames(config)
    if any(name in GRIDS for name in names):
        return
    yield Sample("video", {tower.argument: torch.zeros(frames, count, height, width)}, axis=0)
    yield Sample("video", {tower.argument: torch.zeros(count, frames, height, width)})


def _recordings(tower: Tower, model: Any, seconds: float) -> Iterator[Sample]:
    config = tower.architecture
    length = max(1, int(seconds * sizes.rate(config)))
    whole = -(-length // sizes.stride(config)) * sizes.stride(config)
    bands = list(sizes.bands(config, model))
    named = tower.outer or tower.argument
    if named in ("input_values", "waveform") or (named == "hidden_states" and not bands):
        yield from _varying(model, tower, (length,), 0)
        yield from _varying(model, tower, (1, length), 1)
        if whole != length:
            yield from _fixed(model, tower, (whole,))
            yield from _fixed(model, tower, (1, whole))
    for frames, varies in _spectrogram_lengths(config, seconds):
        for m in bands:
            for shape, axis in (((m, frames), 1), ((frames, m), 0), ((1, frames, m), 1)):
                if varies:
                    yield from _varying(model, tower, shape, axis)
                else:
                    yield from _fixed(model, tower, shape)


def _varying(model: Any, tower: Tower, shape: tuple[int, ...], axis: int) -> Iterator[Sample]:
    """A recording of any duration, with a mask if the tower has one; otherwise it is filled up."""
    values = {tower.argument: torch.zeros(shape)}
    for name in parameters(model):
        if name in (*MASKS, *INVERTED):
            for dtype in (torch.long, torch.bool):
                yield Sample("audio", values, axis=axis, mask=name, mask_dtype=dtype)
    yield Sample("audio", values)


def _fixed(model: Any, tower: Tower, shape: tuple[int, ...]) -> Iterator[Sample]:
    """A spectrogram of one size; a tower may need a mask nevertheless."""
    values = {tower.argument: torch.zeros(shape)}
    yield Sample("audio", values)
    for name in parameters(model):
        if name in MASKS:
            yield Sample("audio", {**values, name: torch.ones(max(shape), dtype=torch.long)})


def _spectrogram_lengths(config: Any, seconds: float) -> Iterator[tuple[int, bool]]:
    """Possible numbers of frames, and whether they vary."""
    positions = getattr(config, "max_source_positions", None)
    if isinstance(positions, int):
        yield 2 * positions, False
        yield positions, False
    for name in ("max_length", "num_frames"):
        if isinstance(value := getattr(config, name, None), int) and value > 16:
            yield value, False
    yield max(32, int(seconds * 100) // 8 * 8), True
    yield -(-int(seconds * 100) // 200) * 200, False


def _series(tower: Tower, model: Any, _: int | None) -> Iterator[Sample]:
    length, count = sizes.series(tower.architecture)
    if "past_time_features" in parameters(model):
        features = getattr(tower.architecture, "num_time_features", 0)
        values = {tower.argument: torch.zeros(length), "past_time_features": torch.zeros(length, features)}
        yield Sample("timeseries", {**values, "past_observed_mask": torch.ones(length)})
    if count is not None:
        yield Sample("timeseries", {tower.argument: torch.zeros(length, count)})
    yield Sample("timeseries", {tower.argument: torch.zeros(length)})
    yield Sample("timeseries", {tower.argument: torch.zeros(length, 1)})


def _with_required(model: Any, sample: Sample) -> Sample:
    """The sample with masks that the tower cannot do without: nothing is padding."""
    values = dict(sample.values)
    for name, parameter in list(parameters(model).items())[2:]:
        given = (*values, *sample.options, sample.mask)
        if name in given or parameter.default is not inspect.Parameter.empty:
            continue
        length = max(sample.main.shape) if sample.modality == "audio" else sample.main.shape[0]
        if name in MASKS:
            values[name] = torch.ones(length, dtype=torch.bool)
        elif name in SAMPLE_COUNTS:
            hop = getattr(model.config, "hop_length", 160)
            values[name] = torch.tensor(max(sample.main.shape) * hop)
        elif name in FURTHER:
            values[name] = FURTHER[name].clone()
        elif name in INVERTED:
            values[name] = torch.zeros(length, dtype=torch.bool)
    return replace(sample, values=values)
