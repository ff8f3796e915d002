"""A run resumes with another precision, another stage of ZeRO, or another number of processes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_parity import launch
from toys import RECIPE

from magma import Recipe
from magma.training.train import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("stored_toys"),
    pytest.mark.filterwarnings("ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning"),  # DeepSpeed 0.19.8
]

KINDS = tuple(itertools.product(("fp32", "bf16"), range(4)))
"""Precision and stage; stage 0 becomes 1 in half precision."""
EVERY_PAIR = "MAGMA_TEST_EVERY_PAIR" in os.environ
"""With two processes, too: minutes more. What is stored depends on the precision only, as the second test shows."""
FIRST, ALL = 2, 4
"""Steps before the change, and in total."""


def recipe(kind: tuple[str, int], steps: int) -> dict[str, Any]:
    precision, stage = kind
    way = {**RECIPE["inputs"]["number"], "trainable": False}  # BatchNorm would see a process's share only
    train = {**RECIPE["train"], "steps": steps, "precision": precision, "schedule": {"use": "constant"}}
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    return {**RECIPE, "inputs": {"number": way}, "train": train, "deepspeed": {"zero_optimization": zero}, "tasks": []}


def source(kind: tuple[str, int], processes: int) -> str:
    return f"{kind[0]}-stage{kind[1]}-of{processes}"


def resumed(kind: tuple[str, int], processes: int, origin: str) -> dict[str, Any]:
    return {"out": f"{source(kind, processes)}-from-{origin}", "recipe": recipe(kind, ALL), "copy": origin}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pairs in one process; with two, each kind resumes what either precision wrote, stages in turn."""
    folder = tmp_path_factory.mktemp("resume")
    for processes in (1, 2):
        jobs = [{"out": f"whole-of{processes}", "recipe": recipe(KINDS[0], ALL)}]
        jobs += [{"out": source(kind, processes), "recipe": recipe(kind, FIRST)} for kind in KINDS]
        jobs += [resumed(kind, processes, origin) for kind, origin in pairs(processes)]
        if processes == 1:
            train_here(folder, jobs)
        else:
            launch(folder, processes, jobs)
    train_here(folder, [resumed(kind, 1, origin) for kind, origin in turns(2)])
    return folder


def train_here(folder: Path, jobs: list[dict[str, Any]]) -> None:
    """As `launch`, without a start of Python."""
    for job in jobs:
        if "copy" in job:
            shutil.copytree(folder / job["copy"], folder / job["out"])
        train(Recipe.load(job["recipe"]), folder / job["out"], resume="copy" in job)


def pairs(processes: int) -> list[tuple[tuple[str, int], str]]:
    """What is resumed, and from which run, by a number of processes."""
    if processes == 1:
        return every(1)
    return turns(1) + turns(2)


def every(processes: int) -> list[tuple[tuple[str, int], str]]:
    """Every kind with every run that this number of processes wrote."""
    return [(kind, source(other, processes)) for kind in KINDS for other in KINDS]


def turns(processes: int) -> list[tuple[tuple[str, int], str]]:
    """Every kind with a run of each precision, written by this number of processes, whose stage is another one."""
    if EVERY_PAIR:
        return every(processes)
    found = []
    for precision, stage in KINDS:
        for shift, other in enumerate(("fp32", "bf16"), 1):
            found.append(((precision, stage), source((other, (stage + shift) % 4), processes)))
    return found


def losses(runs: Path, run: str) -> list[float]:
    rows = [json.loads(line) for line in (runs / run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_every_pair_resumes(runs: Path) -> None:
    """As close to the uninterrupted run as the precision allows: a step changes the loss by 7 in a thousand."""
    expected = losses(runs, "whole-of1")
    count = 0
    for here, there in ((1, pairs(1)), (2, pairs(2)), (1, turns(2))):
        for kind, origin in there:
            found = losses(runs, f"{source(kind, here)}-from-{origin}")
            exact = kind[0] == "fp32" and origin.startswith("fp32")
            assert found == pytest.approx(expected, rel=1e-5 if exact else 2e-3), (kind, here, origin)
            count += 1
    assert count == (256 if EVERY_PAIR else 64 + 32 + 16)


def test_what_is_stored_depends_on_the_precision_only(runs: Path) -> None:
    for precision in ("fp32", "bf16"):
        states = [
            load_file(runs / source(kind, processes) / f"checkpoints/step-{FIRST:08d}/state/optimizer.safetensors")
            for kind in KINDS
            for processes in (1, 2)
            if kind[0] == precision
        ]
        for state in states[1:]:
            assert state.keys() == states[0].keys()
            for name, tensor in state.items():
                tolerance = {"atol": 1e-7, "rtol": 1e-4} if precision == "fp32" else {"atol": 2e-2, "rtol": 5e-2}
                assert tensor.shape == states[0][name].shape
                assert tensor.allclose(states[0][name], **tolerance), name
