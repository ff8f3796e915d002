"""The size of micro-batches: by the plan's estimate, and smaller when memory runs out."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_parity import launch
from toys import RECIPE

import magma
from magma import OutOfMemory, Recipe
from magma.plan import Plan, plan
from magma.runs.tasks import RunCallbacks
from magma.training.microbatch import choose_micro_batch, fit_micro_batch
from magma.training.progress import Callbacks
from magma.training.train import train

pytestmark = [
    pytest.mark.usefixtures("toys"),
    pytest.mark.filterwarnings("ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning"),  # DeepSpeed 0.19.8
]


def table(
    stage: int = 0, batchnorm: str = "train", train: dict[str, Any] | None = None, **tight: Any
) -> dict[str, Any]:
    """Batches of eight numbers, of which the encoder takes two at once, and more in its first batches."""
    raw = copy.deepcopy(RECIPE)
    raw["inputs"]["number"] |= {"encoder": {"use": "tight", "rows": 2, **tight}, "batchnorm": batchnorm}
    del raw["data"]["evaluation"]
    raw["deepspeed"] = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
    raw["train"] |= {"batch_size": 8, "steps": 4, **(train or {})}
    return {**raw, "tasks": []}


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


def assert_same(one: Path, other: Path, step: int = 4) -> None:
    """Metrics and weights, to the bit."""
    assert rows_of(one) == rows_of(other)
    weights, others = (load_file(out / f"checkpoints/step-{step:08d}/trained.safetensors") for out in (one, other))
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_is_repeated_in_smaller_micro_batches(tmp_path: Path, stage: int) -> None:
    """As if they had been so from the beginning: losses, gradients, BatchNorm's averages, random numbers."""
    train(Recipe.load(table(stage, rows=8, train={"micro_batch_size": 2})), tmp_path / "small")
    for when in ("forward", "backward"):
        said: list[str] = []
        out = tmp_path / when
        tight = table(stage, when=when, batches=1, train={"micro_batch_size": 4})
        assert train(Recipe.load(tight), out, callbacks=Callbacks(note=said.append)).finished
        assert_same(out, tmp_path / "small")
        assert said == [
            "a step takes 8 examples in 2 micro-batches of 4: set by train.micro_batch_size",
            "step 1: memory ran out with 4 examples at once (toy out of memory); it is repeated with 2",
        ]


def test_memory_that_runs_out_later(tmp_path: Path) -> None:
    """The steps before stay; with workers that were ahead no example is lost."""
    train(Recipe.load(table(rows=8, train={"micro_batch_size": 4})), tmp_path / "whole")
    changed = table(batches=5, train={"micro_batch_size": 4, "workers": 1})
    train(Recipe.load(changed), tmp_path / "tight")
    whole, tight = (rows_of(tmp_path / run) for run in ("whole", "tight"))
    assert whole[:2] == tight[:2]
    assert whole[2:] != tight[2:]  # BatchNorm sees fewer rows
    assert [row["samples"] for row in tight] == [8] * 4
    assert json.loads((tmp_path / "tight/checkpoints/step-00000004/state/trainer.json").read_text())["micro_batch"] == 2


def test_an_evaluation_is_repeated_in_smaller_batches(tmp_path: Path) -> None:
    for name, more in (("tight", {"when": "evaluation"}), ("small", {"rows": 8})):
        raw = table(train={"evaluate_every": 2, "micro_batch_size": 8 if name == "tight" else 2}, **more)
        raw["data"]["evaluation"] = [{"use": "counting"}]
        said: list[str] = []
        train(Recipe.load(raw), tmp_path / name, callbacks=Callbacks(note=said.append))
        assert len(said) == (3 if name == "tight" else 1)
    tight, small = (
        [row["evaluation_loss"] for row in rows_of(tmp_path / name) if "evaluation_loss" in row]
        for name in ("tight", "small")
    )
    assert len(tight) == 2
    assert tight == pytest.approx(small, rel=0.1)  # the steps before differ by what BatchNorm sees


def test_a_resumed_run_keeps_the_size(tmp_path: Path) -> None:
    train(Recipe.load(table(train={"steps": 2})), tmp_path)
    said: list[str] = []
    train(Recipe.load(table(rows=4, train={"steps": 3})), tmp_path, resume=True, callbacks=Callbacks(note=said.append))
    assert not any("ran out" in text for text in said)
    state = json.loads((tmp_path / "checkpoints/step-00000003/state/trainer.json").read_text())
    assert state["micro_batch"] == 2


