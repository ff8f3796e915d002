"""The quickstart as a user runs it: what it must reach, and in what time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(out: Path, *words: str) -> dict[str, object]:
    command = [sys.executable, "-m", "magma.cli", "recipe", "run", *words, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert isinstance(report, dict)
    return report


def test_it_learns_to_see_and_the_language_model_stays(tmp_path: Path) -> None:
    began = time.perf_counter()
    report = run(tmp_path / "run", "quickstart")
    assert time.perf_counter() - began < 240
    assert report["caption_accuracy"] >= 0.95  # type: ignore[operator]
    assert 0.05 < report["shuffled_accuracy"] < 0.16  # type: ignore[operator]
    assert report["frozen_unchanged"] is True
    scores = report["tasks"]["0.digits"]  # type: ignore[index]
    assert scores["model"]["parity_two_step_accuracy"] >= 0.85
    assert scores["blind"]["parity_two_step_accuracy"] < 0.6


def test_two_processes_reach_the_same_loss(tmp_path: Path) -> None:
    losses = {}
    for processes in ("1", "2"):
        out = tmp_path / processes
        run(out, "quickstart", "--nproc", processes, "--set", "train.samples=6400", "--set", "tasks.0.limit=50")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[processes] = [row["loss"] for row in rows if "loss" in row]
    last = {processes: sum(found[-20:]) / 20 for processes, found in losses.items()}
    assert last["1"] == pytest.approx(last["2"], rel=0.15)
    assert last["2"] < 0.3 * losses["2"][0]
