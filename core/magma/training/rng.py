"""The random generators of a process: that of the CPU, and that of its GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..system.world import World


def own_generators(world: World) -> list[Tensor]:
    """Of the CPU, and of this process's GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if world.device != "cpu" else [])]


def set_own_generators(states: Sequence[Tensor]) -> None:
    """Back to what `own_generators` gave."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)


def all_generators(world: World) -> dict[str, Tensor]:
    """The random generators of every process, by rank."""
    own = own_generators(world)
    kinds = ("cpu", "device")
    return {f"{kinds[i]}.{rank}": t for rank, one in enumerate(world.gather(own)) for i, t in enumerate(one)}


def restore_generators(world: World, generators: Mapping[str, Tensor]) -> None:
    """This process's among those that `all_generators` gave; a new process keeps its own."""
    if f"cpu.{world.rank}" in generators:
        torch.set_rng_state(generators[f"cpu.{world.rank}"])
    if world.device != "cpu" and f"device.{world.rank}" in generators:
        torch.cuda.set_rng_state(generators[f"device.{world.rank}"])
