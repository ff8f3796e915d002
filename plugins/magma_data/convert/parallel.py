"""Work shared among processes that end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from magma import InputError

In = TypeVar("In")
Out = TypeVar("Out")


def parallel_map(work: Callable[[In], Out], given: Iterator[In], workers: int) -> Iterator[Out]:
    """`work` over everything given, by processes, in the order in which it is done; few jobs are held at a time."""
    if workers == 1:
        yield from map(work, given)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["webdataset"])  # it loads torch: once, not in every process
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        try:
            running: set[Future[Out]] = {pool.submit(work, one) for one in islice(given, 2 * workers)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    running |= {pool.submit(work, one) for one in islice(given, 1)}
        except BrokenProcessPool as error:
            raise InputError(
                "a worker was killed, perhaps for want of memory; the same command goes on, with fewer --workers if so"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker outlives no conversion that is killed, and ends without a word at Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
