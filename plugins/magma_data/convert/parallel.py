"""A parallel map over processes that end with their parent."""

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


def parallel_map(work: Callable[[In], Out], jobs: Iterator[In], workers: int) -> Iterator[Out]:
    """Results of `work` for each job, in order of completion. At most two jobs per worker are pending."""
    if workers == 1:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["webdataset"])  # it imports torch: once, instead of in every process
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        try:
            running: set[Future[Out]] = {pool.submit(work, job) for job in islice(jobs, 2 * workers)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    running |= {pool.submit(work, job) for job in islice(jobs, 1)}
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process was killed, perhaps because of low memory; resume with the same "
                "command, if necessary with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when its parent ends, and without a traceback on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
