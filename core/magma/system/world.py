"""This process among all that train together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .memory import first_line, ran_out

T = TypeVar("T")
PEAKS = {
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
"""Dense half-precision FLOPs a second, from the makers' datasheets, by what is in a GPU's name."""
_COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "reduce", "broadcast", "barrier"),
    *("reduce_scatter", "reduce_scatter_tensor", "all_gather", "all_gather_coalesced", "all_gather_into_tensor"),
    *("all_to_all", "all_to_all_single"),
)


class MemoryShort(Exception):
    """Memory ran out here or in another process; all processes raise it at the same place of their communication."""


class Agreement:
    """What lets several processes abandon a piece of work together when memory runs out in one of them.

    A process that waits in a collective operation for one that has failed would wait for ever. So each operation
    is preceded by a small one, in a group of the main memory's own, in which a process that has failed says so.
    """

    def __init__(self) -> None:
        self._group: Any = torch.distributed.new_group(backend="gloo")
        self.active = False

    def guard(self, backend: Any) -> None:
        """Let the operations of a communication backend ask first."""
        for name in _COLLECTIVES:
            if plain := getattr(backend, name, None):
                setattr(backend, name, self._asking_first(plain))

    def _asking_first(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            if self.active:
                self.exchange()
            return plain(*args, **kwargs)

        return operation

    def exchange(self, failure: str = "") -> None:
        """Raise `MemoryShort` in all processes if one has failed."""
        failed = torch.tensor([int(bool(failure))])
        torch.distributed.all_reduce(failed, group=self._group)
        if failed.item():
            self.active = False
            raise MemoryShort(failure or "in another process")


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    agreement: Agreement | None = None
    """None where there is one process."""

    @contextmanager
    def abandoned_together(self) -> Iterator[None]:
        """A piece of work that all processes abandon with `MemoryShort` if memory runs out in one of them."""
        agreement = self.agreement
        if agreement:
            agreement.active = True
        try:
            yield
            if agreement:
                agreement.exchange()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            failure = first_line(error)
            if agreement:
                agreement.exchange(failure)
            raise MemoryShort(failure) from None
        finally:
            if agreement:
                agreement.active = False

    def sum(self, *values: float) -> list[float]:
        """Each value, summed over the processes."""
        if self.size == 1:
            return list(values)
        if self.agreement and self.agreement.active:
            self.agreement.exchange()
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank; small ones that can be pickled."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            torch.distributed.barrier()

    @property
    def peak(self) -> float | None:
        """FLOPs a second of this GPU in half precision by its datasheet; None where it is not known here."""
        if self.device == "cpu":
            return None
        model = torch.cuda.get_device_name()
        return next((peak for part, peak in PEAKS.items() if part in model), None)

    def memory(self) -> int:
        """The most bytes this process has held: of its GPU, of main memory without one."""
        if self.device != "cpu":
            return int(torch.cuda.max_memory_allocated())
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
