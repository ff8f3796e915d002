"""Rank of this process and number of processes, from the launcher's environment variables."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import TrainingError

REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torch.distributed needs to connect the processes; launchers set all of them."""
_NUMBERS = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
"""Variables that are whole numbers, and the lowest allowed value of each."""


class Ranks(NamedTuple):
    """Rank of this process among `size` processes."""

    rank: int = 0
    size: int = 1


def is_first() -> bool:
    """Whether this is the first process, which reports."""
    return os.environ.get("RANK", "0") == "0"


def ranks() -> Ranks:
    """Rank and number of processes; without RANK in the environment this is the only process.

    Raises:
        TrainingError: If the variables are incomplete, or not valid numbers.
    """
    if "RANK" not in os.environ:
        return Ranks()
    if missing := [name for name in REQUIRED if not os.environ.get(name)]:
        raise TrainingError(
            f"RANK={os.environ['RANK']} is set in the environment, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not: a launcher sets all of them. Unset RANK to train in one "
            "process, or start several with --nproc or torchrun"
        )
    for name, least in _NUMBERS.items():
        given = os.environ.get(name, str(least))
        if not (given.isascii() and given.isdigit() and int(given) >= least):
            raise TrainingError(f"{name} in the environment: given {given!r}; allowed: a whole number, {least} or more")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank >= size:
        raise TrainingError(f"RANK in the environment: given {rank}; allowed: less than WORLD_SIZE, which is {size}")
    return Ranks(rank, size)
