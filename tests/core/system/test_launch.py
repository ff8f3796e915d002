"""Processes that are started together: signals, exit statuses, hosts. Small ones, which import no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import is_running

from magma import InputError, TrainingError
from magma.system import launch
from magma.system.launch import Child, read_hostfile, supervise

WAITS = (
    "import signal, sys, time; signal.signal(signal.SIG{name}, lambda *_: sys.exit({status})); "
    "open(sys.argv[1], 'w').close(); time.sleep(600)"
)


def start(*codes: str, argument: object = "") -> Iterator[Child]:
    for i, code in enumerate(codes):
        words = [sys.executable, "-c", code, f"{argument}{i}"]
        yield Child(f"process {i}", subprocess.Popen(words, start_new_session=True))


def signalled(number: int, ready: list[Path], gap: float = 0.0, count: int = 1) -> None:
    """Send signals to this process once these files exist."""

    def send() -> None:
        while not all(file.exists() for file in ready):
            time.sleep(0.01)
        for _ in range(count):
            os.kill(os.getpid(), number)
            time.sleep(gap)

    threading.Thread(target=send).start()


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "USR1"])
def test_a_signal_reaches_every_process_and_their_exit_status_is_ours(name: str, tmp_path: Path) -> None:
    number = signal.Signals[f"SIG{name}"]
    code = WAITS.format(name=name, status=128 + number)
    signalled(number, [tmp_path / "0", tmp_path / "1"])
    assert supervise(lambda: start(code, code, argument=f"{tmp_path}/")) == 128 + number


def test_ctrl_c_ends_processes_that_wait_in_a_function_of_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As gloo waits for the other processes: Python would handle the signal when that function returns."""
    monkeypatch.setenv("MAGMA_LAUNCHER", str(os.getpid()))
    code = (
        "import ctypes, sys; from magma.system.signals import end_with_launcher; end_with_launcher(); "
        "lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64); lock(mutex); "
        "open(sys.argv[1], 'w').close(); lock(mutex)"
    )
    signalled(signal.SIGINT, [tmp_path / "0", tmp_path / "1"])
    began = time.monotonic()
    assert supervise(lambda: start(code, code, argument=f"{tmp_path}/")) == 128 + signal.SIGINT
    assert time.monotonic() - began < 60


def test_a_second_signal_ends_them_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magma.system.signals.REPEAT_S", 0.1)
    deaf = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'w').close(); "
    signalled(signal.SIGTERM, [tmp_path / "0"], gap=0.3, count=2)
    began = time.monotonic()
    assert supervise(lambda: start(f"{deaf} time.sleep(600)", argument=f"{tmp_path}/")) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 120


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        (["", ""], 0),
        (["import sys; sys.exit(2)", "import time; time.sleep(600)"], 2),
        (["import os; os.kill(os.getpid(), 9)", "import time; time.sleep(600)"], 137),
        (["import sys; sys.exit(143)", "import time; time.sleep(0.5)"], 143),  # the other one is still saving
    ],
)
def test_one_that_fails_ends_the_others(
    codes: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "GRACE_S", 0.2)
    children: list[Child] = []

    def begin() -> Iterator[Child]:
        for child in start(*codes):
            children.append(child)
            yield child

    began = time.monotonic()
    assert supervise(begin) == status
    assert time.monotonic() - began < 120
    last = children[-1].process.returncode
    assert last == (-signal.SIGKILL if "sleep(600)" in codes[-1] else 0)
    assert capfd.readouterr().err == ("magma: SIGKILL ended process 0\n" if status == 137 else "")


def test_what_was_started_ends_where_the_next_one_cannot_start() -> None:
    children: list[Child] = []

    def begin() -> Iterator[Child]:
        children.extend(start("import time; time.sleep(600)"))
        yield from children
        raise OSError("no more processes")

    with pytest.raises(OSError, match="no more processes"):
        supervise(begin)
    assert children[0].process.returncode == -signal.SIGKILL


