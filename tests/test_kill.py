"""A run that is killed at any moment goes on from its last checkpoint and ends with the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = int(os.environ.get("MAGMA_TEST_KILLS", "30"))
STEPS = 100 + 10 * KILLS
"""A kill comes some 12 steps after the one before at most, and most come earlier."""
SMALL = {
    "train.steps": STEPS,
    "train.batch_size": 8,
    "train.checkpoint_every": 3,
    "train.evaluate_every": STEPS // 3,
    "train.evaluate_samples": 8,
    "tasks": "[]",
}


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Two processes under a launcher."""
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "magma.cli", "recipe", "run", "quickstart", "--out", str(out), "--nproc", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen([*command, *sets, *more], env=environment, stdout=log, stderr=log)


def of_run(out: Path) -> list[int]:
    """Every process of a run, the launcher first: its workers have sessions of their own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out).encode() in words:
            found.append(int(entry.parent.name))
    return sorted(found)


def kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def steps_of(out: Path) -> int:
    """Steps that a run has written down."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def await_steps(process: subprocess.Popen[bytes], out: Path, more: int) -> None:
    """Until the run has written so many more steps than now: the moment is the run's own, however fast the machine."""
    wanted = steps_of(out) + more
    while steps_of(out) < wanted and process.poll() is None:
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_again_and_again_and_the_same_to_the_byte(tmp_path: Path) -> None:
    draw = random.Random(0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    began = time.monotonic()
    process = start(whole)
    await_steps(process, whole, 1)
    to_first_step = time.monotonic() - began
    assert process.wait() == 0
    process = start(parts)
    for kills in range(1, KILLS + 1):
        if draw.random() < 0.3:  # while it starts, or in its first steps
            time.sleep(draw.uniform(0.2, 1.1) * to_first_step)
        else:  # in its steps, checkpoints and evaluations
            await_steps(process, parts, draw.randint(1, 12))
            time.sleep(draw.uniform(0, 0.1))
        assert process.poll() is None, (kills, (tmp_path / "parts.log").read_text()[-3000:])
        running = of_run(parts)
        if draw.random() < 0.3:  # one of them, the launcher perhaps: the others end without being killed
            kill([draw.choice(running)])
        else:
            kill(of_run(parts))
        process.wait()
        deadline = time.monotonic() + 60
        while of_run(parts):
            assert time.monotonic() < deadline, kills
            time.sleep(0.05)
        process = start(parts, *(["--resume"] if (parts / "recipe.toml").exists() else []))
    assert process.wait() == 0, (tmp_path / "parts.log").read_text()[-3000:]
    for run in (whole, parts):
        assert json.loads((run / "report.json").read_text())["frozen_unchanged"] is True
    ends = [run / f"checkpoints/step-{STEPS:08d}/trained.safetensors" for run in (whole, parts)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, parts)]
    for found in rows:
        for row in found:
            for key in [key for key in row if key.endswith("_s")]:
                del row[key]
    assert rows[0] == rows[1]
    assert not list((parts / "checkpoints").glob(".*"))
