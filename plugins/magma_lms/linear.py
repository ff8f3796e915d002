"""Linear layers of transformers: those of torch, quantized ones, and GPT-2's `Conv1D`."""

from __future__ import annotations

from typing import Any

from torch import nn


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by one matrix and adds a bias. Experts in one tensor are no such module."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def features(module: Any) -> tuple[int, int]:
    """The widths of input and output."""
    return (module.nx, module.nf) if is_transposed(module) else (module.in_features, module.out_features)
