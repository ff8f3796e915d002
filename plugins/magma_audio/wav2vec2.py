"""wav2vec 2.0 (Baevski et al. 2020). Axes: b batch, s samples, n features, e width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from magma_media.masked_convolutions import MaskedConvolutions
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .hf_encoder import Count, HFAudioConfig, HFAudioEncoder


class Wav2Vec2(HFAudioEncoder):
    """wav2vec 2.0 (Baevski et al. 2020): last hidden states, 49 per second, of recordings of up to `seconds`.

    Padding is masked in attention and in the normalisation of the convolutions. The features of a recording are those
    that transformers computes for a batch of one. Without `weights` it has the sizes of facebook/wav2vec2-base.
    """

    name = "wav2vec2"
    model_types = ("wav2vec2",)
    config_overrides: ClassVar[Mapping[str, Any]] = {
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,  # removes a parameter that would be unused
        "mask_feature_prob": 0.0,
        "add_adapter": False,
    }
    check_config: ClassVar[Mapping[str, Any]] = {"seconds": 0.6, "channels": 16, "width": 32, "layers": 1, "heads": 2}

    class Config(HFAudioConfig):
        """Weights and sizes. The config.json of `weights` overrides the sizes, except `seconds`."""

        seconds: float = Field(30.0, gt=0)
        """Length of the longest recording, in seconds."""
        channels: int = Field(512, ge=1)
        """Channels of the seven convolutions."""
        width: int = Field(768, ge=16)
        """Width of the hidden states and of the features."""
        layers: int = Field(12, ge=1)
        """Number of transformer layers."""
        heads: int = Field(12, ge=1)
        """Attention heads per layer."""

    config: Config

    @staticmethod
    def transformers_classes() -> tuple[Any, Any, Any]:
        from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

        return Wav2Vec2Config, Wav2Vec2Model, Wav2Vec2FeatureExtractor

    def config_fields(self) -> dict[str, Any]:
        return {
            "conv_dim": [self.config.channels] * 7,
            "hidden_size": self.config.width,
            "num_hidden_layers": self.config.layers,
            "num_attention_heads": self.config.heads,
            "intermediate_size": 4 * self.config.width,
        }

    def extractor_defaults(self) -> dict[str, Any]:
        return {}

    def set_limits(self) -> None:
        self.seconds = self.config.seconds
        self.min_items = 1
        for kernel, stride in reversed(self._convolutions()):
            self.min_items = (self.min_items - 1) * stride + kernel
        self.max_items = max(self.min_items, self.max_samples(self.rate))

    def _convolutions(self) -> list[tuple[int, int]]:
        return list(zip(self.architecture.conv_kernel, self.architecture.conv_stride, strict=True))

    def _make_zeros(self, items: int) -> Tensor:
        return torch.zeros(items)

    def extract_features(self, waveform: Tensor) -> Tensor:
        """A waveform [s], scaled to mean 0 and variance 1; zeros are appended if it is too short for one feature."""
        normalized: Tensor = self.feature_extractor(
            waveform.numpy(), sampling_rate=self.rate, return_tensors="pt"
        ).input_values[0]
        return F.pad(normalized, (0, max(0, self.min_items - len(normalized))))

    def count_features(self, items: Count) -> Count:
        """Number of features after the convolutions."""
        for kernel, stride in self._convolutions():
            items = (items - kernel) // stride + 1
        return items

    def patch_model(self, model: nn.Module) -> nn.Module:
        model.feature_extractor = MaskedConvolutions(model.feature_extractor)
        return model

    def hidden_states(self, x: Tensor, valid: Tensor) -> Tensor:
        """Waveforms [b, s] to hidden states [b, n, e]."""
        mask = None if x.is_meta else valid.long()  # transformers reads its values
        values: Tensor = self.tower(x, attention_mask=mask).last_hidden_state
        return values
