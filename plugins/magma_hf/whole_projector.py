"""The projector of a multimodal model of transformers as a prefix.

Axes: b batch, n features, e encoder width, k prefix length, d language-model width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from magma import CheckInputs, Features, PartConfig, PartError, Prefix, Weights

from . import whole_model
from .whole_folder import EXAMPLE_WIDTH, write_example


class WholeProjector(Prefix):
    """The library's own module, which maps features [b, n, e] to embeddings [b, k, d]."""

    name = "hf_projector"

    class Config(PartConfig):
        """Where the model is, and the module in it."""

        weights: Weights
        """The folder of the medium in a model that `magma import hf` wrote."""
        path: str
        """Path of the module."""
        modality: Literal["image", "audio"]
        """What the model reads with it."""

    config: Config

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self._folder = Path(config.weights)
        self._width = encoder_dim
        self._sizes: dict[int, int] = {}
        with torch.device("cpu"):
            self._counter = [self._build()]  # in a list: its weights are no weights of this part
            self.length = self.num_embeddings(encoder_length)
        with torch.device("meta"):
            self.projector = self._build()

    def _build(self) -> nn.Module:
        architecture = whole_model.read_configuration(self._folder)
        names = [name for name in whole_model.stored_names(self._folder)[0] if name.startswith(f"{self.config.path}.")]
        module = whole_model.build(architecture, self.config.modality, names)
        try:
            found: nn.Module = module.get_submodule(self.config.path)
        except AttributeError:
            raise PartError(f"path: given {self.config.path!r}, which the model does not have") from None
        return found

    def init_weights(self) -> None:
        """Draw random weights, which a checkpoint replaces."""
        self.projector = self._build().train(self.training)

    def load_weights(self) -> None:
        """Load the weights of the folder. Raises `PartError`."""
        projector = self._build()
        whole_model.load(projector, self._folder, inside=self.config.path)
        self.projector = projector.train(self.training)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """The projector of a small LLaVA."""
        write_example(folder / "image", "image")
        config = {"weights": str(folder / "image"), "path": "multi_modal_projector", "modality": "image"}
        return CheckInputs(config, widths=(EXAMPLE_WIDTH, EXAMPLE_WIDTH))

    @torch.no_grad()
    def num_embeddings(self, features: int) -> int:
        """As many as the module gives."""
        if features not in self._sizes:
            self._sizes[features] = self._counter[0](torch.ones(1, features, self._width)).flatten(1, -2).shape[1]
        return self._sizes[features]

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, k, d]."""
        out: Any = self.projector(features.values).flatten(1, -2)
        if features.lengths is None:
            return Features(out)
        sizes = [self.num_embeddings(n) for n in features.lengths.tolist()]
        return Features(out, torch.tensor(sizes, device=out.device))
