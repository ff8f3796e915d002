"""No prefix: the encoder gives embeddings for the language model already.

Axes: b batch, n features, d language-model width.
"""

from __future__ import annotations

from pathlib import Path

from magma import CheckInputs, Features, PartConfig, PartError, Prefix


class Identity(Prefix):
    """Each feature is an embedding: k = n, and the encoder's width is the language model's."""

    name = "identity"

    def __init__(self, config: PartConfig, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        if encoder_dim != dim:
            raise PartError(
                f"identity: the encoder's features have the width {encoder_dim}; allowed: {dim}, that of the language "
                "model"
            )
        self.length = encoder_length

    def num_embeddings(self, features: int) -> int:
        """One embedding per feature."""
        return features

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Features that are as wide as embeddings."""
        return CheckInputs(widths=(8, 8))

    def forward(self, features: Features) -> Features:
        """[b, n, d] as it is."""
        return features
