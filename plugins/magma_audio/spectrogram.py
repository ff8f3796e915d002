"""A small convolutional transformer over log-mel spectrograms, without pretrained weights.

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
from magma_media.waveform import PADDING, AudioConfig, AudioEncoder, example_recordings
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from magma import CheckInputs, Features, InputError

from .spec_augment import SpecAugmentConfig, mask_spectrogram

LOG_EPSILON = 1e-6
"""Added to the energy of a mel band before the logarithm."""


class Spectrogram(AudioEncoder):
    """Strided convolutions over log-mel frames, then transformer layers, for recordings of any length up to `seconds`.

    Every recording is normalised to mean 0 and variance 1 over all bands and frames. Padding is masked, so features do
    not depend on the other items of a batch.
    """

    name = "spectrogram"

    class Config(SpecAugmentConfig, AudioConfig):
        """Sizes of the spectrogram and of the network."""

        rate: int = Field(16_000, ge=4_000, le=48_000)
        """Sample rate in Hz; recordings are resampled to it."""
        seconds: float = Field(10.0, gt=0)
        """Length of the longest recording, in seconds."""
        window: float = Field(0.025, gt=0)
        """Length of a frame, in seconds."""
        hop: float = Field(0.010, gt=0)
        """Time from one frame to the next, in seconds."""
        bands: int = Field(64, ge=8)
        """Mel bands of the spectrogram."""
        width: int = Field(128, ge=8)
        """Width of the hidden states and of the features."""
        layers: int = Field(2, ge=0)
        """Number of transformer layers."""
        heads: int = Field(4, ge=1)
        """Attention heads per layer."""
        convolutions: int = Field(3, ge=1, le=6)
        """Number of convolutions; each halves the number of frames."""
        dropout: float = Field(0.0, ge=0, lt=1)
        """Dropout probability of the transformer layers."""

        @model_validator(mode="after")
        def _sizes_fit(self) -> Any:
            if self.width % (2 * self.heads):
                raise ValueError(
                    f"a width ({self.width}) that is a multiple of twice the number of heads ({self.heads})"
                )
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
        """A small configuration, and recordings of at most 0.6 seconds."""
        small = {"rate": 8000, "seconds": 0.6, "bands": 16, "width": 16, "heads": 2}
        return CheckInputs(small, *example_recordings(folder, 0.5))

    @classmethod
    def augments(cls, config: Any) -> bool:
        """Whether recordings are cropped at random in training, or spectrograms are masked."""
        return super().augments(config) or config.masks is not None

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """A recording to log-mel frames [f, m]; a tensor of that shape is not changed. Raises `InputError`."""
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
        masks = self.config.masks
        return frames if rng is None or masks is None else mask_spectrogram(frames, masks, rng, 0.0)  # their mean

    def _log_mel(self, waveform: Tensor) -> Tensor:
        mel = _mel_transform(self.rate, round(self.config.window * self.rate), self._hop, self.config.bands)
        energies: Tensor = mel(waveform)
        frames = (energies + LOG_EPSILON).log().T[: self.frames]
        return (frames - frames.mean()) / frames.std().clamp(min=1e-3)

    def dummy_item(self) -> Tensor:
        """One frame of zeros."""
        return torch.zeros(1, self.config.bands)

    def max_size_item(self) -> Tensor:
        """Frames of zeros with the maximum length."""
        return torch.zeros(self.frames, self.config.bands)

    def num_features(self, prepared: Tensor) -> int:
        """Number of frames after the convolutions."""
        return self._downsampled_length(len(prepared))

    def forward(self, x: Tensor) -> Features:
        """Frames [b, f, m] to features [b, n, e] with their lengths."""
        valid = x[..., 0] != PADDING
        h = x.masked_fill(~valid[..., None], 0).transpose(1, 2)
        for convolution in self.stem:
            h = F.gelu(convolution(h))
            valid = valid[:, ::2]
            h = h * valid[:, None]  # zeros after the end, as without padding
        h = h.transpose(1, 2)
        h = h + _sinusoidal_positions(h.shape[1], self.dim, h)
        for block in self.blocks:
            h = block(h, valid)
        return Features(self.norm(h) * valid[..., None], valid.sum(-1))


class TransformerBlock(nn.Module):
    """A pre-norm transformer layer: attention and feed-forward, each after a LayerNorm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """[b, n, e] to [b, n, e]; `valid` [b, n] is False for padding."""
        b, n, e = x.shape
        qkv = self.qkv(self.ln_1(x)).view(b, n, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=valid[:, None, None])
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(b, n, e)))
        out: Tensor = x + self.dropout(self.mlp(self.ln_2(x)))
        return out


@functools.lru_cache
def _mel_transform(rate: int, window: int, hop: int, bands: int) -> Any:
    """The transform of a waveform [s] to energies [m, f]. It is cached, because its filters are slow to compute."""
    from torchaudio.transforms import MelSpectrogram

    size = 2 ** math.ceil(math.log2(window))
    return MelSpectrogram(rate, n_fft=size, win_length=window, hop_length=hop, n_mels=bands, pad_mode="constant")


def _sinusoidal_positions(n: int, e: int, like: Tensor) -> Tensor:
    """Sinusoidal position embeddings [n, e] (Vaswani et al. 2017)."""
    positions = torch.arange(n, device=like.device, dtype=torch.float32)[:, None]
    frequencies = torch.exp(torch.arange(e // 2, device=like.device) * (-math.log(10_000) / (e // 2)))
    return torch.cat([(positions * frequencies).sin(), (positions * frequencies).cos()], dim=-1).to(like.dtype)
