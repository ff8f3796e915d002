"""Signals that request a stop, and processes that end with their parent.

A stopped run saves a checkpoint and exits with 128 plus the signal's number. This module imports only the standard
library, because a launched process watches its parent before it loads anything else.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C; docker, Kubernetes and systemd; a closed terminal; SLURM's warning before the time limit."""
LAUNCHER = "MAGMA_LAUNCHER"
"""Environment variable: process id of the `magma` that started this process and forwards signals to it."""
REPEAT_S = 1.0
"""Signals within this many seconds are one request: a service manager signals the launcher and its children."""
_WATCH_S = 1.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FOREIGN_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
"""Variables of torchrun and DeepSpeed's launcher. Their processes have to end with them."""
_launched = False


class StopRequest:
    """The first signal that requested a stop; false while there is none."""

    number = 0

    def __bool__(self) -> bool:
        return self.number != 0


def exit_status(number: int) -> int:
    """The exit status of a program that a signal has ended, as shells report it."""
    return 128 + number


def end_at_once(number: int) -> None:
    """Do what the signal does by default."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextmanager
def stop_requests(again: Callable[[int], None] | None = None) -> Iterator[StopRequest]:
    """Handle `STOP_SIGNALS`: the first one is recorded, a later one calls `again`, which ends the process by default.

    A launcher kills the processes that it started, so that they ignore a later signal. A signal that is ignored stays
    ignored (nohup). Only the main thread can handle signals; in another one nothing is requested.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    repeated = again or ((lambda _: None) if _launched else end_at_once)
    first = 0.0

    def handler(number: int, _: object) -> None:
        nonlocal first
        if not request:
            request.number, first = number, time.monotonic()
        elif time.monotonic() - first > REPEAT_S:
            repeated(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in handled:
        signal.signal(number, handler)
    try:
        yield request
    finally:
        for number, old in handled.items():
            signal.signal(number, old)


def ignore_stop_signals() -> None:
    """Ignore the signals in a child that its parent needs until it has saved."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_launcher() -> None:
    """In a process that a launcher started: end when the launcher ends, even if it could not forward a signal."""
    global _launched
    parent = os.environ.pop(LAUNCHER, None)  # it is not the launcher of this process's own children
    if parent is not None:
        _launched = True
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # It waits for the end of a C function, such as one that waits for the other processes.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        end_with_parent(int(parent))
    elif any(name in os.environ for name in _FOREIGN_LAUNCHERS):
        end_with_parent(os.getppid())


def end_with_parent(parent: int) -> None:
    """Kill this process when process `parent`, which started it, ends.

    Linux does that itself; elsewhere a thread watches. On Linux the thread of the parent that started this process
    counts as the parent.
    """
    if not _kernel_ends_with_parent():
        threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()
    if os.getppid() != parent:  # it has ended before this line
        os.kill(os.getpid(), signal.SIGKILL)


def _kernel_ends_with_parent() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        return int(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int) -> None:
    """Kill this process when its parent changes: a process whose parent has ended gets a new one."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os.kill(os.getpid(), signal.SIGKILL)
