"""The golden checkpoints of the authors' code, and comparisons of tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"

HALF = GOLDEN / "mp_rank_00_model_states.pt"

State = dict[str, Tensor]


def state_of(name: str) -> State:
    found = load_file(GOLDEN / f"{name}.safetensors")
    return {key.removeprefix("state/"): tensor for key, tensor in found.items() if key.startswith("state/")}


def same(one: State, other: State) -> bool:
    """Names, shapes, dtypes and bits."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and torch.equal(one[n], other[n]) for n in one
    )


# What is refused


def without(name: str) -> Callable[[State], None]:
    return lambda state: [state.pop(n) for n in list(state) if n.endswith(name)] and None  # type: ignore[return-value]
