"""A run that is killed at any moment goes on from its last checkpoint and ends with the same bytes."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from program import magma

KILLS = int(os.environ.get("MAGMA_TEST_KILLS", "30"))
STEPS = 36 + 12 * KILLS
"""A kill comes some 12 steps after the one before at most, and most come earlier; the rest is left to end."""
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
    return start_recipe("quickstart", SMALL, out, "--nproc", "2", *more)


def start_recipe(recipe: str, values: dict[str, Any], out: Path, *more: str) -> subprocess.Popen[bytes]:
    """A recipe with these values."""
    command = [sys.executable, "-m", "magma.cli", *words(recipe, values, out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def here(recipe: str, values: dict[str, Any], out: Path, *more: str) -> None:
    """The same in this process: nothing kills it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done = magma(*words(recipe, values, out), *more)
    finally:
        torch.set_num_threads(threads)
    assert done.returncode == 0, done.stderr


def words(recipe: str, values: dict[str, Any], out: Path) -> list[str]:
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return ["recipe", "run", recipe, "--out", str(out), *sets]


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
    assert filecmp.cmp(*ends, shallow=False)
    assert untimed(whole) == untimed(parts)
    assert not list((parts / "checkpoints").glob(".*"))


def untimed(out: Path) -> list[dict[str, Any]]:
    """The rows of the metrics without what a clock measured."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


STAGES = {
    "stages.0.train.steps": 9,
    "train.steps": 9,
    "train.batch_size": 8,
    "train.checkpoint_every": 2,
    "train.evaluate_samples": 8,
    "tasks": "[]",
}


@pytest.mark.slow
def test_killed_in_each_stage_and_the_same_to_the_byte(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    here("quickstart_stages", STAGES, whole)
    for kills, step in enumerate((5, 15)):  # in the first stage and in the second, behind a checkpoint
        process = start_recipe("quickstart_stages", STAGES, parts, *(["--resume"] if kills else []))
        await_steps(process, parts, step - steps_of(parts) + kills)  # the first stage's evaluation is a row, too
        assert process.poll() is None, (tmp_path / "parts.log").read_text()[-3000:]
        process.kill()
        process.wait()
    assert {row.get("stage") for row in untimed(parts)} == {"stage 1: prefix", "stage 2: all"}
    here("quickstart_stages", STAGES, parts, "--resume")
    for file in ("trained.safetensors", "state/optimizer.safetensors", "state/trainer.json"):
        for step in (9, 18):  # the last checkpoint of each stage
            ends = [run / f"checkpoints/step-{step:08d}" / file for run in (whole, parts)]
            assert filecmp.cmp(*ends, shallow=False), (file, step)
    assert untimed(whole) == untimed(parts)
    assert [row["step"] for row in untimed(whole) if "loss" in row] == list(range(1, 19))
    assert not list((parts / "checkpoints").glob(".*"))
