"""Normalizer-free ResNets of timm with pooling: the encoder of Frozen (Tsimpoukelli et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from magma import Weights

from .image_encoder import ImageConfig, ImageEncoder
from .timm_features import check_model_name, find_timm_problems, load_timm_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NFResNet(ImageEncoder):
    """nf_resnet50 or another one of timm, with average pooling: [b, 1, e]. Without `weights` it is random."""

    name = "nfresnet"
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    check_config: ClassVar[Mapping[str, Any]] = {"layers": (1, 1, 1, 1), "width": 8, "image_size": 64}

    class Config(ImageConfig):
        """A `model` of timm, optionally with custom sizes."""

        renamed_keys = MappingProxyType({"pretrained": "weights"})

        model: str = "nf_resnet50"
        """Name of a timm model of this family."""
        weights: bool | Weights = False
        """`true` for timm's weights, a file, or `"package:NAME"`. Default: random weights."""
        image_size: int = Field(224, ge=32)
        """Pixels per side."""
        layers: tuple[int, int, int, int] | None = None
        """Layers of the four stages, together with `width`."""
        width: int | None = Field(None, ge=8)
        """Channels of the stem; the stages have 4, 8, 16 and 32 times as many."""

        @model_validator(mode="after")
        def _one_size(self) -> Self:
            if (self.layers is None) != (self.width is None):
                raise ValueError("`layers` and `width` together")
            if self.layers is not None and self.weights is True:
                raise ValueError("a file as `weights` for custom sizes")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        import timm

        check_model_name(self.name, config.model, timm.list_models(module="nfnet"))
        size: dict[str, Any] = {}
        if config.layers is not None and config.width is not None:
            width = config.width
            size = {"depths": config.layers, "stem_chs": width, "channels": tuple(width * m for m in (4, 8, 16, 32))}
        super().__init__(config, lambda: timm.create_model(config.model, num_classes=0, **size), config.image_size)

    @staticmethod
    def features(network: nn.Module, x: Tensor) -> Tensor:
        """Images [b, 3, s, s] to features [b, 1, e]."""
        pooled: Tensor = network(x)
        return pooled[:, None]

    def load_weights(self) -> None:
        """Load timm's weights or those of a file, or draw random ones. Raises `PartError`."""
        if self.config.weights is False:
            self.init_weights()
            return
        state = load_timm_state(self.name, self.config.model, self.config.weights)
        kept = {name: tensor for name, tensor in state.items() if not name.startswith("head.fc.")}
        self.load_state(kept, f"nfresnet weights {self.config.weights}")

    @classmethod
    def problems(cls, config: Config) -> list[str]:
        """Missing files, and weights that are not available."""
        return find_timm_problems(config.model, config.weights)
