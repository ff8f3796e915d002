"""The convolutions of wav2vec 2.0 and its successors, for padded batches.

Axes: b batch, s samples, c channels, n features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .waveform import PADDING


class MaskedConvolutions(nn.Module):
    """The convolutions of wav2vec 2.0, with the same names, for recordings with `PADDING` at the end.

    They do not pad their inputs, so a feature of the recording does not depend on padding. A normalisation over time
    would depend on it, and is replaced.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv_layers = original.conv_layers
        self.normalizes_over_time = isinstance(getattr(original.conv_layers[0], "layer_norm", None), nn.GroupNorm)
        if self.normalizes_over_time:
            original.conv_layers[0].layer_norm = MaskedGroupNorm(original.conv_layers[0].layer_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Waveforms [b, s] to features [b, c, n], c channels."""
        valid = x != PADDING
        h = x.masked_fill(~valid, 0)[:, None]
        first: Any = self.conv_layers[0]
        if self.normalizes_over_time:
            (kernel,), (stride,) = first.conv.kernel_size, first.conv.stride
            h = first.activation(first.layer_norm(first.conv(h), (valid.sum(-1) - kernel) // stride + 1))
        else:
            h = first(h)
        for layer in self.conv_layers[1:]:
            h = layer(h)
        out: Tensor = h
        return out


class MaskedGroupNorm(nn.Module):
    """A GroupNorm with one channel per group, with the same names, over time steps that are not padding."""

    def __init__(self, original: nn.GroupNorm) -> None:
        super().__init__()
        assert original.num_groups == original.num_channels, "one channel per group"
        self.weight, self.bias, self.eps = original.weight, original.bias, original.eps

    def forward(self, h: Tensor, steps: Tensor) -> Tensor:
        """[b, c, n], of which the first `steps` [b] are not padding; computed in float32, as in torch."""
        valid = (torch.arange(h.shape[-1], device=h.device) < steps[:, None])[:, None]
        count = steps[:, None, None]
        h32 = h.float()
        centred = (h32 - (h32 * valid).sum(-1, keepdim=True) / count) * valid
        scale = (centred.square().sum(-1, keepdim=True) / count + self.eps).rsqrt() * self.weight[:, None]
        out: Tensor = (centred * scale + self.bias[:, None]).to(h.dtype)
        return out
