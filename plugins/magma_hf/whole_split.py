"""Finds where a feature function ends with a projector: one module that maps features [b, n, e] to embeddings.

Axes: b batch, n features, e width of a feature, d width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import whole_model
from .whole_model import Modality


@torch.no_grad()
def find_projector_path(module: Any, modality: Modality, given: Mapping[str, Tensor]) -> str | None:
    """Path of the outermost module whose output is the result of the feature function for one medium.

    Args:
        module: The module with the feature function.
        modality: What is read.
        given: One medium.

    Returns:
        The path. None: there is no such module, or it is not called with one tensor [1, n, e] or [n, e].
    """
    calls: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(part: nn.Module, args: tuple[Any, ...], options: Mapping[str, Any], output: Any) -> None:
        if len(args) == 1 and not options and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls[part] = args[0], output

    hooks = [part.register_forward_hook(keep, with_kwargs=True) for part in module.modules() if part is not module]
    try:
        features = whole_model.call(module, modality, given)
    finally:
        for hook in hooks:
            hook.remove()
    path: str
    for path, part in module.named_modules():
        if part in calls and any(True for _ in part.parameters()):
            before, after = calls[part]
            flat = after.reshape(-1, after.shape[-1])
            if _is_one_medium(before) and torch.equal(flat, features):
                return path
    return None


def _is_one_medium(features: Tensor) -> bool:
    return features.ndim == 2 or (features.ndim == 3 and features.shape[0] == 1)
