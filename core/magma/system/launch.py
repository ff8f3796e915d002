"""Start `magma` in several processes, forward signals to them, and wait until all have ended.

The processes of this machine are children of this one. On other hosts, `python -m magma.system.launch` is started by
ssh and starts them. It reads its standard input: a JSON object with the command, then a line with the number of each
signal. When the input ends, because the connection is lost or this process is killed, the processes of that host end.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, TrainingError
from .signals import LAUNCHER, STOP_SIGNALS, exit_status, stop_requests

HOSTFILE = "MAGMA_HOSTFILE"
"""Environment variable with the path of the hostfile, for processes that were started from one."""
PORT = 29500
"""The port of the first host, the default of torch and DeepSpeed; MASTER_PORT in the environment changes it."""
GRACE_S = 10.0
"""After a failure, the time in which the other processes may report the same one."""
POLL_S = 0.1
_FORWARDED = (
    *("CUDA_DEVICE_ORDER", "GLOO_", "HF_", "LD_LIBRARY_PATH", "MAGMA_", "MLFLOW_", "MV2_", "NCCL_", "OMP_"),
    *("PATH", "PYTHON", "TOKENIZERS_", "TORCH_", "UCX_", "WANDB_"),
)
"""Prefixes of the environment variables that other hosts get."""
_STOPPED = tuple(map(exit_status, STOP_SIGNALS))
_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=30")


@dataclass(frozen=True)
class Child:
    """A process that was started, and its name in messages."""

    name: str
    process: subprocess.Popen[Any]

    def signal(self, number: int) -> None:
        """Forward a signal, through ssh if the child is an ssh."""
        with suppress(OSError):  # it has ended
            if self.process.stdin is None:
                self.process.send_signal(number)
            else:
                self.process.stdin.write(f"{number}\n".encode())
                self.process.stdin.flush()

    def kill(self) -> None:
        """End it, and its children, immediately."""
        with suppress(OSError):
            self.process.kill()

    def wait(self) -> None:
        """Wait until it has ended."""
        self.process.wait()
        if self.process.stdin is not None:
            with suppress(OSError):  # what it did not read
                self.process.stdin.close()


def launch(arguments: Sequence[str], processes: int = 1, hostfile: Path | None = None) -> int:
    """Run `magma ARGUMENTS` in several processes, on this machine or on the hosts of a hostfile.

    The first signal is forwarded to every process, which saves before it ends; a second one kills all of them.

    Returns:
        The exit status.

    Raises:
        InputError: If the hostfile cannot be read.
    """
    command = [sys.executable, "-m", "magma.cli", *arguments]
    if hostfile is not None:
        hosts = read_hostfile(hostfile)
        return supervise(lambda: _start_hosts(hosts, command, {HOSTFILE: str(hostfile)}))
    # Checking the recipe has imported torch already. A store in this process, like torchrun's, gets a free port.
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    own = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    return supervise(lambda: _start_ranks(command, range(processes), processes, {**os.environ, **own}))


def run_subprocess(arguments: Sequence[str]) -> int:
    """Run `magma ARGUMENTS` in one process, which ends with this one; the exit status."""
    command = [sys.executable, "-m", "magma.cli", *arguments]
    environment = {**os.environ, LAUNCHER: str(os.getpid())}
    return supervise(lambda: iter([Child("the process", subprocess.Popen(command, env=environment))]))


def supervise(start: Callable[[], Iterator[Child]]) -> int:
    """Start children, forward signals, and wait; the exit status of the first one that fails, else 0.

    If one fails, the others get `GRACE_S` seconds to end; if a signal kills one, they are killed immediately. If one
    has stopped after a signal, the others have agreed to stop and get all the time that they need.
    """
    children: list[Child] = []

    def kill_all(_: int = 0) -> None:
        for child in children:
            child.kill()

    status, forwarded, deadline = 0, False, float("inf")
    with stop_requests(again=kill_all) as request:
        try:
            children.extend(start())
            running = list(children)
            while running:
                if request and not forwarded:
                    forwarded = True
                    for child in running:
                        child.signal(request.number)
                for child in [one for one in running if one.process.poll() is not None]:
                    running.remove(child)
                    ended = child.process.returncode
                    if ended and not status:
                        status = exit_status(-ended) if ended < 0 else ended
                        if ended not in _STOPPED:
                            deadline = time.monotonic() + (GRACE_S if ended > 0 else 0)
                        if running and ended < 0 and not request:
                            with suppress(OSError):
                                print(f"magma: {signal.Signals(-ended).name} ended {child.name}", file=sys.stderr)
                if running and time.monotonic() > deadline:
                    kill_all()
                time.sleep(POLL_S if running else 0)
        finally:
            kill_all()
            for child in children:
                child.wait()
    killed = request and status == exit_status(signal.SIGKILL)
    return exit_status(request.number) if killed else status


def _start_ranks(
    command: Sequence[str], ranks: Sequence[int], size: int, environment: Mapping[str, str]
) -> Iterator[Child]:
    """The processes of this machine, `ranks` of all `size`. A terminal's Ctrl-C reaches only this process."""
    here = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(len(ranks)), LAUNCHER: str(os.getpid())}
    here["OMP_NUM_THREADS"] = environment.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(ranks))))
    for local, rank in enumerate(ranks):
        own = {**environment, **here, "RANK": str(rank), "LOCAL_RANK": str(local)}
        yield Child(
            f"process {rank}", subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, start_new_session=True)
        )


