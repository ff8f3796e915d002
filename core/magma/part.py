"""What every part has: its name, its `Config`, its weights and whether they are frozen."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from torch import nn

from .deprecation import RenamedMember, move_overrides, with_current_keys
from .values import CheckInputs


class PartConfig(BaseModel):
    """Base of every part's `Config`: frozen, and a key it does not know is an error.

    TOML has no null: `false` unsets a key whose default is None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)
    legacy_defaults: ClassVar[Mapping[str, Any]] = {}
    """What keys that were added later stand for in a checkpoint that lacks them, where that is not their default."""
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Former to current name of a key. A recipe may still use the former one, with a `DeprecationWarning`."""

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
    """Something a recipe can name.

    A concrete part sets `name`, what a recipe's `use = "..."` says, and a `Config` whose fields are the rest of
    the recipe's table. `kind` is set by the abstract classes below.
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
        """What is missing on this machine before `config` can be used (files, packages), without loading anything."""
        return []

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """What to try this part with; files that it needs are written into `folder`. By default: no field set."""
        return CheckInputs()

    trial = RenamedMember("check_inputs")


class Module(Part, nn.Module):
    """A part with weights.

    `__init__` builds the structure and must work under `torch.device("meta")`; `load_weights` then fills in what
    the config names. A frozen module stays in eval mode whatever `train()` is told.
    """

    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen = False

    @classmethod
    def build(cls, *context: Any, **fields: Any) -> Self:
        """A ready instance from config fields, weights loaded: `Lidar.build(width=32)`.

        `context` are the sizes that the class takes after its config, such as a prefix's three.
        """
        part = cls(cls.Config(**fields), *context)
        part.load_weights()
        return part

    def load_weights(self) -> None:  # optional: a part that starts from scratch has nothing to load
        """Load the pretrained weights that the config names. Called once, never on meta."""

    def init_weights(self) -> None:  # optional: most parts leave nothing on meta
        """Called in place of `load_weights` where better weights will follow: fills what `__init__` left on meta."""

    def freeze(self) -> None:
        """No gradient, and eval mode for good."""
        self.frozen = True
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)
