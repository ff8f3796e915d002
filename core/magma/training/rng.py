"""The random generators of a process: the CPU's and its GPU's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..system.distributed import DistributedContext


def get_rng_states(world: DistributedContext) -> list[Tensor]:
    """The states of the generators of the CPU and of this process's GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if world.device != "cpu" else [])]


def set_rng_states(states: Sequence[Tensor]) -> None:
    """Restore what `get_rng_states` gave."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)


def gather_rng_states(world: DistributedContext) -> dict[str, Tensor]:
    """The states of every process's generators: `cpu.RANK`, `device.RANK`."""
    own = get_rng_states(world)
    kinds = ("cpu", "device")
    return {f"{kinds[i]}.{rank}": t for rank, one in enumerate(world.gather(own)) for i, t in enumerate(one)}


def load_rng_states(world: DistributedContext, states: Mapping[str, Tensor]) -> None:
    """Restore this process's states among those that `gather_rng_states` gave; a new process keeps its own."""
    if f"cpu.{world.rank}" in states:
        torch.set_rng_state(states[f"cpu.{world.rank}"])
    if world.device != "cpu" and f"device.{world.rank}" in states:
        torch.cuda.set_rng_state(states[f"device.{world.rank}"])
