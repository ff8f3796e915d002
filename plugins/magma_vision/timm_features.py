"""Networks of timm, as feature grids before the pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Gt, Le
from pydantic import Field, model_validator
from torch import Tensor, nn

from magma import PartError, Weights, did_you_mean, hub_problem

from .image_encoder import ImageConfig, ImageEncoder, flatten_grid
from .intermediate_layers import LayerConfig, layer_builder
from .weights import describe_failed_download, find_file_problems, find_order_problems, read_state, rename_in_order

Mean = Annotated[float, Ge(0), Le(1)]
"""Of pixels from 0 to 1; 127 of 255 is 0.498."""
Deviation = Annotated[float, Gt(0), Le(1)]


class FeatureGrid(nn.Module):
    """The features of a timm network before its pooling, from its `forward_features`."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        trunk.reset_classifier(0, "")
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        """Images [b, 3, s, s] to a grid [b, e, h, w], or to patch tokens [b, n, e] without leading special tokens.

        Raises `TypeError` if the network does not have `num_prefix_tokens`, so that patches are unknown.
        """
        out = self.trunk.forward_features(x)
        prefix: int | None = getattr(self.trunk, "num_prefix_tokens", None)
        if isinstance(out, Tensor) and out.ndim == 4:
            return out.permute(0, 3, 1, 2) if getattr(self.trunk, "output_fmt", "NCHW") == "NHWC" else out
        if isinstance(out, Tensor) and out.ndim == 3 and prefix is not None:
            return out[:, prefix:]
        raise TypeError(
            "forward_features returns neither a grid nor tokens with a known number of leading special tokens"
        )


class LastFeatureGrid(nn.Module):
    """The last intermediate grid of a timm network, which is pruned after it.

    It is for networks whose pooling cannot be disabled, or whose `forward_features` returns several grids, the class
    token, or tokens without the number of special tokens.
    """

    def __init__(self, trunk: Any, **options: Any) -> None:
        super().__init__()
        trunk.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        self.trunk = trunk.requires_grad_(True)  # timm freezes what only a classifier uses
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        """Images [b, 3, s, s] to a grid [b, e, h, w] or to tokens [b, n, e]."""
        grid: Tensor = self.trunk.forward_intermediates(x, indices=1, intermediates_only=True, **self.options)[-1]
        return grid


GRID_VARIANTS: Sequence[Callable[[nn.Module], nn.Module]] = (
    FeatureGrid,
    *(
        partial(LastFeatureGrid, norm=norm, output_fmt=output_fmt)
        for output_fmt in ("NCHW", "NLC")
        for norm in (True, False)
    ),
)
"""Ways to get the grid of a timm network, in order of preference; with the final norm if possible."""


def grid_builder(trunk: Callable[[], nn.Module], size: int) -> tuple[Callable[[], nn.Module], tuple[nn.Module, Tensor]]:
    """A function that builds a network with the first of `GRID_VARIANTS` that works in a dry run on the meta device.

    Also returns the network of the dry run and its features [1, n, e]. Raises `PartError` with all reasons if no
    variant works for images of `size` pixels.
    """
    reasons = []
    for variant in GRID_VARIANTS:
        build = partial(_build_grid, variant, trunk)
        try:
            with torch.device("meta"), torch.no_grad():
                network = build().eval()
                features = flatten_grid(network(torch.empty(1, 3, size, size)))
        except Exception as error:  # networks assert, raise, or lack a method
            reasons.append(f"{error}".strip().rstrip(".") or type(error).__name__)
        else:
            return build, (network.train(), features)
    shown = "; ".join(dict.fromkeys(reasons))
    raise PartError(f"image_size: given {size}, for which this network has no feature grid: {shown}")


def _build_grid(variant: Callable[[nn.Module], nn.Module], trunk: Callable[[], nn.Module]) -> nn.Module:
    return variant(trunk())


