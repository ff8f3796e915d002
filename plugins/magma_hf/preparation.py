"""Turns one raw input into the arguments of a tower, with the processor of transformers or with the config's values.

Axes: h, w height and width, c channels, t frames, s samples, f frames of a spectrogram, m mel bands.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from magma_media.decode import looks_like_audio
from magma_media.image_file import open_image
from magma_media.image_values import looks_like_image
from magma_media.preprocessing import resize_and_crop, to_displayed_rgb
from magma_media.waveform import load_mono
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from magma import InputError, error_summary

from .processors import WHOLE_IMAGE, as_item, matched
from .samples import Sample, parameters
from .towers import Tower

Values = Mapping[str, Tensor]
MEAN, STD = 0.5, 0.5
"""Of pixels from 0 to 1, for a tower without a processor."""


class Preparation(ABC):
    """How raw inputs of one modality become items like a sample."""

    sample: Sample

    @abstractmethod
    def accepts(self, raw: Any) -> bool:
        """Whether `raw` looks like an input. No file is opened."""

    @abstractmethod
    def prepare(self, raw: Any, rng: random.Random | None) -> Values:
        """One input to the arguments of the tower. Raises `InputError`."""


class Images(Preparation):
    """Images, with a processor or without."""

    def __init__(self, tower: Tower, model: Any, processor: Any, side: tuple[int, int], sample: Sample | None) -> None:
        """`sample` is None if the processor decides the form of an item. Raises what the processor raises."""
        self.tower, self.processor, self.side = tower, processor, side
        self.names = list(parameters(model))[1:]
        self.square = False
        self.from_config = sample
        if sample is not None:
            self.sample = sample
            return
        self.sample = self._process(Image.new("RGB", (side[1], side[0])))
        if self.sample.packed is None and len(self.sample.values) == 1:
            wide = self._process(Image.new("RGB", (2 * side[1], side[0])))
            self.square = wide.main.shape != self.sample.main.shape

    def _process(self, image: Image.Image) -> Sample:
        options = {name: value for name, value in WHOLE_IMAGE.items() if hasattr(self.processor, name)}
        found = self.processor(images=[image], return_tensors="pt", **options)
        given = matched(found, self.tower, self.names)
        main, *_ = given
        if given[main].ndim == 5 and given[main].shape[:1] == (1,) and "aspect_ratio_ids" not in given:
            given = {main: given[main][:, 0]}  # the whole image is the first tile
        return as_item(given, "image")

    def accepts(self, raw: Any) -> bool:
        return looks_like_image(raw)

    def prepare(self, raw: Any, rng: random.Random | None) -> Values:
        image = to_displayed_rgb(open_image(raw, self.side[0]), (255, 255, 255))
        if self.from_config is not None:
            return self._by_config(image, self.from_config)
        if self.square:
            image = _fit(image, self.side)
        try:
            found = self._process(image)
        except Exception as error:  # libraries raise errors of many types
            raise InputError(
                f"an image of {image.size[0]} x {image.size[1]} pixels cannot be prepared: {error}"
            ) from error
        return found.values

    def _by_config(self, image: Image.Image, sample: Sample) -> Values:
        count, height, width = self.sample.main.shape
        fitted = np.asarray(_fit(image.convert("L") if count == 1 else image, (height, width)))
        pixels = torch.from_numpy(fitted.copy()).view(height, width, count).permute(2, 0, 1).float() / 255
        mean, std = (self._statistic(name, count) for name in ("image_mean", "image_std"))
        return {**sample.values, self.tower.argument: (pixels - mean) / std}

    def _statistic(self, name: str, count: int) -> Tensor:
        value = getattr(self.processor, name, None)
        default = torch.full((count, 1, 1), MEAN if name == "image_mean" else STD)
        if not isinstance(value, (list, tuple)) or len(value) != count:
            return default
        return torch.tensor(value, dtype=torch.float32).view(count, 1, 1)


class Missing(Preparation):
    """Images for a tower that needs more than pixels, without a processor that gives it."""

    def __init__(self, sample: Sample, model_type: str) -> None:
        self.sample, self.model_type = sample, model_type

    def accepts(self, raw: Any) -> bool:
        return looks_like_image(raw)

    def prepare(self, raw: Any, rng: random.Random | None) -> Values:
        raise InputError(
            f"how an image is prepared for a tower of type {self.model_type} is known only by its processor; allowed: "
            "weights with preprocessor_config.json beside them"
        )


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image resized and cropped to height and width."""
    height, width = size
    if height == width:
        return resize_and_crop(image, height)
    scale = max(height / image.height, width / image.width)
    resized = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))))
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


class Recordings(Preparation):
    """Recordings, as waveforms or as spectrograms of a feature extractor."""

    def __init__(self, extractor: Any, sample: Sample, rate: int, seconds: float, crop: str) -> None:
        self.extractor, self.sample, self.rate, self.seconds, self.crop = extractor, sample, rate, seconds, crop

    def accepts(self, raw: Any) -> bool:
        return looks_like_audio(raw)

    def prepare(self, raw: Any, rng: random.Random | None) -> Values:
        waveform = load_mono(raw, self.rate, self.seconds, self.crop, rng)
        main = self.sample.main
        wanted, axis = main.shape, self.sample.axis
        try:
            x = self._features(waveform) if self.extractor is not None else waveform
        except Exception as error:  # libraries raise errors of many types
            raise InputError(
                f"a recording of {len(waveform)} samples cannot be prepared: {error_summary(error)}"
            ) from error
        x = _oriented(x, wanted, axis)
        values = dict(self.sample.values)
        name = next(iter(values))
        return {**{key: _resized(value, x, main, axis) for key, value in values.items()}, name: x}

    def _features(self, waveform: Tensor) -> Tensor:
        found = self.extractor(waveform.numpy(), sampling_rate=self.rate, return_tensors="pt")
        key = next(name for name in found if found[name].is_floating_point())
        x: Tensor = found[key][0].float()
        return x


