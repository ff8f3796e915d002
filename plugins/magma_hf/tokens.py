"""Separates class, register and distillation tokens from patches.

Axes: b batch, n features, e width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from . import sizes
from .samples import Sample

FeatureKind = Literal["patches", "cls", "all"]
CLASS_TOKENS = ("cls_token", "class_embedding", "class_token", "cls_tokens", "class_embed", "cls_embedding")
OTHER_TOKENS = ("register_tokens", "distillation_token", "dist_token", "registers", "register_token", "storage_tokens")
LAST_TOKENS = ("detection_tokens", "det_tokens")
"""Names of the parameters that become tokens besides the patches, in the library's models."""


@dataclass(frozen=True)
class Tokens:
    """How many tokens of a sequence are no patches."""

    first: int = 0
    """Number of special tokens before the patches."""
    last: int = 0
    """Number of special tokens after them."""
    has_class: bool = False
    """Whether the first token is a class token."""

    def count(self, length: int, kind: FeatureKind) -> int:
        """Number of features of a sequence of `length` tokens."""
        return {"cls": 1, "all": length, "patches": length - self.first - self.last}[kind]

    def select(self, x: Tensor, kind: FeatureKind) -> Tensor:
        """[b, n, e] to the features of this kind."""
        if kind == "cls":
            return x[:, :1]
        return x if kind == "all" else x[:, self.first : x.shape[1] - self.last]


def find_tokens(model: Any, sample: Sample, length: int) -> Tokens:
    """The special tokens of a tower.

    They are counted by the tower's parameters, and have to be what the sequence has more than the grid of patches.

    Raises:
        ValueError: The numbers differ.
    """
    extra = _extra(model, sample, length)
    if extra is None or extra <= 0:
        return Tokens()
    named = [(name.rpartition(".")[2], p) for name, p in model.named_parameters()]
    sums = [
        sum(_rows(p) for name, p in named if name in wanted) for wanted in (CLASS_TOKENS, OTHER_TOKENS, LAST_TOKENS)
    ]
    if sum(sums) == extra:
        return Tokens(sums[0] + sums[1], sums[2], sums[0] > 0)
    if extra == 1:
        return Tokens(1, 0, True)
    raise ValueError(f"it has {length} tokens and {length - extra} patches, and {sum(sums)} parameters of tokens")


def _rows(parameter: Tensor) -> int:
    return int(parameter.shape[-2]) if parameter.ndim > 1 else 1


def _extra(model: Any, sample: Sample, length: int) -> int | None:
    """What the sequence has more than the grid of patches; None if there is no such grid."""
    patch = sizes.patch_size(model.config)
    if sample.modality != "image" or sample.packed or patch is None or sample.main.ndim != 3 or len(sample.values) > 1:
        return None
    height, width = sample.main.shape[-2:]
    grid = (height // patch[0]) * (width // patch[1])
    return length - grid if 0 <= length - grid <= 128 and length < 2 * grid + 16 else None