def test_a_single_example_that_does_not_fit_is_an_error_with_the_plan(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(OutOfMemory) as raised:
        magma.run(
            table(batchnorm="frozen", rows=0, train={"max_length": 60}),
            tmp_path,
            callbacks=RunCallbacks(note=said.append),
        )
    lines = str(raised.value).splitlines()
    assert lines[0] == "memory ran out with a single example in each process: toy out of memory"
    assert lines[1] == "The plan's estimate of each GPU:"
    assert lines[2].split() == ["weights", "gradients", "buffers", "optimizer", "one", "example"]
    assert [line.split()[:2] for line in lines[3:6]] == [["ZeRO", "1"], ["ZeRO", "2"], ["ZeRO", "3"]]
    assert lines[6:] == [
        "To need less memory:",
        '  - train.activation_checkpointing = "all" (it is "none")',
        "  - deepspeed.zero_optimization.stage = 3 with several GPUs (--nproc) (it is 0)",
        '  - train.precision = "bf16" (it is "fp32")',
        "  - shorter sequences: a smaller train.max_length (it is 60), media with fewer positions",
    ]
    assert len(said) == 4  # the size at the start, and three times half of it


def test_a_loss_that_depends_on_micro_batches_keeps_them(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"with 8 examples(.|\n)*set a smaller train\.micro_batch_size"):
        train(Recipe.load(table(train={"loss": "micro_batch_mean"})), tmp_path)


def test_memory_that_runs_out_elsewhere_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room for the optimizer. Tried")

    monkeypatch.setattr("magma.training.trainer.Engine", fail)
    with pytest.raises(OutOfMemory, match=r"memory ran out: no room for the optimizer\nThe plan's estimate"):
        magma.run(table(), tmp_path)


@pytest.fixture
def planned() -> Plan:
    """Eight examples of 10 bytes each, and 1,000 bytes besides."""
    found = plan(Recipe.load(table()))
    memory = [replace(row, weights=700, gradients=60, buffers=40, optimizer=200) for row in found.memory]
    return replace(found, activation_bytes_per_sample=10, memory=memory)


@pytest.mark.parametrize(
    ("fits", "size"), [(1080, 8), (1079, 4), (1020, 2), (1019, 1), (5, 1)]
)  # bytes of nine tenths of the device
def test_the_largest_micro_batch_that_fits(planned: Plan, fits: int, size: int) -> None:
    train_table = Recipe.load(table()).train
    assert train_table is not None
    memory = -(-10 * fits // 9)
    assert choose_micro_batch(train_table, 1, planned, memory).size == size
    length = fit_micro_batch(planned, train_table, memory).length
    assert length is not None
    assert (length.micro_batch_size, length.accumulation) == (size, 8 // size)
    assert choose_micro_batch(train_table.model_copy(update={"micro_batch_size": 4}), 1, planned, memory).size == 4


def test_the_reason_is_printed(planned: Plan) -> None:
    train_table = Recipe.load(table()).train
    assert train_table is not None
    large = replace(planned, activation_bytes_per_sample=10**9)
    assert choose_micro_batch(train_table, 1, large, 5 * 10**9) == (
        4,
        "an estimated 4 GB of 5 GB available; 8 need 8 GB",
    )
    assert choose_micro_batch(train_table, 1, replace(large, activation_bytes_per_sample=None), 1).size == 8


@pytest.mark.slow
def test_two_processes_halve_together(tmp_path: Path) -> None:
    """Also when memory runs out in one of them, with the others in the middle of their communication."""
    jobs = []
    for stage in range(4):
        small = table(stage, "frozen", rows=8, train={"micro_batch_size": 1})
        jobs.append({"out": f"small-{stage}", "recipe": small})
        for process, when in ((0, "forward"), (1, "backward"), (None, "forward")):
            tight = table(stage, "frozen", rows=1, process=process, when=when, batches=1, train={"micro_batch_size": 2})
            jobs.append({"out": f"{stage}-{process}-{when}", "recipe": tight})
    launch(tmp_path, 2, jobs)
    for job in jobs:
        out = tmp_path / str(job["out"])
        assert_same(out, tmp_path / f"small-{job['recipe']['deepspeed']['zero_optimization']['stage']}")  # type: ignore[index]
        state = json.loads((out / "checkpoints/step-00000004/state/trainer.json").read_text())
        assert state["micro_batch"] == 1