# Hosts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=2\nb\n", "line 2: given 'b'; allowed: HOST slots=N"),
        ("a slots=two\n", "line 1: given 'a slots=two'"),
        ("a slots=0\n", "line 1: given 'a slots=0'"),
        ("-oProxyCommand=x slots=1\n", "line 1: given '-oProxyCommand=x slots=1'"),
        ("# none\na slots=2\na slots=2\n", "line 3: a is listed twice"),
        ("# none\n\n", "lists no host"),
        (None, "hosts cannot be read"),
    ],
)
def test_a_hostfile_is_checked_line_by_line(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "hosts").write_text(text)
    with pytest.raises(InputError, match=message):
        read_hostfile(tmp_path / "hosts")


def test_a_hostfile_is_that_of_deepspeeds_launcher(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("worker-0 slots=4  # the first\n\nworker-1  slots = 2\n")
    assert read_hostfile(tmp_path / "hosts") == {"worker-0": 4, "worker-1": 2}


SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
[ "$1" = gone ] && { echo "gone: no such host" >&2; exit 255; }
shift
exec sh -c "$*"
"""
RANK = (
    "import json, os, pathlib, signal, sys, time; out = pathlib.Path(sys.argv[1]); "
    "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'MAGMA_HOSTFILE'); "
    "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138)); "
    "from magma.system.signals import end_with_launcher; end_with_launcher(); "
    "aside = out / ('aside' + os.environ['RANK']); "
    "aside.write_text(json.dumps({'pid': os.getpid(), **{name: os.environ[name] for name in names}})); "
    "aside.rename(out / os.environ['RANK']); time.sleep(600)"
)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two hosts, with three processes, behind an ssh that stays on this machine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MASTER_PORT", "29876")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    (tmp_path / "hosts").write_text("a slots=2\nb slots=1\n")
    return tmp_path / "hosts"


def test_the_processes_of_other_hosts_get_signals_too(hosts: Path) -> None:
    ready = [hosts.parent / str(rank) for rank in range(3)]
    command, more = [sys.executable, "-c", RANK, str(hosts.parent)], {launch.HOSTFILE: str(hosts)}
    signalled(signal.SIGUSR1, ready)
    assert supervise(lambda: launch._start_hosts(read_hostfile(hosts), command, more)) == 138
    told = [json.loads(file.read_text()) for file in ready]
    assert [(one["LOCAL_RANK"], one["LOCAL_WORLD_SIZE"]) for one in told] == [("0", "2"), ("1", "2"), ("0", "1")]
    assert all((one["WORLD_SIZE"], one["MASTER_PORT"]) == ("3", "29876") for one in told)
    assert all(one["MASTER_ADDR"] and one["MAGMA_HOSTFILE"] == str(hosts) for one in told)


def test_a_host_that_loses_the_connection_ends_its_processes(tmp_path: Path) -> None:
    order = {"command": [sys.executable, "-c", RANK, str(tmp_path)], "first": 0, "count": 1, "size": 1}
    order["environment"] = {"MASTER_ADDR": "x", "MASTER_PORT": "1", "MAGMA_HOSTFILE": "x"}
    host = subprocess.Popen([sys.executable, "-m", "magma.system.launch"], stdin=subprocess.PIPE)
    assert host.stdin is not None
    host.stdin.write(json.dumps(order).encode() + b"\n")
    host.stdin.flush()
    while not (tmp_path / "0").exists():
        time.sleep(0.01)
    process = json.loads((tmp_path / "0").read_text())["pid"]
    host.stdin.close()
    assert host.wait(120) == -signal.SIGKILL
    deadline = time.monotonic() + 120
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(process)


def test_a_host_that_ssh_does_not_reach_is_named(hosts: Path) -> None:
    hosts.write_text("gone slots=1\n")
    with pytest.raises(
        TrainingError, match=r"^gone of the hostfile cannot be reached with ssh .*: gone: no such host$"
    ):
        launch.launch([], hostfile=hosts)
