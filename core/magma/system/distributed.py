"""This process among those that train together: rank, device, sums over processes, and how to abort together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .memory import memory_error_summary, ran_out

T = TypeVar("T")
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense half-precision FLOPs per second of the manufacturers' data sheets, by a part of the GPU's name."""
_COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "reduce", "broadcast", "barrier"),
    *("reduce_scatter", "reduce_scatter_tensor", "all_gather", "all_gather_coalesced", "all_gather_into_tensor"),
    *("all_to_all", "all_to_all_single"),
)


class MemoryExhausted(Exception):
    """Memory ran out in this process or another one; all processes raise it at the same collective operation."""


class CollectiveAbort:
    """Lets all processes abort a piece of work when memory runs out in one of them.

    A process would wait for ever in a collective operation for another one that has failed. So a small all-reduce on
    the CPU comes before each operation, in which a failed process reports its failure.
    """

    def __init__(self) -> None:
        self._group: Any = torch.distributed.new_group(backend="gloo")
        self.active = False

    def guard(self, backend: Any) -> None:
        """Add the exchange before each collective operation of a communication backend."""
        for name in _COLLECTIVES:
            if plain := getattr(backend, name, None):
                setattr(backend, name, self._with_exchange(plain))

    def _with_exchange(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            if self.active:
                self.exchange()
            return plain(*args, **kwargs)

        return operation

    def exchange(self, failure: str = "") -> None:
        """Raise `MemoryExhausted` in all processes if one has failed."""
        failed = torch.tensor([int(bool(failure))])
        torch.distributed.all_reduce(failed, group=self._group)
        if failed.item():
            self.active = False
            raise MemoryExhausted(failure or "in another process")


@dataclass(frozen=True)
class DistributedContext:
    """Rank, number of processes and device of this process."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    collective_abort: CollectiveAbort | None = None
    """None for a single process."""

    @contextmanager
    def abort_together(self) -> Iterator[None]:
        """A block that all processes leave with `MemoryExhausted` if memory runs out in one of them."""
        collective = self.collective_abort
        if collective:
            collective.active = True
        try:
            yield
            if collective:
                collective.exchange()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            failure = memory_error_summary(error)
            if collective:
                collective.exchange(failure)
            raise MemoryExhausted(failure) from None
        finally:
            if collective:
                collective.active = False

    def sum(self, *values: float) -> list[float]:
        """Each value, summed over the processes."""
        if self.size == 1:
            return list(values)
        if self.collective_abort and self.collective_abort.active:
            self.collective_abort.exchange()
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; small ones that can be pickled."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            torch.distributed.barrier()

    @property
    def peak_flops(self) -> float | None:
        """FLOPs per second of this GPU in half precision by its data sheet; None if it is not in `PEAK_FLOPS`."""
        if self.device == "cpu":
            return None
        model = torch.cuda.get_device_name()
        return next((peak for part, peak in PEAK_FLOPS.items() if part in model), None)

    def memory(self) -> int:
        """Peak memory of this process in bytes: on its GPU, or in main memory without one."""
        if self.device != "cpu":
            return int(torch.cuda.max_memory_allocated())
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