def _oriented(x: Tensor, wanted: Sequence[int], axis: int | None) -> Tensor:
    """A waveform or a spectrogram in the form of a sample; a sample of one size is filled up or cut."""
    while x.ndim > len(wanted) and 1 in x.shape:
        x = x.squeeze(0)
    while x.ndim < len(wanted):
        x = x[None]
    if x.ndim >= 2:
        fixed = [i for i in range(x.ndim) if i != axis and wanted[i] not in (1,)]
        if (axis is not None and fixed and x.shape[fixed[-1]] != wanted[fixed[-1]]) or (
            axis is None and x.shape[-1] != wanted[-1] and x.shape[-2] != wanted[-2]
        ):
            x = x.transpose(-1, -2)
    for i, size in enumerate(wanted):
        if i != axis and x.shape[i] != size:
            x = x.narrow(i, 0, min(size, x.shape[i]))
            x = F.pad(x, [0, 0] * (x.ndim - 1 - i) + [0, size - x.shape[i]])
    return x.contiguous()


def _resized(value: Tensor, x: Tensor, main: Tensor, axis: int | None) -> Tensor:
    """A mask of the sample, as long as an item."""
    if axis is None or value.ndim != 1 or len(value) != main.shape[axis]:
        return value
    return value[:1].expand(x.shape[axis]).clone()


class Series(Preparation):
    """Time series: arrays [t] or [t, c], or files of them (.npy, .csv)."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def accepts(self, raw: Any) -> bool:
        if isinstance(raw, Path):
            return raw.suffix.lower() in (".npy", ".csv")
        return isinstance(raw, (np.ndarray, Tensor)) and raw.ndim in (1, 2)

    def prepare(self, raw: Any, rng: random.Random | None) -> Values:
        try:
            if isinstance(raw, Path):
                raw = (
                    np.load(raw, allow_pickle=False) if raw.suffix.lower() == ".npy" else np.loadtxt(raw, delimiter=",")
                )
            x = torch.as_tensor(np.asarray(raw), dtype=torch.float32)
        except (OSError, TypeError, ValueError) as error:
            raise InputError(f"given {raw!r:.60}, which cannot be read as a series: {error_summary(error)}") from error
        wanted = self.sample.main.shape
        if x.ndim == 1 and len(wanted) == 2:
            x = x[:, None]
        allowed = f"[t{'' if len(wanted) == 1 else f', {wanted[1]}'}]"
        if x.ndim != len(wanted) or x.shape[1:] != wanted[1:] or not len(x) or not bool(x.isfinite().all()):
            raise InputError(f"given a series {list(x.shape)}; allowed: finite numbers {allowed}, t at least 1")
        length = wanted[0]
        missing = max(0, length - len(x))
        name = next(iter(self.sample.values))
        values = {**self.sample.values, name: torch.cat([x.new_zeros(missing, *x.shape[1:]), x[-length:]])}
        for key, value in self.sample.values.items():
            if "observed" in key or "padding" in key:
                value = value.clone()
                value[:missing] = "padding" in key
                values[key] = value
        return values


class Videos(Preparation):
    """Videos as frames: images, an array [t, h, w, 3], or an animated image."""

    def __init__(self, processor: Any, sample: Sample) -> None:
        self.processor, self.sample = processor, sample
        self.by_frame = sample.main.ndim == 4 and sample.main.shape[1] in (1, 3)

    def accepts(self, raw: Any) -> bool:
        if isinstance(raw, np.ndarray):
            return raw.ndim == 4 and raw.shape[-1] == 3 and raw.dtype == np.uint8
        if isinstance(raw, Path):
            return raw.suffix.lower() in (".gif", ".webp", ".apng")
        return isinstance(raw, (list, tuple)) and bool(raw) and all(isinstance(one, Image.Image) for one in raw)

    def prepare(self, raw: Any, rng: random.Random | None) -> Values:
        frames = list(_frames(raw)) if self.accepts(raw) else []
        if not frames:
            raise InputError(
                f"given {raw!r:.60}; allowed: frames (a list of images, or uint8 [t, h, w, 3]), or an animated image"
            )
        count, height, width = (self.sample.main.shape[i] for i in ((0, 2, 3) if self.by_frame else (1, 2, 3)))
        chosen = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, count)]
        pixels = np.stack([np.asarray(_fit(to_displayed_rgb(one, (255, 255, 255)), (height, width))) for one in chosen])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.tensor(getattr(self.processor, name, None) or [default] * 3, dtype=torch.float32).view(3, 1, 1)
            for name, default in (("image_mean", MEAN), ("image_std", STD))
        )
        x = (x - mean) / std
        name = next(iter(self.sample.values))
        return {**self.sample.values, name: x if self.by_frame else x.transpose(0, 1).contiguous()}


def _frames(raw: Any) -> Iterator[Image.Image]:
    if isinstance(raw, np.ndarray):
        yield from (Image.fromarray(frame) for frame in raw)
    elif isinstance(raw, Path):
        try:
            with Image.open(raw) as image:
                for i in range(getattr(image, "n_frames", 1)):
                    image.seek(i)
                    yield image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise many kinds
            raise InputError(f"{raw} cannot be read as an animated image: {error}") from error
    else:
        yield from raw


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings of transformers; errors are reported as exceptions."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
