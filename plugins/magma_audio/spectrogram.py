"""A small convolutional transformer over log-mel spectrograms, from scratch.

Axes: b batch, f frames, m mel bands, n features, e width, h heads.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from magma import CheckInputs, Features, InputError

from .waveform import PADDING, AudioConfig, AudioEncoder, example_recordings

FLOOR = 1e-6
"""Added to a mel band's energy before its logarithm."""


class Spectrogram(AudioEncoder):
    """Strided convolutions over log-mel frames, then transformer layers: any length up to `seconds`.

    Every recording is brought to mean 0 and variance 1 over all its bands and frames. Padding is masked: features
    do not depend on what else is in a batch.
    """

    name = "spectrogram"

    class Config(AudioConfig):
        """Frames are `hop` apart; each convolution halves their number."""

        rate: int = Field(16_000, ge=4_000, le=48_000)
        """Samples a second."""
        seconds: float = Field(10.0, gt=0)
        """The longest recording."""
        window: float = Field(0.025, gt=0)
        """Seconds of a frame."""
        hop: float = Field(0.010, gt=0)
        """Seconds from frame to frame."""
        bands: int = Field(64, ge=8)
        width: int = Field(128, ge=8)
        layers: int = Field(2, ge=0)
        heads: int = Field(4, ge=1)
        convolutions: int = Field(3, ge=1, le=6)
        dropout: float = Field(0.0, ge=0, lt=1)
        spec_augment: bool = False
        """In training, two stretches of time and two of the bands are blotted out (Park et al. 2019)."""

        @model_validator(mode="after")
        def _sizes_fit(self) -> Any:
            if self.width % (2 * self.heads):
                raise ValueError(f"a width ({self.width}) that twice the heads ({self.heads}) divide")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rate, self.seconds = config.rate, config.seconds
        self.dim = config.width
        self.frames = 1 + self.max_samples(self.rate) // self._hop
        self.length = self._downsampled_length(self.frames)
        channels = [config.bands] + [config.width] * config.convolutions
        self.stem = nn.ModuleList(
            nn.Conv1d(a, b, kernel_size=3, stride=2, padding=1) for a, b in itertools.pairwise(channels)
        )
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)

    @property
    def _hop(self) -> int:
        return max(1, round(self.config.hop * self.config.rate))

    def _downsampled_length(self, frames: int) -> int:
        for _ in range(self.config.convolutions):
            frames = (frames + 1) // 2
        return frames

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Two thirds of a second at most."""
        small = {"rate": 8000, "seconds": 0.6, "bands": 16, "width": 16, "heads": 2}
        return CheckInputs(small, *example_recordings(folder, 0.5))

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """To log-mel frames [f, m]; a tensor of that shape is taken as it is."""
        bands = self.config.bands
        if isinstance(raw, Tensor):
            if raw.ndim != 2 or raw.shape[1] != bands or not 0 < len(raw) <= self.frames:
                raise InputError(
                    f"given a tensor {list(raw.shape)}; allowed: log-mel frames [f, {bands}], at most {self.frames}"
                )
            if not bool(raw.isfinite().all()):
                raise InputError("given log-mel frames that are not all finite")
            return raw.float()
        frames = self._log_mel(self.load_mono(raw, rng))
        return _spec_augment(frames, rng) if rng is not None and self.config.spec_augment else frames

    def _log_mel(self, waveform: Tensor) -> Tensor:
        mel = _mel(self.rate, round(self.config.window * self.rate), self._hop, self.config.bands)
        energies: Tensor = mel(waveform)
        frames = (energies + FLOOR).log().T[: self.frames]
        return (frames - frames.mean()) / frames.std().clamp(min=1e-3)

    def dummy_item(self) -> Tensor:
        """One frame of zeros."""
        return torch.zeros(1, self.config.bands)

    def max_size_item(self) -> Tensor:
        """Zeros for as long as a recording may last."""
        return torch.zeros(self.frames, self.config.bands)

    def num_features(self, prepared: Tensor) -> int:
        """Frames, halved by each convolution."""
        return self._downsampled_length(len(prepared))

    def forward(self, x: Tensor) -> Features:
        """[b, f, m] to [b, n, e]."""
        valid = x[..., 0] != PADDING
        h = x.masked_fill(~valid[..., None], 0).transpose(1, 2)
        for convolution in self.stem:
            h = F.gelu(convolution(h))
            valid = valid[:, ::2]
            h = h * valid[:, None]  # what follows sees zeros behind the end, as it would without padding
        h = h.transpose(1, 2)
        h = h + _sinusoidal_positions(h.shape[1], self.dim, h)
        for block in self.blocks:
            h = block(h, valid)
        return Features(self.norm(h) * valid[..., None], valid.sum(-1))


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """[b, n, e]; `valid` [b, n] says what is no padding."""
        b, n, e = x.shape
        three = self.qkv(self.ln_1(x)).view(b, n, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)
        queries, keys, values = three
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=valid[:, None, None])
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(b, n, e)))
        fed: Tensor = x + self.dropout(self.mlp(self.ln_2(x)))
        return fed


@functools.lru_cache
def _mel(rate: int, window: int, hop: int, bands: int) -> Any:
    """The transform of a waveform [s] to energies [m, f]; its filters take as long to make as a recording to hear."""
    from torchaudio.transforms import MelSpectrogram

    size = 2 ** math.ceil(math.log2(window))
    return MelSpectrogram(rate, n_fft=size, win_length=window, hop_length=hop, n_mels=bands, pad_mode="constant")


def _sinusoidal_positions(n: int, e: int, like: Tensor) -> Tensor:
    """Sines and cosines of positions [n, e] (Vaswani et al. 2017)."""
    steps = torch.arange(n, device=like.device, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(e // 2, device=like.device) * (-math.log(10_000) / (e // 2)))
    return torch.cat([(steps * rates).sin(), (steps * rates).cos()], dim=-1).to(like.dtype)


def _spec_augment(frames: Tensor, rng: random.Random) -> Tensor:
    """[f, m] with two stretches of up to a fifth of the time, and two of up to a fifth of the bands, at the mean."""
    frames = frames.clone()
    for axis in (0, 0, 1, 1):
        size = frames.shape[axis]
        width = rng.randint(0, size // 5)
        start = rng.randint(0, size - width)
        frames.narrow(axis, start, width).fill_(0.0)
    return frames
