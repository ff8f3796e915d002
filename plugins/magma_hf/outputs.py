"""Reads features from what a model of transformers returns.

Axes: b batch, n features, e width, h, w sides of a grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .sizes import widths

FIELDS = ("encoder_last_hidden_state", "last_hidden_state", "vision_model_output", "feature_maps")
"""Fields of an output in order of preference; the last of several maps counts."""


def last_hidden_state(output: Any) -> Tensor | None:
    """The features of an output, with any axes; None if it has none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        found = (_last_tensor(output.get(name)) for name in FIELDS)
        return next((x for x in found if x is not None), None)
    values = output if isinstance(output, (tuple, list)) else ()
    return next((x for x in values if isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2), None)


def _last_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)) and value and all(isinstance(one, Tensor) for one in value):
        last: Tensor = value[-1]
        return last
    return last_hidden_state(value) if isinstance(value, Mapping) else None


def hidden_states(output: Any) -> tuple[Tensor, ...]:
    """The hidden states before and after the layers; empty if the model does not return them."""
    for name in ("hidden_states", "encoder_hidden_states", "vision_hidden_states"):
        found = output.get(name) if isinstance(output, Mapping) else None
        if isinstance(found, (tuple, list)) and found and all(isinstance(one, Tensor) for one in found):
            return tuple(found)
    return ()


def as_sequence(x: Tensor, architecture: Any, rows: int) -> Tensor:
    """Features with any axes to [b, n, e].

    A grid is read row by row. Which axis has the width is known from the configuration; otherwise a grid [b, e, h, w]
    has it first, and a sequence last.

    Raises `ValueError` for other axes.
    """
    known = widths(architecture)
    if x.ndim == 4 and x.shape[0] == rows:
        last = x.shape[-1] in known and x.shape[1] not in known
        return x.flatten(1, 2) if last else x.flatten(2).transpose(1, 2)
    if x.ndim == 5 and x.shape[0] == rows:
        last = x.shape[-1] in known and x.shape[1] not in known
        return x.flatten(1, 3) if last else x.flatten(2).transpose(1, 2)
    if x.ndim == 3 and x.shape[0] == rows:
        first = x.shape[1] in known and x.shape[2] not in known
        return x.transpose(1, 2) if first else x
    if x.ndim == 2 and x.shape[0] == rows:
        return x[:, None]
    if x.ndim == 3 and x.shape[0] % rows == 0:  # frames as rows
        return x.reshape(rows, -1, x.shape[-1])
    raise ValueError(f"its output {list(x.shape)} has other axes than [b, n, e]")
