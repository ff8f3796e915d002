"""CLIP's image encoders from open_clip, as feature grids before the pooling (section 3.1 of the paper)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from magma import PartError, Weights, did_you_mean, hub_problem

from .image_encoder import CLIP_MEAN, CLIP_STD, ImageConfig, ImageEncoder, flatten_grid
from .intermediate_layers import LayerConfig, layer_builder
from .timm_features import grid_builder
from .weights import describe_failed_download, find_file_problems, is_file, read_state


class Clip(ImageEncoder):
    """An image encoder of open_clip, without its pooling and projection.

    ResNets return the grid of their last stage, [b, (s / 32)^2, 32 * width]. ViTs return the patch tokens of the last
    block without the class token, [b, (s / patch)^2, width], before the final LayerNorm, which belongs to the pooling
    in CLIP. Networks that open_clip takes from timm return the grid before timm's pooling. With `layer`, the features
    are those of other blocks or stages.
    """

    name = "clip"
    mean, std = CLIP_MEAN, CLIP_STD
    check_config: ClassVar[Mapping[str, Any]] = {
        "layers": 1,
        "width": 16,
        "image_size": 32,
        "patch_size": 16,
        "head_width": 8,
    }

    class Config(LayerConfig, ImageConfig):
        """Either a `model` of open_clip, or custom sizes: `layers`, `width` and `image_size`."""

        renamed_keys = MappingProxyType({"pretrained": "weights", "smaller": "allow_smaller"})

        model: str | None = None
        """Name of an open_clip model, such as `"RN50x16"` or `"ViT-B-32"`. Otherwise give `layers`, `width` and
        `image_size`."""
        weights: Weights | None = None
        """Tag of open_clip's weights, such as `"openai"`, a file, or `"package:NAME"`. Default: random weights."""
        image_size: int | None = Field(None, ge=1)
        """Pixels per side. Default: the model's own size."""
        allow_smaller: bool = False
        """Allow prepared images that are smaller than `image_size`. It is for an imported ResNet whose training size is
        unknown."""
        layers: int | tuple[int, int, int, int] | None = None
        """Layers of the four stages of a ResNet, or the depth of a ViT."""
        width: int | None = Field(None, ge=2)
        """Width of the network, with `layers`."""
        patch_size: int = Field(32, ge=1)
        """Pixels per side of a ViT's patch."""
        head_width: int = Field(64, ge=1)
        """Width of a ViT's attention head."""

        @model_validator(mode="after")
        def _one_size(self) -> Self:
            custom = self.layers is not None or self.width is not None
            if custom == (self.model is not None):
                raise ValueError("either `model` (an open_clip name) or `layers`, `width` and `image_size`")
            if custom and None in (self.layers, self.width, self.image_size):
                raise ValueError("`layers`, `width` and `image_size` together")
            if custom and self.weights is not None and not (is_file(self.weights) or Path(self.weights).suffix):
                raise ValueError("a file as `weights` for custom sizes")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        settings = _model_config(config)
        vision = dict(settings["vision_cfg"])
        size = config.image_size or vision.get("image_size", 224)
        vision["image_size"] = size
        quick = bool(settings.get("quick_gelu", False))
        build: Callable[[], nn.Module] = partial(_build_image_encoder, settings["embed_dim"], vision, quick)
        dry_run = None
        self._whole, self._of_timm = build, bool(vision.get("timm_model_name"))
        if config.layer is not None:
            build, dry_run = layer_builder(build, size, config.chosen_layers)
        elif self._of_timm:
            build, dry_run = grid_builder(build, size)
        super().__init__(config, build, size, dry_run)
        self.allow_smaller = config.allow_smaller

    @staticmethod
    def features(network: nn.Module, x: Tensor) -> Tensor:
        """[b, 3, s, s] to [b, n, e]."""
        from open_clip.transformer import VisionTransformer

        if isinstance(network, VisionTransformer):
            found = network.forward_intermediates(x, indices=1, intermediates_only=True, output_fmt="NLC")
            tokens: Tensor = found["image_intermediates"][-1]
            return tokens
        return flatten_grid(network(x))

    def load_weights(self) -> None:
        """Load the image encoder of a pretrained CLIP, or draw random weights. Raises `PartError`."""
        source = self.config.weights
        if source is None:
            self.init_weights()
            return
        path = source if is_file(source) else _download(str(self.config.model), source)
        state = _vision_tensors(read_state(path), self._names_in_file(self.network), self._names_of_all_layers())
        inner = "trunk." if self._is_wrapped else ""
        self.load_state({inner + name: tensor for name, tensor in state.items()}, f"clip weights {source}")

    @property
    def _is_wrapped(self) -> bool:
        """Whether the network is inside another module, unlike in open_clip's files."""
        return self.config.layer is not None and not self._of_timm

    def _names_in_file(self, network: nn.Module) -> set[str]:
        return {name.removeprefix("trunk.") if self._is_wrapped else name for name in network.state_dict()}

    def _names_of_all_layers(self) -> set[str]:
        with torch.device("meta"):
            return {f"trunk.{name}" if self._of_timm else name for name in self._whole().state_dict()}

    @classmethod
    def problems(cls, config: Config) -> list[str]:
        """Missing files, unknown tags of open_clip, and weights that are not available."""
        if config.weights is None:
            return []
        if is_file(config.weights):
            return find_file_problems(config.weights, "a file of tensors")
        import open_clip

        tags = open_clip.list_pretrained_tags_by_model(config.model or "")
        if config.weights in tags:
            where = open_clip.get_pretrained_cfg(config.model, config.weights).get("hf_hub", "").rpartition("/")[0]
            problem = where and hub_problem(where, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
            return [f"weights: {problem}"] if problem else []
        return [f"weights: given {config.weights!r}; allowed: a file, or for {config.model}: {', '.join(tags)}"]


def _model_config(config: Clip.Config) -> dict[str, Any]:
    """open_clip's configuration of a model, or one with custom sizes. Raises `PartError`."""
    import open_clip

    if config.model is None:
        assert config.layers is not None
        assert config.width is not None
        resnet = isinstance(config.layers, tuple)
        heads = config.width * 32 if resnet else config.head_width  # of a ResNet, only the pooling has heads
        if not resnet and config.width % heads:
            raise PartError(f"clip: width is {config.width}; allowed: a multiple of head_width ({heads})")
        vision = {"layers": config.layers, "width": config.width, "patch_size": config.patch_size, "head_width": heads}
        return {"embed_dim": config.width, "vision_cfg": vision}
    found = open_clip.get_model_config(config.model)
    if found is None:
        names = open_clip.list_models()
        raise PartError(
            f'clip: open_clip has no model "{config.model}".{did_you_mean(config.model, names)} '
            "Allowed: a name from open_clip.list_models()"
        )
    if config.weights == "openai" and "quick_gelu" not in found:
        found["quick_gelu"] = True  # OpenAI's weights were trained with it; open_clip does the same
    return dict(found)


def _build_image_encoder(embed_dim: int, vision: dict[str, Any], quick_gelu: bool) -> nn.Module:
    """open_clip's image encoder without pooling and projection; timm's network if open_clip wraps one."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    known = {field.name for field in dataclasses.fields(CLIPVisionCfg)}
    vision = {key: value for key, value in vision.items() if key in known}
    encoder: nn.Module = _build_vision_tower(embed_dim, CLIPVisionCfg(**vision), quick_gelu)
    if isinstance(encoder, ModifiedResNet):
        encoder.attnpool = nn.Identity()
    elif isinstance(encoder, VisionTransformer):
        encoder.attn_pool, encoder.proj, encoder.ln_post = None, None, nn.Identity()
    else:
        encoder = encoder.get_submodule("trunk")
    return encoder


def _vision_tensors(state: dict[str, Tensor], wanted: set[str], of_all_layers: set[str]) -> dict[str, Tensor]:
    """The tensors of the image encoder, from its own state dict or that of a whole CLIP.

    Pooling, projection and removed layers are left out.
    """
    if any(name.startswith("visual.") for name in state):
        state = {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}
    pooling = ("attnpool.", "attn_pool", "ln_post.", "proj", "head.", "trunk.head", "trunk.attn_pool", "trunk.fc_norm")
    removed = of_all_layers - wanted
    return {name: t for name, t in state.items() if name in wanted or not (name in removed or name.startswith(pooling))}


def _download(model: str, tag: str) -> str:
    """The weights file of a tag of open_clip, from its cache or the hub. Raises `PartError`."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise PartError(f"clip weights: given {tag!r}; allowed: a file, or for {model}: {', '.join(tags)}")
    try:
        return str(open_clip.download_pretrained(open_clip.get_pretrained_cfg(model, tag)))
    except Exception as error:  # the hub's client and urllib raise many kinds
        raise PartError(describe_failed_download(f"clip weights: {model} {tag}", error)) from error
