"""Long recordings as overlapping windows, each of which an audio encoder reads.

Axes: b batch, w windows, s samples, n features of a window, e width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from magma_media.decode import looks_like_audio
from magma_media.waveform import MIN_LEVEL, AudioConfig, example_recordings, load_mono
from pydantic import Field, model_validator
from torch import Tensor

from magma import CheckInputs, Encoder, Features, InputError, PartError, PartOf, Prepared

Windows = tuple[tuple[Prepared, ...], Tensor]
"""The windows of a recording, and [w, 2]: the first of the features that each one contributes, and the one after the
last."""
WindowBatch = tuple[Prepared, Tensor]
"""The windows of all recordings [b, w, ...], and [b, w, 2]; those that a recording lacks contribute no features."""


class AudioWindows(Encoder):
    """An audio encoder for recordings that are longer than it accepts: its features of successive windows are joined.

    Windows may overlap. Then each one contributes the features up to the middle of the overlap, so that all have
    context on both sides, and the number of features per second does not change.
    """

    name = "audio_windows"
    modality = "audio"

    class Config(AudioConfig):
        """The encoder, and the windows."""

        of: PartOf[Encoder]
        """The encoder of a window: any one that reads audio."""
        window: float = Field(30.0, gt=0)
        """Length of a window, in seconds. The encoder has to accept it."""
        overlap: float = Field(0.0, ge=0)
        """Length of the overlap of two windows, in seconds; at most half a window."""
        max_windows: int = Field(4, ge=1)
        """Maximum number of windows. A longer recording is refused or cropped."""
        rate: int = Field(16_000, ge=4_000, le=48_000)
        """Sample rate in Hz at which recordings are divided; the encoder resamples the windows to its own."""

        @model_validator(mode="after")
        def _overlap_is_short(self) -> Self:
            if self.overlap > self.window / 2:
                raise ValueError(f"an `overlap` of at most half a window, {self.window / 2:g} s")
            return self

    config: Config
    of: Encoder
    seconds: float
    """Maximum duration of a recording."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.of = config.of.build()
        if self.of.modality != "audio":
            raise PartError(f'of: "{self.of.name}" reads {self.of.modality}; allowed: an encoder of audio')
        self.rate = config.rate
        self.samples, self.overlap = round(config.window * self.rate), round(config.overlap * self.rate)
        self.max_samples = self.samples + (config.max_windows - 1) * (self.samples - self.overlap)
        self.seconds = self.max_samples / self.rate
        self._largest = self._full_window()
        self.dim, self.length = self.of.dim, self.num_features(self.max_size_item())

    def _full_window(self) -> Prepared:
        """A window of maximum length as the encoder prepares it. Raises `PartError` if it is too long."""
        with torch.device("cpu"):
            tone = 0.5 * torch.arange(self.samples).mul(0.1).sin()
            try:
                return self.of.prepare((tone, self.rate))
            except InputError as error:
                raise PartError(
                    f"window: the encoder {self.of.name} refuses {self.config.window:g} s: {error}"
                ) from error

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small encoder whose windows are shorter than the recordings."""
        member = {"use": "spectrogram", "rate": 8000, "seconds": 0.2, "bands": 16, "width": 16, "heads": 2}
        config = {"of": member, "window": 0.2, "overlap": 0.04, "max_windows": 4, "rate": 8000}
        return CheckInputs(config, *example_recordings(folder, 0.5))

    @classmethod
    def augments(cls, config: Config) -> bool:
        """Whether recordings are cropped at random in training, or the encoder changes them."""
        return config.crop == "random" or config.of.part.augments(config.of.config)

    def accepts(self, raw: Any) -> bool:
        """True for the path or the bytes of an audio file, and for a pair (waveform, sample rate)."""
        return looks_like_audio(raw)

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Windows:
        """The windows of a recording, each prepared by the encoder. `rng` is for `crop` and the encoder."""
        waveform = load_mono(raw, self.rate, self.seconds, self.config.crop, rng)
        waveform = waveform[: self.max_samples]  # resampling may add a sample
        step = self.samples - self.overlap
        count = 1 + max(0, math.ceil((len(waveform) - self.samples) / step))
        parts = [_audible(waveform[i * step : i * step + self.samples]) for i in range(count)]
        items = [self.of.prepare((part, self.rate), rng) for part in parts]
        sizes = [self.of.num_features(item) for item in items]
        return self._pack(items, [len(part) for part in parts], sizes)

    def _pack(self, items: Sequence[Prepared], samples: Sequence[int], sizes: Sequence[int]) -> Windows:
        bounds = []
        for i, (length, size) in enumerate(zip(samples, sizes, strict=True)):
            shared = size * self.overlap / (2 * length)  # features in half an overlap
            end = size - round(shared) if i + 1 < len(samples) else size
            bounds.append((round(shared) if i else 0, end))
        return tuple(items), torch.tensor(bounds, device="cpu")

    def dummy_item(self) -> Windows:
        """One window of the encoder's minimum length."""
        item = self.of.dummy_item()
        return self._pack([item], [self.samples], [self.of.num_features(item)])

    def max_size_item(self) -> Windows:
        """The maximum number of full windows."""
        count, size = self.config.max_windows, self.of.num_features(self._largest)
        return self._pack([self._largest] * count, [self.samples] * count, [size] * count)

    def num_features(self, prepared: Windows) -> int:
        """The sum of what the windows contribute."""
        bounds = prepared[1]
        return int((bounds[:, 1] - bounds[:, 0]).sum())

    def stack(self, items: Sequence[Windows]) -> WindowBatch:
        """Recordings with different numbers of windows to one batch."""
        count = max(len(windows) for windows, _ in items)
        filler = self.of.dummy_item()
        filled = [one for windows, _ in items for one in [*windows, *[filler] * (count - len(windows))]]
        bounds = [torch.cat([own, own.new_zeros(count - len(own), 2)]) for _, own in items]
        batch = _map_tensors(lambda x: x.view(len(items), count, *x.shape[1:]), self.of.stack(filled))
        return batch, torch.stack(bounds)

    def forward(self, x: WindowBatch) -> Features:
        """Windows [b, w, ...] to features [b, n, e] with their lengths. The encoder runs once, on all windows."""
        windows, bounds = x
        found = self.of(_map_tensors(lambda one: one.flatten(0, 1), windows)).values
        b, w, _ = bounds.shape
        place = torch.arange(found.shape[1], device=found.device)
        kept = (place >= bounds[..., :1]) & (place < bounds[..., 1:])
        order = (~kept).long().flatten(1).argsort(dim=1, stable=True)[:, : self.length]
        values = found.reshape(b, w * found.shape[1], self.dim)
        values = values.gather(1, order[..., None].expand(-1, -1, self.dim))
        return Features(values, (bounds[..., 1] - bounds[..., 0]).sum(-1))


def _map_tensors(change: Callable[[Tensor], Tensor], value: Prepared) -> Prepared:
    """The same tensor or tuples with every tensor changed."""
    return tuple(_map_tensors(change, one) for one in value) if isinstance(value, tuple) else change(value)


def _audible(window: Tensor) -> Tensor:
    """A window [s] that no encoder refuses as silent: in a long recording, a pause is no mistake."""
    if float(window.abs().max()) > MIN_LEVEL:
        return window
    window = window.clone()
    window[0] = 2 * MIN_LEVEL
    return window
