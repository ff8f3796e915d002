"""The toy language model with weights in a folder, as an import brings them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from toys import ToyLM

from magma import PartConfig, PartError, Weights, hookimpl

FILE, NOTES = "model.safetensors", "config.json"


class StoredLM(ToyLM):
    name = "stored"

    class Config(ToyLM.Config):
        weights: Weights

    config: Config

    def load_weights(self) -> None:
        try:
            self.load_state_dict(load_file(Path(self.config.weights) / FILE))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise PartError(f"lm.weights: {self.config.weights}/{FILE} cannot be read: {error}") from error

    @classmethod
    def problems(cls, config: PartConfig) -> list[str]:
        assert isinstance(config, StoredLM.Config)
        return [] if (Path(config.weights) / FILE).is_file() else [f"weights: {config.weights} has no {FILE}"]


class PlannedLM(StoredLM):
    """Cannot be built, not even on meta, where its folder is not there."""

    name = "planned"

    def __init__(self, config: StoredLM.Config) -> None:
        if problems := self.problems(config):
            raise PartError(f"lm.{problems[0]}")
        super().__init__(config)


def bring(folder: Path) -> None:
    """Put weights and a note into `lm/`."""
    (folder / "lm").mkdir()
    torch.manual_seed(3)
    model = ToyLM(ToyLM.Config())
    save_file(model.state_dict(), folder / "lm" / FILE)
    (folder / "lm" / NOTES).write_text('{"dim": 16}\n')


@hookimpl
def magma_parts() -> list[type]:
    return [StoredLM, PlannedLM]
