"""Any network of timm as a feature grid before its pooling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from magma import PartConfig, PartError, Weights, did_you_mean, hub_problem

from .image import ImageEncoder, read_state


class Grid(nn.Module):
    """A timm network's features before its pooling."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        trunk.reset_classifier(0, "")
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        """[b, 3, s, s] to a grid [b, e, h, w], or to tokens [b, n, e] without the leading ones that are no patches."""
        out: Tensor = self.trunk.forward_features(x)
        return out if out.ndim == 4 else out[:, self.trunk.num_prefix_tokens :]


class Timm(ImageEncoder):
    """A network of timm: the grid of a convolutional one row by row, or a ViT's patch tokens, [b, n, e]."""

    name = "timm"
    small: ClassVar[Mapping[str, Any]] = {"model": "test_vit", "image_size": 64}

    class Config(PartConfig):
        """`model` as timm names it, with the tag of its weights where there are several."""

        model: str
        pretrained: bool | Weights = False
        """timm's weights, or a file."""
        image_size: int | None = Field(None, ge=1)
        """Pixels of a side; the model's own where it is not given."""

    config: Config

    def __init__(self, config: Config) -> None:
        import timm

        check_name(self.name, config.model)
        own = timm.get_pretrained_cfg(config.model)
        assert own is not None
        self.mean, self.std = own.mean, own.std
        size: dict[str, Any] = {}
        if config.image_size is not None and own.fixed_input_size:
            size = {"img_size": config.image_size}
        super().__init__(
            config,
            lambda: Grid(timm.create_model(config.model, num_classes=0, **size)),
            config.image_size or own.input_size[-1],
        )

    @staticmethod
    def features(network: nn.Module, x: Tensor) -> Tensor:
        """[b, 3, s, s] to [b, n, e]."""
        grid: Tensor = network(x)
        return grid.flatten(2).transpose(1, 2) if grid.ndim == 4 else grid

    def load_weights(self) -> None:
        """timm's weights, or a file's."""
        if self.config.pretrained is False:
            self.init_weights()
            return
        state = timm_state(self.name, self.config.model, self.config.pretrained)
        wanted = self.network.state_dict().keys()
        state = {f"trunk.{name}": tensor for name, tensor in state.items()}
        heads = ("trunk.head.", "trunk.fc.", "trunk.classifier.", "trunk.fc_norm.")
        kept = {name: tensor for name, tensor in state.items() if name in wanted or not name.startswith(heads)}
        self.fill(kept, f"timm pretrained {self.config.pretrained}")

    @classmethod
    def problems(cls, config: Config) -> list[str]:
        """Weights that are not there."""
        return timm_problems(config.model, config.pretrained)


# For every encoder that timm builds


def check_name(part: str, model: str, names: list[str] | None = None) -> None:
    """Raise `PartError` for a name that timm does not know (or that is none of `names`)."""
    import timm

    known = names or timm.list_models()
    if model.split(".")[0] not in known or (model not in known and model not in timm.list_pretrained()):
        shown = ", ".join(names) if names else "what timm.list_models() names"
        raise PartError(f'{part} model: given "{model}".{did_you_mean(model, known)} Allowed: {shown}')


def timm_state(part: str, model: str, source: str | bool) -> dict[str, Tensor]:
    """timm's pretrained tensors of a model, or those of a file."""
    if isinstance(source, str):
        return read_state(source)
    import timm

    try:
        state: dict[str, Tensor] = timm.create_model(model, pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises many kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise PartError(
            f"{part}: weights of {model} cannot be downloaded: {reason.rstrip('.')}. A file of them is allowed too"
        ) from error
    return state


def timm_problems(model: str, source: str | bool) -> list[str]:
    """Weights that are not there, neither on disk nor on the hub."""
    if isinstance(source, str):
        return [] if Path(source).is_file() else [f"pretrained: given {source!r}; allowed: true, false or a file"]
    if not source:
        return []
    import timm

    found = timm.get_pretrained_cfg(model)
    if found is None or not found.hf_hub_id:
        return []
    problem = hub_problem(found.hf_hub_id, "model.safetensors", "pytorch_model.bin")
    return [f"pretrained: {problem}"] if problem else []
