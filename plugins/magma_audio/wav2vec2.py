"""wav2vec 2.0 (Baevski et al. 2020). Axes: b batch, s samples, n features, e width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .hf_encoder import Count, HFAudioConfig, HFAudioEncoder
from .waveform import PADDING


class Wav2Vec2(HFAudioEncoder):
    """wav2vec 2.0 (Baevski et al. 2020): last hidden states, 49 a second, of recordings of any length up to `seconds`.

    Padding is heard by nobody, neither by the convolutions' normalisation nor by attention: a recording's features are
    those that the library gives it alone. Without `weights` it has the sizes of facebook/wav2vec2-base.
    """

    name = "wav2vec2"
    model_types = ("wav2vec2",)
    config_overrides: ClassVar[Mapping[str, Any]] = {
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,  # with it goes a parameter that nothing else reads
        "mask_feature_prob": 0.0,
        "add_adapter": False,
    }
    check_config: ClassVar[Mapping[str, Any]] = {"seconds": 0.6, "channels": 16, "width": 32, "layers": 1, "heads": 2}

    class Config(HFAudioConfig):
        """Sizes other than `seconds` count where there is no config.json at hand."""

        seconds: float = Field(30.0, gt=0)
        """The longest recording."""
        channels: int = Field(512, ge=1)
        """Of the seven convolutions."""
        width: int = Field(768, ge=16)
        layers: int = Field(12, ge=1)
        heads: int = Field(12, ge=1)

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

    def _zeros(self, items: int) -> Tensor:
        return torch.zeros(items)

    def extract_features(self, waveform: Tensor) -> Tensor:
        """[s] to mean 0 and variance 1; one that is shorter than a feature's reach gets zeros behind."""
        normalized: Tensor = self.feature_extractor(
            waveform.numpy(), sampling_rate=self.rate, return_tensors="pt"
        ).input_values[0]
        return F.pad(normalized, (0, max(0, self.min_items - len(normalized))))

    def count_features(self, items: Count) -> Count:
        """What the convolutions leave."""
        for kernel, stride in self._convolutions():
            items = (items - kernel) // stride + 1
        return items

    def patch_model(self, tower: nn.Module) -> nn.Module:
        tower.feature_extractor = MaskedConvolutions(tower.feature_extractor)
        return tower

    def hidden_states(self, x: Tensor, valid: Tensor) -> Tensor:
        """[b, s] to [b, n, e]."""
        mask = None if x.is_meta else valid.long()  # the library looks at its values
        values: Tensor = self.tower(x, attention_mask=mask).last_hidden_state
        return values


class MaskedConvolutions(nn.Module):
    """wav2vec 2.0's convolutions, under their names, for recordings that `PADDING` follows.

    None of them looks beyond its input's ends, so that a feature of the recording reads the recording alone; but a
    normalisation over time would count the padding.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv_layers = original.conv_layers
        self.over_time = isinstance(getattr(original.conv_layers[0], "layer_norm", None), nn.GroupNorm)
        if self.over_time:
            original.conv_layers[0].layer_norm = MaskedGroupNorm(original.conv_layers[0].layer_norm)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s] to [b, c, n], c channels."""
        valid = x != PADDING
        h = x.masked_fill(~valid, 0)[:, None]
        first: Any = self.conv_layers[0]
        if self.over_time:
            (kernel,), (stride,) = first.conv.kernel_size, first.conv.stride
            h = first.activation(first.layer_norm(first.conv(h), (valid.sum(-1) - kernel) // stride + 1))
        else:
            h = first(h)
        for layer in self.conv_layers[1:]:
            h = layer(h)
        out: Tensor = h
        return out


class MaskedGroupNorm(nn.Module):
    """A GroupNorm of one channel a group, under its names: mean 0 and variance 1 over the real steps."""

    def __init__(self, original: nn.GroupNorm) -> None:
        super().__init__()
        assert original.num_groups == original.num_channels, "each channel on its own"
        self.weight, self.bias, self.eps = original.weight, original.bias, original.eps

    def forward(self, h: Tensor, steps: Tensor) -> Tensor:
        """[b, c, n], of which `steps` [b] are real; in float32, as torch's own."""
        valid = (torch.arange(h.shape[-1], device=h.device) < steps[:, None])[:, None]
        count = steps[:, None, None]
        wide = h.float()
        centred = (wide - (wide * valid).sum(-1, keepdim=True) / count) * valid
        scale = (centred.square().sum(-1, keepdim=True) / count + self.eps).rsqrt() * self.weight[:, None]
        out: Tensor = (centred * scale + self.bias[:, None]).to(h.dtype)
        return out
