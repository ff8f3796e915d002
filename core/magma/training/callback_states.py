"""The states of callbacks in a checkpoint: JSON, and tensors as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from ..recipe.notation import parse_json

JSON, TENSORS = "callbacks.json", "callbacks.safetensors"
States = dict[str, dict[str, Any]]
"""By callback, its state: tensors and JSON by name."""


def write_states(folder: Path, states: States) -> None:
    """Write states into the state folder of a checkpoint; nothing if there are no callbacks."""
    if not states:
        return
    plain = {label: {k: v for k, v in one.items() if not isinstance(v, Tensor)} for label, one in states.items()}
    tensors = {f"{label}/{k}": v for label, one in states.items() for k, v in one.items() if isinstance(v, Tensor)}
    (folder / JSON).write_text(json.dumps(plain), encoding="utf-8")
    save_file(tensors, folder / TENSORS)


def read_states(folder: Path) -> States:
    """Read what `write_states` wrote; empty if it wrote nothing. Raises `CheckpointError` if it is damaged."""
    if not (folder / JSON).is_file():
        return {}
    try:
        states: States = parse_json((folder / JSON).read_text(encoding="utf-8"))
        for name, tensor in load_file(folder / TENSORS).items():
            label, _, key = name.partition("/")
            states[label][key] = tensor
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder.parent} has no state of callbacks to resume from: {error}") from error
    return states