# Other hosts


def read_hostfile(path: Path) -> dict[str, int]:
    """Host to number of processes, from lines `HOST slots=N`. Raises `InputError`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host, *rest = words
        key, _, slots = "".join(rest).partition("=")
        if key != "slots" or not (slots.isascii() and slots.isdigit()) or not int(slots) or host.startswith("-"):
            raise InputError(f"{path} line {number}: given {line.strip()!r}; allowed: HOST slots=N, N processes")
        if host in hosts:
            raise InputError(f"{path} line {number}: {host} is listed twice; allowed: one line for each host")
        hosts[host] = int(slots)
    if not hosts:
        raise InputError(f"{path} lists no host; allowed: a line HOST slots=N for each host")
    return hosts


def _start_hosts(hosts: Mapping[str, int], command: Sequence[str], more: Mapping[str, str]) -> Iterator[Child]:
    """An ssh for each host. Every host needs this folder and this Python at the same path."""
    size, first = sum(hosts.values()), 0
    environment = {**{key: value for key, value in os.environ.items() if key.startswith(_FORWARDED)}, **more}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    environment["MASTER_ADDR"] = os.environ.get("MASTER_ADDR") or _address(next(iter(hosts)))
    environment["MASTER_PORT"] = os.environ.get("MASTER_PORT") or str(PORT)
    path = f"PYTHONPATH={environment['PYTHONPATH']}"
    serving = shlex.join([path, sys.executable, "-m", "magma.system.launch"])
    remote = f"cd {shlex.quote(str(Path.cwd()))} && exec env {serving}"
    for host, slots in hosts.items():
        # In a new session, so that a terminal's Ctrl-C does not end the connection.
        ssh = subprocess.Popen([*_SSH, host, remote], stdin=subprocess.PIPE, start_new_session=True)
        order = {"command": list(command), "first": first, "count": slots, "size": size, "environment": environment}
        assert ssh.stdin is not None
        with suppress(OSError):  # ssh has failed and printed the reason
            ssh.stdin.write(json.dumps(order).encode() + b"\n")
            ssh.stdin.flush()
        yield Child(f"ssh to {host}", ssh)
        first += slots


def _address(host: str) -> str:
    """The address of the first host for the others: its name may be known only to this machine's ssh."""
    try:
        done = subprocess.run([*_SSH, host, "hostname -I || hostname"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise TrainingError(f"ssh cannot be run, and --hostfile needs it: {error.strerror}") from error
    if done.returncode or not done.stdout.split():
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise TrainingError(f"{host} of the hostfile cannot be reached with ssh without a password: {reason}")
    return done.stdout.split()[0]


def serve() -> int:
    """On a host: start the processes of the first line of the input, and forward the signals of the next lines."""
    order = json.loads(sys.stdin.readline())

    def follow() -> None:
        for line in sys.stdin:
            os.kill(os.getpid(), int(line))
        os.kill(os.getpid(), signal.SIGKILL)  # its processes end with it

    def start() -> Iterator[Child]:
        threading.Thread(target=follow, name="signals", daemon=True).start()  # signals are handled from now on
        ranks = range(order["first"], order["first"] + order["count"])
        yield from _start_ranks(order["command"], ranks, order["size"], {**os.environ, **order["environment"]})

    return supervise(start)


if __name__ == "__main__":
    sys.exit(serve())
