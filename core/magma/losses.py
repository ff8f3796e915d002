"""What a part needs to compute an auxiliary loss.

Axes: b media of one input, n features, e encoder width, k prefix length, m targets, d language-model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .errors import PartError
from .values import Features


@dataclass(frozen=True)
class LossContext:
    """The tensors of one micro-batch from which `Module.auxiliary_loss` computes losses.

    If the micro-batch has no medium of an input, the tensors of this input are those of one dummy item.
    """

    input: str
    """Name of the input that the part belongs to. Empty for an adapter or a head."""
    features: Mapping[str, Features]
    """Output of each encoder [b, n, e], by input. Without gradient if the encoder is frozen."""
    embeddings: Mapping[str, Features]
    """Output of each prefix [b, k, d], by input."""
    media_sequences: Mapping[str, Tensor]
    """[b], the sequence that contains each medium, by input. Packed examples are separate sequences."""
    hidden: Tensor
    """[m, `lm.output_dim`], the hidden states that predict the targets."""
    labels: Tensor
    """[m], the target tokens; with a head, the classes."""
    target_sequences: Tensor
    """[m], the sequence that contains each target."""
    target_embeddings: Tensor | None
    """[m, d], the frozen word embeddings of the target tokens. None: the model has a head."""

    def caption_embeddings(self, input: str = "") -> Tensor:  # noqa: A002  # as the field
        """The mean word embedding of the targets, end-of-text included, of the sequence of each medium.

        Args:
            input: Name of the input. Default: that of the part.

        Returns:
            [b, d]; zeros for a medium whose sequence has no target.

        Raises:
            PartError: The model has a head: its targets are classes, not tokens.
        """
        if self.target_embeddings is None:
            raise PartError("caption_embeddings: given a model with a head; allowed: targets that are tokens")
        member = self.media_sequences[input or self.input][:, None] == self.target_sequences  # [b, m]
        total = member.to(self.target_embeddings.dtype) @ self.target_embeddings
        return total / member.sum(1, keepdim=True).clamp(min=1)
