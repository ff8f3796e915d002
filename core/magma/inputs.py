"""One input of the model: an encoder and the prefix after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import torch
from torch import nn

from .errors import PartError
from .feature_cache.cache import FeatureCache
from .feature_cache.media import CachedMedia
from .interfaces import Encoder, Prefix
from .values import Features, Prepared

BatchNormMode = Literal["train", "frozen"]


class Input(nn.Module):
    """One input of the model: an encoder and the prefix after it."""

    def __init__(
        self,
        encoder: Encoder,
        prefix: Prefix,
        trainable: bool = True,
        batchnorm: BatchNormMode = "train",
        cache: FeatureCache | None = None,
    ) -> None:
        """Combine an encoder and a prefix.

        Args:
            encoder: The encoder.
            prefix: The prefix. It is trained unless it is frozen.
            trainable: Train the encoder. If False, it is frozen.
            batchnorm: BatchNorm of a trained encoder. "train": batch statistics, and the running averages are updated.
                "frozen": the pretrained averages.
            cache: Keeps the features of a frozen encoder on disk. Default: they are computed each time.
        """
        super().__init__()
        self.encoder = encoder
        self.prefix = prefix
        self.batchnorm = batchnorm
        self.cache = cache
        if not trainable:
            encoder.freeze()

    def forward(self, x: Prepared | CachedMedia) -> Features:
        """Embeddings [b, k, d] of prepared items [b, ...]. No autograd graph is built for a frozen encoder."""
        out: Features = self.prefix(self.features(x))
        return out

    def features(self, x: Prepared | CachedMedia) -> Features:
        """Features [b, n, e] of prepared items [b, ...], computed or from the cache."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder.frozen):
            if isinstance(x, CachedMedia):
                assert self.cache is not None, "the collator gives media of a cache to inputs that have one"
                return self.cache.encode(self.encoder, x)
            features: Features = self.encoder(x)
        return features

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.batchnorm == "frozen":
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(False)
        return self

    def extra_repr(self) -> str:
        return f"modality={self.encoder.modality}, frozen={self.encoder.frozen}"


def attached_caches(inputs: Mapping[str, Input]) -> dict[str, FeatureCache]:
    """The feature caches of the inputs that have one, each for the weights that its encoder has now.

    Raises:
        PartError: The encoder of such an input is trained.
    """
    found = {}
    for name, one in inputs.items():
        if one.cache is not None and not any(p.is_meta for p in one.encoder.parameters()):
            try:
                one.cache.attach(one.encoder)
            except PartError as error:
                raise PartError(f"inputs.{name}.cache: {error}") from error
            found[name] = one.cache
    return found
