"""Work that is done ahead: in order, a little at a time, with errors as themselves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch

from magma import InputError
from magma.data.loader import PREFETCH_FACTOR, prefetch


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_prefetch_keeps_the_order(workers: int) -> None:
    def slow(n: int) -> tuple[int, int]:
        time.sleep(0.01 * (n % 3))
        return n, os.getpid()

    found = list(prefetch(range(20), slow, workers, False))
    assert [n for n, _ in found] == list(range(20))
    assert len({pid for _, pid in found}) == max(1, workers)
    assert ({pid for _, pid in found} == {os.getpid()}) is (workers == 0)


def test_prefetch_draws_no_more_than_its_factor() -> None:
    drawn: list[int] = []

    def work() -> Iterator[int]:
        for n in range(100):
            drawn.append(n)
            yield n

    made = prefetch(work(), lambda n: n, 2, False)
    assert [next(made), next(made)] == [0, 1]
    assert len(drawn) <= 2 + 2 * PREFETCH_FACTOR + 1


@pytest.mark.parametrize("workers", [0, 1])
def test_prefetch_raises_a_magma_error_unchanged_and_in_order(workers: int) -> None:
    def read(n: int) -> int:
        if n == 2:
            raise InputError(f"example {n} cannot be read")
        return n

    made = prefetch(range(5), read, workers, False)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(InputError, match=r"^example 2 cannot be read$"):
        next(made)


def test_prefetch_does_not_use_the_global_generator() -> None:
    before = torch.get_rng_state()
    list(prefetch(range(3), lambda n: torch.rand(1).item() + n, 1, False))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_ignore_stop_signals() -> None:
    """Ctrl-C reaches a terminal's whole group: the trainer saves, and has what it needs until then."""
    pids = []
    for pid in prefetch(range(8), lambda _: os.getpid(), 1, False):
        pids.append(pid)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert len(pids) == 8
