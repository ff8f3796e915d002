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

from .hf_encoder import Count, HFSpectrogramConfig, HFSpectrogramEncoder, pad_frames


class Ast(HFSpectrogramEncoder):
    """Audio Spectrogram Transformer (Gong et al. 2021): hidden states of the patches, without the two special tokens.

    Patches are ordered by time, then by frequency; a short recording has only the first ones. The encoder reads the
    whole window: the recording, then the padding of transformers. Without `weights` it has the sizes of
    MIT/ast-finetuned-audioset-10-10-0.4593.
    """

    name = "ast"
    model_types = ("audio-spectrogram-transformer",)
    check_config: ClassVar[Mapping[str, Any]] = {"frames": 64, "bands": 32, "width": 16, "layers": 1, "heads": 2}

    class Config(HFSpectrogramConfig):
        """Weights and sizes. The config.json of `weights` overrides the sizes; without `weights` they are random."""

        frames: int = Field(1024, ge=16)
        """Length of the window in frames, 100 per second. A longer recording is refused or cropped."""
        bands: int = Field(128, ge=16)
        """Mel bands of the spectrogram."""
        width: int = Field(768, ge=4)
        """Width of the hidden states and of the features."""
        layers: int = Field(12, ge=1)
        """Number of transformer layers."""
        heads: int = Field(12, ge=1)
        """Attention heads per layer."""

    config: Config
    freq_patches: int
    """Number of patches at one time step."""
    time_patches: int
    """Number of time steps in the window."""
    stride: int
    """Frames from one time step to the next."""

    @staticmethod
    def transformers_classes() -> tuple[Any, Any, Any]:
        from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

        return ASTConfig, ASTModel, ASTFeatureExtractor

    def config_fields(self) -> dict[str, Any]:
        return {
            "max_length": self.config.frames,
            "num_mel_bins": self.config.bands,
            "hidden_size": self.config.width,
            "num_hidden_layers": self.config.layers,
            "num_attention_heads": self.config.heads,
            "intermediate_size": 4 * self.config.width,
        }

    def extractor_defaults(self) -> dict[str, Any]:
        return {"num_mel_bins": self.architecture.num_mel_bins, "max_length": self.architecture.max_length}

    def set_limits(self) -> None:
        self.min_items, self.max_items = 1, self.feature_extractor.max_length
        self.window, self.hop = self.rate // 40, self.rate // 100  # Kaldi's 25 and 10 ms
        self.seconds = (self.window + self.hop * (self.max_items - 1)) / self.rate
        found = self.architecture
        self.stride = found.time_stride
        self.freq_patches = (found.num_mel_bins - found.patch_size) // found.frequency_stride + 1
        self.time_patches = (found.max_length - found.patch_size) // self.stride + 1

    def extract_features(self, waveform: Tensor) -> Tensor:
        """A waveform [s] to normalised frames [f, m]; zeros are appended to one that is shorter than a frame."""
        padded = F.pad(waveform, (0, max(0, self.window - len(waveform))))
        frames: Tensor = self.feature_extractor(
            padded.numpy(), sampling_rate=self.rate, return_tensors="pt"
        ).input_values[0]
        return frames[: 1 + (len(padded) - self.window) // self.hop].clone()

    def count_features(self, items: Count) -> Count:
        """Number of patches that start before the end of the recording."""
        time_steps = (items - 1) // self.stride + 1
        # At most the whole window.
        return self.freq_patches * (time_steps - (time_steps - self.time_patches) * (time_steps > self.time_patches))

    def hidden_states(self, x: Tensor, valid: Tensor) -> Tensor:
        """Frames [b, f, m] to hidden states [b, n, e]."""
        silence = (
            float(self.feature_extractor.normalize(np.zeros(1, np.float32))[0])
            if self.feature_extractor.do_normalize
            else 0.0
        )
        frames = pad_frames(x, valid, x.new_full((1, 1, 1), silence), self.max_items)
        patches: Tensor = self.tower(frames).last_hidden_state[:, 2:]
        b, n, e = patches.shape
        return patches.reshape(b, self.freq_patches, self.time_patches, e).transpose(1, 2).reshape(b, n, e)
