"""One input of the model: an encoder and the prefix after it."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import nn

from .interfaces import Encoder, Prefix
from .values import Features, Prepared

BatchNormMode = Literal["train", "frozen"]


class Input(nn.Module):
    """One input of the model: an encoder and the prefix after it."""

    def __init__(
        self, encoder: Encoder, prefix: Prefix, trainable: bool = True, batchnorm: BatchNormMode = "train"
    ) -> None:
        """Combine an encoder and a prefix.

        Args:
            encoder: The encoder.
            prefix: The prefix. It is trained unless it is frozen.
            trainable: Train the encoder. If False, it is frozen.
            batchnorm: BatchNorm of a trained encoder. "train": batch statistics, and the running averages are updated.
                "frozen": the pretrained averages.
        """
        super().__init__()
        self.encoder = encoder
        self.prefix = prefix
        self.batchnorm = batchnorm
        if not trainable:
            encoder.freeze()

    def forward(self, x: Prepared) -> Features:
        """Embeddings [b, k, d] of prepared items [b, ...]. No autograd graph is built for a frozen encoder."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder.frozen):
            features: Features = self.encoder(x)
        out: Features = self.prefix(features)
        return out

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.batchnorm == "frozen":
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(False)
        return self

    def extra_repr(self) -> str:
        return f"modality={self.encoder.modality}, frozen={self.encoder.frozen}"
