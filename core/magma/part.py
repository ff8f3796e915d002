"""Base classes of parts: name, `Config`, weights, and whether they are frozen."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from torch import Tensor, nn

from .deprecation import RenamedMember, move_overrides, with_current_keys
from .losses import LossContext
from .values import CheckInputs


class PartConfig(BaseModel):
    """Base of every part's `Config`. Instances are immutable, and an unknown key is an error.

    TOML has no null: `false` resets a key whose default is None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)
    legacy_defaults: ClassVar[Mapping[str, Any]] = {}
    """Values, in old checkpoints, of keys that were added later, if they differ from the default."""
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Former to current name of a key. Recipes may use the former name, with a `DeprecationWarning`."""

    @classmethod
    def rename_keys(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The same values under the current names; of two names of one key, the one that was given last counts."""
        return with_current_keys(given, cls.renamed_keys, warn=False)

    @model_validator(mode="before")
    @classmethod
    def _false_unsets(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, dict):
            return given
        warn = not (info.context or {}).get("checkpoint")  # nobody edits the recipe of a checkpoint
        optional = {
            name
            for name, field in cls.model_fields.items()
            if not field.is_required() and field.default is None and bool not in get_args(field.annotation)
        }
        current = with_current_keys(given, cls.renamed_keys, warn)
        return {key: value for key, value in current.items() if value is not False or key not in optional}


class Part(ABC):
    """Something that a recipe can name.

    A concrete part sets `name`, which recipes write after `use =`, and a `Config`, whose fields are the other keys of
    the recipe's table. `kind` is set by the abstract classes of `interfaces.py`.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    Config: ClassVar[type[PartConfig]] = PartConfig
    config: PartConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        move_overrides(cls, stacklevel=3)  # the class statement calls ABCMeta.__new__, which calls this

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        """Files and packages that this machine lacks to use `config`, one line each. Nothing is loaded."""
        return []

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Inputs for the conformance checks; their files are written to `folder`. Default: the default config."""
        return CheckInputs()

    trial = RenamedMember("check_inputs")


class Module(Part, nn.Module):
    """A part with weights.

    `__init__` builds the structure and must work under `torch.device("meta")`; `load_weights` then loads the weights
    that the config names. A frozen module stays in eval mode even after `train()`.
    """

    auxiliary_losses: ClassVar[tuple[str, ...]] = ()
    """Names of the losses that `auxiliary_loss` returns. Default: none."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen = False

    @classmethod
    def build(cls, *context: Any, **fields: Any) -> Self:
        """Build an instance with its weights: `Lidar.build(width=32)`.

        Args:
            context: Sizes that the class takes after its config, such as the three of a prefix.
            fields: Keys of the config.
        """
        part = cls(cls.Config(**fields), *context)
        part.load_weights()
        return part

    def load_weights(self) -> None:  # optional: a part that starts from scratch has nothing to load
        """Load the pretrained weights that the config names. Called once, never on meta."""

    def init_weights(self) -> None:  # optional: most parts leave nothing on meta
        """Called instead of `load_weights` if a checkpoint has the weights: allocate what `__init__` left on meta."""

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        """Losses that are added to the training loss while the part is trained, each times its `train.loss_weights`.

        It is called after each forward pass of training, for every module of the part. It has to give finite values for
        a single item, and to run the same submodules in every call: a micro-batch without media of the part's input has
        one dummy item, whose losses count nothing.

        Args:
            context: The tensors of the micro-batch.

        Returns:
            A scalar for each of `auxiliary_losses`: the mean over the media of the part's input; for an adapter or a
            head, over the examples.
        """
        return {}

    def freeze(self) -> None:
        """Disable gradients and keep the module in eval mode."""
        self.frozen = True
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)
