"""The paper's classification head (section 4.1.3). Axes: m rows, d language-model width, c classes."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from torch import Tensor, nn

from magma import CheckInputs, Head, PartConfig


class LinearHead(Head):
    """One linear map from the last layer's hidden state of the last token to the classes."""

    name = "linear"

    class Config(PartConfig):
        """`classes` are the labels that examples may have; their order is that of the logits."""

        classes: tuple[str, ...] = Field(min_length=2)

        @field_validator("classes")
        @classmethod
        def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
            if len(set(classes)) < len(classes):
                raise ValueError("classes that all differ")
            return classes

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__(config, dim)
        self.classes = config.classes
        self.projection = nn.Linear(dim, len(config.classes))

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Three classes."""
        return CheckInputs({"classes": ("entailment", "neutral", "contradiction")})

    def forward(self, hidden: Tensor) -> Tensor:
        """[m, d] to [m, c]."""
        out: Tensor = self.projection(hidden)
        return out
