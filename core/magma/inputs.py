"""One way into the language model: an encoder, and the prefix that follows it."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from .interfaces import Encoder, Prefix
from .values import Features

BatchNormMode = Literal["train", "frozen"]


class Input(nn.Module):
    """One way into the language model: an encoder and the prefix behind it."""

    def __init__(
        self, encoder: Encoder, prefix: Prefix, trainable: bool = True, batchnorm: BatchNormMode = "train"
    ) -> None:
        """`trainable` and `batchnorm` are the encoder's; a prefix learns unless it was frozen.

        batchnorm: "train" normalises by each batch's statistics and averages them; "frozen" by the pretrained ones.
        """
        super().__init__()
        self.encoder = encoder
        self.prefix = prefix
        self.batchnorm = batchnorm
        if not trainable:
            encoder.freeze()

    def forward(self, x: Tensor) -> Features:
        """[b, ...] to embeddings [b, k, d]. A frozen encoder builds no graph."""
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
