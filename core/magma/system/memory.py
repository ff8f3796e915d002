"""Memory of a device: how much is available, and how to continue when it runs out."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import OutOfMemory
from ..io import error_summary

T = TypeVar("T")
R = TypeVar("R")
_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "could not create a primitive",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Parts of messages of libraries for which torch raises a plain RuntimeError."""
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def free_unused() -> None:
    """Free unreferenced memory: a failed pass leaves reference cycles and cached blocks."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available(device: str) -> int:
    """Bytes that this process can use: of its GPU, or its part of the free main memory."""
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    return _main_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _main_memory() -> int:
    """Bytes that are available on this machine or in this container."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        line = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        limits.append(1024 * int(line.split()[1]))
    with contextlib.suppress(OSError, ValueError):  # "max" is not a number: there is no limit
        limits.append(int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text()))
    return max(0, min(limits, default=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))


def in_pieces(items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]], size: int | None = None) -> list[R]:
    """Call `work` on batches of the items, at most `size` each, and smaller ones if memory runs out.

    Args:
        items: What to process.
        work: Returns a result for each item of a batch.
        size: The largest batch; None: all items.

    Returns:
        The results in order.

    Raises:
        OutOfMemory: If a single item needs too much memory.
    """
    return BatchMapper(size or max(1, len(items)))(items, work)


class BatchMapper:
    """The same for several calls: a size that was too large is not tried again."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        found: list[R] = []
        while len(found) < len(items):
            piece = items[len(found) : len(found) + self.size]
            try:
                found += work(piece)
                continue
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                if len(piece) == 1:
                    raise OutOfMemory(
                        f"memory ran out with a single prompt: {memory_error_summary(error)}. Shorter prompts, smaller "
                        "media, fewer tokens to generate or half precision need less"
                    ) from None
            self.size = len(piece) // 2
            free_unused()  # not before the error and its frames are gone
        return found


def memory_error_summary(error: BaseException) -> str:
    """An error's message without the position in torch's source and the allocator's advice."""
    text = error_summary(error)
    return text.partition("err == 0. ")[2].partition(". ")[0] or text.partition(". ")[0].rstrip(".")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory. By default it returns tensors of a few megabytes to the system each time.

    On a CPU the page faults for new ones took a third of a small step. Variables MALLOC_... of the environment have
    priority.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for option, size in ((_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 512 * 2**20), (_TOP_PAD, 64 * 2**20)):
        mallopt(option, size)
