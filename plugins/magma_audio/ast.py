"""The Audio Spectrogram Transformer (Gong et al. 2021).

Axes: b batch, s samples, f frames, m mel bands, n features, e width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .hf_encoder import Count, Tower, TowerConfig, _filled


class Ast(Tower):
    """Audio Spectrogram Transformer (Gong et al. 2021): hidden states of the patches, without the two special tokens.

    Patches stand in the order of time, those of one moment from low to high: a short recording has the first of them.
    The tower reads the whole window, the library's padding behind the recording. Without `weights` it has the sizes of
    MIT/ast-finetuned-audioset-10-10-0.4593.
    """

    name = "ast"
    types = ("audio-spectrogram-transformer",)
    small: ClassVar[Mapping[str, Any]] = {"frames": 64, "bands": 32, "width": 16, "layers": 1, "heads": 2}

    class Config(TowerConfig):
        """Sizes count where there is no config.json at hand; without `weights` these are random."""

        frames: int = Field(1024, ge=16)
        """Of the window, 100 a second; the longest recording has as many."""
        bands: int = Field(128, ge=16)
        width: int = Field(768, ge=4)
        layers: int = Field(12, ge=1)
        heads: int = Field(12, ge=1)

    config: Config
    high: int
    """Patches of one moment."""
    moments: int
    """Of the window."""
    stride: int
    """Frames from moment to moment."""

    @staticmethod
    def library() -> tuple[Any, Any, Any]:
        from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

        return ASTConfig, ASTModel, ASTFeatureExtractor

    def sizes(self) -> dict[str, Any]:
        return {
            "max_length": self.config.frames,
            "num_mel_bins": self.config.bands,
            "hidden_size": self.config.width,
            "num_hidden_layers": self.config.layers,
            "num_attention_heads": self.config.heads,
            "intermediate_size": 4 * self.config.width,
        }

    def hearing(self) -> dict[str, Any]:
        return {"num_mel_bins": self.architecture.num_mel_bins, "max_length": self.architecture.max_length}

    def measure(self) -> None:
        self.least, self.most = 1, self.ears.max_length
        self.window, self.hop = self.rate // 40, self.rate // 100  # Kaldi's 25 and 10 ms
        self.seconds = (self.window + self.hop * (self.most - 1)) / self.rate
        found = self.architecture
        self.stride = found.time_stride
        self.high = (found.num_mel_bins - found.patch_size) // found.frequency_stride + 1
        self.moments = (found.max_length - found.patch_size) // self.stride + 1

    def extract(self, waveform: Tensor) -> Tensor:
        """[s] to frames [f, m], normalised; one that is shorter than a frame gets zeros behind."""
        whole = F.pad(waveform, (0, max(0, self.window - len(waveform))))
        frames: Tensor = self.ears(whole.numpy(), sampling_rate=self.rate, return_tensors="pt").input_values[0]
        return frames[: 1 + (len(whole) - self.window) // self.hop].clone()

    def counted(self, items: Count) -> Count:
        """Patches that begin before the recording ends."""
        begun = (items - 1) // self.stride + 1
        return self.high * (begun - (begun - self.moments) * (begun > self.moments))  # as many as there are at most

    def hidden(self, x: Tensor, real: Tensor) -> Tensor:
        """[b, f, m] to [b, n, e]."""
        silence = float(self.ears.normalize(np.zeros(1, np.float32))[0]) if self.ears.do_normalize else 0.0
        frames = _filled(x, real, x.new_full((1, 1, 1), silence), self.most)
        patches: Tensor = self.tower(frames).last_hidden_state[:, 2:]
        b, n, e = patches.shape
        return patches.reshape(b, self.high, self.moments, e).transpose(1, 2).reshape(b, n, e)
