"""Which signals ask for a stop, and processes that end with their parent. Small processes that import no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from program import is_running

from magma.system import signals
from magma.system.signals import LAUNCHER, STOP_SIGNALS, exit_status, stop_requests


@contextmanager
def ignored(number: int) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_asks_for_a_stop_and_the_handlers_are_put_back(number: int) -> None:
    before = [signal.getsignal(one) for one in STOP_SIGNALS]
    with stop_requests() as request:
        assert not request
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # at once: a service manager signals everyone, and the launcher passes it on
        assert request
        assert request.number == number
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == before


def test_exit_statuses_are_those_of_shells() -> None:
    statuses = {number.name: exit_status(number) for number in STOP_SIGNALS}
    assert statuses == {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 128 + signal.SIGUSR1}


def test_a_later_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "REPEAT_S", 0.0)
    again: list[int] = []
    with stop_requests(again.append) as request:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (request.number, again) == (signal.SIGHUP, [signal.SIGTERM])
    with stop_requests():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(signals, "_launched", True)  # then the launcher ends it
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.number == signal.SIGINT


def test_an_ignored_signal_stays_ignored() -> None:
    """As nohup wants it of SIGHUP."""
    with ignored(signal.SIGHUP), stop_requests() as request:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not request
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.number == signal.SIGTERM


def test_a_thread_handles_no_signals() -> None:
    found: list[bool] = []

    def work() -> None:
        with stop_requests() as request:
            found.append(bool(request))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


SLEEPS = "from magma.system import signals; {how}; print('ready', flush=True); import time; time.sleep(600)"
STARTS = (
    "import os, subprocess, sys; os.environ.update({variable}); "
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE); "
    "child.stdout.readline(); print(child.pid, flush=True); child.wait()"
)


MAGMAS = "{'MAGMA_LAUNCHER': str(os.getpid())}"


@pytest.mark.parametrize(
    ("variable", "how"),
    [
        (MAGMAS, "signals.end_with_launcher()"),
        ("{'TORCHELASTIC_RUN_ID': 'x'}", "signals.end_with_launcher()"),
        ("{'CROSS_RANK': '0'}", "signals.end_with_launcher()"),
        (
            MAGMAS,
            "signals._kernel_ends_with_parent = lambda: False; signals._WATCH_S = 0.01; signals.end_with_launcher()",
        ),
    ],
    ids=["magma", "torchrun", "deepspeed", "without prctl"],
)
def test_a_process_ends_when_its_launcher_is_killed(variable: str, how: str) -> None:
    words = [sys.executable, "-c", STARTS.format(variable=variable), SLEEPS.format(how=how)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        child = int(launcher.stdout.readline())
        assert is_running(child)
        launcher.kill()
    deadline = time.monotonic() + 120
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


def test_a_process_whose_launcher_has_ended_before_it_watches_ends_too() -> None:
    environment = {**os.environ, LAUNCHER: "1" if os.getpid() != 1 else "2"}
    done = subprocess.run([sys.executable, "-c", SLEEPS.format(how="signals.end_with_launcher()")], env=environment)
    assert done.returncode == -signal.SIGKILL


def test_the_launcher_is_not_that_of_a_processs_own_children(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setenv(LAUNCHER, "123")
    monkeypatch.setattr(signals, "end_with_parent", seen.append)
    monkeypatch.setattr(signals, "_launched", False)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        signals.end_with_launcher()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # what is ignored stays ignored
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [123]
    assert LAUNCHER not in os.environ
