"""The `magma` program, in this process or in one of its own, which takes seconds to import torch."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock


def magma(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `magma ARGUMENTS` here, from its entry point: what it printed and its exit status."""
    from magma import cli

    words = ["magma", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    status: Any = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.object(sys, "argv", words),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # pytest makes errors of them, a process prints them
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def start(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `magma ARGUMENTS` in a new process; `options` are those of `subprocess.run`."""
    command = [sys.executable, "-m", "magma.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(
        command, **{"capture_output": True, "text": True, "check": False, "env": environment, **options}
    )


def quickest(command: Callable[[], subprocess.CompletedProcess[str]]) -> float:
    """The seconds of the fastest of five runs, each of which must succeed."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        done = command()
        times.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
    return min(times)


def help_limit() -> float:
    """The seconds that `magma --help` may take.

    Half a second; on a slow machine, twice the import of the library that formats the help. Importing torch takes ten
    times as long.
    """
    library = [sys.executable, "-c", "import typer.rich_utils"]
    return max(0.5, 2 * quickest(lambda: subprocess.run(library, capture_output=True, text=True, check=False)))


def is_running(process: int) -> bool:
    """Zombies, which a container without an init process keeps, do not count."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
