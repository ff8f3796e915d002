"""The callback newname."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""


class NewPart(magma.Callback):
    """Stops the training when the mean loss of some steps is low enough."""

    name = "newname"

    class Config(magma.PartConfig):
        """The training stops when the mean `loss` of the last `steps` steps is reached."""

        loss: float = Field(0.1, ge=0)
        steps: int = Field(100, ge=1)

    config: Config

    def __init__(self, config: magma.PartConfig) -> None:
        super().__init__(config)
        self.losses: list[float] = []

    @classmethod
    def check_inputs(cls, folder: Path) -> magma.CheckInputs:
        """The configuration for `magma plugin check newname`."""
        return magma.CheckInputs({"loss": 2.5, "steps": 3})

    def on_step_end(self, context: magma.CallbackContext) -> None:
        """Called after every optimizer step."""
        if context.metrics["loss"] is None:  # it is not finite, and the step was skipped
            return
        self.losses = [*self.losses, context.metrics["loss"]][-self.config.steps :]
        mean = sum(self.losses) / len(self.losses)
        if len(self.losses) == self.config.steps and mean <= self.config.loss:
            context.request_stop(f"the mean loss is {mean:.4f}")

    def state_dict(self) -> dict[str, Any]:
        """JSON or tensors, saved in every checkpoint."""
        return {"losses": self.losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.losses = list(state["losses"])


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