class Timm(ImageEncoder):
    """A network of timm: the last grid before the pooling, row by row, or the patch tokens in order, [b, n, e].

    With `layer`, those of other blocks or stages, from the network's `forward_intermediates`.
    """

    name = "timm"
    check_config: ClassVar[Mapping[str, Any]] = {"model": "test_vit", "image_size": 64}

    class Config(LayerConfig, ImageConfig):
        """A `model` of timm, its weights, its image size, and the layer of the features."""

        renamed_keys = MappingProxyType({"pretrained": "weights"})

        model: str
        """Name of a timm model, with the tag of its weights if there are several."""
        weights: bool | Weights = False
        """`true` for timm's weights, a file, or `"package:NAME"`. Default: random weights."""
        match_weights_by: Literal["name", "order"] = "name"
        """How the tensors of a file are matched with those of the network. `"order"` is for the same network in another
        implementation, whose tensors have other names but the same order."""
        image_size: int | None = Field(None, ge=1)
        """Pixels per side. Default: the model's own size."""
        mean: tuple[Mean, Mean, Mean] | None = None
        """Mean of red, green and blue, from 0 to 1, that is subtracted. Default: the model's own."""
        std: tuple[Deviation, Deviation, Deviation] | None = None
        """Standard deviation of red, green and blue, at most 1. Pixels are divided by it. Default: the model's own."""

        @model_validator(mode="after")
        def _order_needs_a_file(self) -> Self:
            if self.match_weights_by == "order" and not isinstance(self.weights, str):
                raise ValueError('match_weights_by = "order" only with a file or a package as `weights`')
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        import timm

        check_model_name(self.name, config.model)
        pretrained = timm.get_pretrained_cfg(config.model)
        assert pretrained is not None
        self.mean, self.std = config.mean or pretrained.mean, config.std or pretrained.std
        size: dict[str, Any] = {}
        if config.image_size is not None and pretrained.fixed_input_size:
            size = {"img_size": config.image_size}
        pixels = config.image_size or pretrained.input_size[-1]
        trunk = partial(timm.create_model, config.model, num_classes=0, **size)
        layers = config.chosen_layers
        build, dry_run = layer_builder(trunk, pixels, layers) if layers else grid_builder(trunk, pixels)
        super().__init__(config, build, pixels, dry_run)

    @staticmethod
    def features(network: nn.Module, x: Tensor) -> Tensor:
        """Images [b, 3, s, s] to features [b, n, e]."""
        return flatten_grid(network(x))

    def load_weights(self) -> None:
        """Load timm's weights or those of a file, or draw random ones. Raises `PartError`."""
        if self.config.weights is False:
            self.init_weights()
            return
        state = load_timm_state(self.name, self.config.model, self.config.weights)
        whole = _all_tensors(self.config.model)
        if self.config.match_weights_by == "order":
            state = rename_in_order(state, whole, f"timm weights {self.config.weights}")
        wanted = {name.removeprefix("trunk.") for name in self.network.state_dict()}
        left_out = whole.keys() - wanted
        heads = ("head.", "fc.", "classifier.", "fc_norm.")  # of any number of classes
        kept = {
            f"trunk.{name}": tensor
            for name, tensor in state.items()
            if name in wanted or not (name in left_out or name.startswith(heads))
        }
        self.load_state(kept, f"timm weights {self.config.weights}")

    @classmethod
    def problems(cls, config: Config) -> list[str]:
        """Missing files, and weights that are not available."""
        problems = find_timm_problems(config.model, config.weights)
        if config.match_weights_by == "order" and isinstance(config.weights, str) and not problems:
            problems += find_order_problems(config.weights)
        return problems


def _all_tensors(model: str) -> dict[str, Tensor]:
    """The tensors of the whole network, including the classifier, on the meta device."""
    import timm

    with torch.device("meta"):
        found: dict[str, Tensor] = timm.create_model(model).state_dict()
    return found


# Shared with other encoders of timm


def check_model_name(part: str, model: str, names: list[str] | None = None) -> None:
    """Raise `PartError` for a name that is unknown to timm (or not in `names`)."""
    import timm

    known = names or timm.list_models()
    if model.split(".")[0] not in known or (model not in known and model not in timm.list_pretrained()):
        shown = ", ".join(names) if names else "a name from timm.list_models()"
        raise PartError(f'{part} model: given "{model}".{did_you_mean(model, known)} Allowed: {shown}')


def load_timm_state(part: str, model: str, source: str | bool) -> dict[str, Tensor]:
    """The pretrained tensors of a model of timm, or those of a file. Raises `PartError`."""
    if isinstance(source, str):
        return read_state(source)
    import timm

    try:
        state: dict[str, Tensor] = timm.create_model(model, pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises many kinds
        raise PartError(describe_failed_download(f"{part}: weights of {model}", error)) from error
    return state


def find_timm_problems(model: str, source: str | bool) -> list[str]:
    """Missing files, and weights that are not available from the hub."""
    if isinstance(source, str):
        return find_file_problems(source, "true, false, a file or package:NAME")
    if not source:
        return []
    import timm

    found = timm.get_pretrained_cfg(model)
    if found is None or not found.hf_hub_id:
        return []
    problem = hub_problem(found.hf_hub_id, "model.safetensors", "pytorch_model.bin")
    return [f"weights: {problem}"] if problem else []
