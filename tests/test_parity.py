"""The same run, whatever the stage of ZeRO, the number of processes, and wherever it was interrupted.

`pytest tests/test_parity.py -s` prints the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_runs import HALF, STEPS, install_toys, recipe, train_all
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning"),  # DeepSpeed 0.19.8
]

Rows = list[dict[str, Any]]
STAGES = (0, 1, 2, 3)
PROCESSES = (1, 2)
INTERRUPTED = (0, 2, 3)
"""One of each optimizer of DeepSpeed, whose stages 1 and 2 share one; test_resume.py resumes the others."""
FAST = {"activation_checkpointing": "all", "workers": 1}


def launch(folder: Path, processes: int, jobs: list[dict[str, Any]]) -> None:
    """Train all jobs, in so many processes; in the folder's name each has its own."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536"}  # memory that is free again is given back: one test looks at it
    done = subprocess.run(
        [sys.executable, *command, str(Path(__file__).with_name("parity_runs.py")), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,  # a rank that waits for another one for ever
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]


def name(stage: int, processes: int, kind: str) -> str:
    return f"stage{stage}-of{processes}-{kind}"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of a language model whose size is seen in a process's memory, and its bytes."""
    from magma_lms.gptj import GPTJ

    sizes = {"dim": 1024, "layers": 6, "heads": 8, "rotary_dim": 32, "vocab": 768, "eos": 0, "context": 64}
    lm = GPTJ.build(**sizes).to(torch.bfloat16)
    folder = tmp_path_factory.mktemp("large") / "lm"
    lm.export(folder)
    return folder, sum(t.numel() * t.element_size() for t in lm.parameters())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, large: tuple[Path, int]) -> Iterator[Path]:
    """All runs; those that change the number of processes come after the ones that they resume."""
    folder = tmp_path_factory.mktemp("parity")
    changed = [
        {"out": name(stage, 1, "from 2"), "recipe": recipe(stage), "copy": half(stage, 2)} for stage in INTERRUPTED
    ]
    # another stage at the same time
    changed += [{"out": "stage1-of1-from-3", "recipe": recipe(1), "copy": half(3, 2)}]
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_toys(monkeypatch.setattr)
        train_all(folder, jobs(1))
        launch(folder, 2, jobs(2, memory_jobs(large[0])))
        train_all(folder, changed)
        yield folder


def half(stage: int, processes: int) -> str:
    return name(stage, processes, "half")


def jobs(processes: int, more: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Jobs that start with this number of processes, or resume a run of one; `more` follow the first run of stage 3."""
    bf16 = {stage: recipe(stage, precision="bf16") for stage in STAGES[1:]}
    found: list[dict[str, Any]] = []
    for stage in reversed(STAGES[1:]):
        found += [{"out": name(stage, processes, "bf16"), "recipe": bf16[stage]}, *(more if stage == 3 else ())]
    for stage in INTERRUPTED[1:]:
        found += interrupted(name(stage, processes, "bf16-half"), name(stage, processes, "bf16-resumed"), bf16[stage])
    for stage in STAGES:
        found.append({"out": name(stage, processes, "whole"), "recipe": recipe(stage)})
        if stage in INTERRUPTED:
            found += interrupted(half(stage, processes), name(stage, processes, "resumed"), recipe(stage))
    found += [{"out": name(stage, processes, "fast"), "recipe": recipe(stage, **FAST)} for stage in (2, 3)]
    if processes == 2:
        found += [
            {"out": name(stage, 2, "from 1"), "recipe": recipe(stage), "copy": half(stage, 1)} for stage in INTERRUPTED
        ]
    return found


def interrupted(first: str, then: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"out": first, "recipe": given, "stop": True}, {"out": then, "recipe": given, "copy": first}]


def memory_jobs(lm: Path) -> list[dict[str, Any]]:
    """One step of stages 3 and 2 with a large language model; the smaller need first: memory may be kept."""
    found = []
    for stage in (3, 2):
        job = recipe(stage, precision="bf16", steps=1, evaluate_every=0)
        job["lm"] = {"use": "gptj", "weights": str(lm), "tokenizer": "bundled:tiny"}
        job["adapters"] = {}
        small = {"stage3_max_live_parameters": 10**6, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
        job["deepspeed"]["zero_optimization"] |= small
        found.append({"out": f"stage{stage}-memory", "recipe": job, "measured": True})
    return found


def test_process_group_is_destroyed_before_exit(runs: Path) -> None:
    assert [path.read_text() for path in sorted(runs.glob("connected-*"))] == ["False", "False"]


def rows(runs: Path, run: str) -> Rows:
    return [json.loads(line) for line in (runs / run / "metrics.jsonl").read_text().splitlines()]


def losses(runs: Path, run: str) -> list[float]:
    """Of the steps, and of the evaluations at the end."""
    found = rows(runs, run)
    return [r["loss"] for r in found if "loss" in r] + [r["evaluation_loss"] for r in found if "evaluation_loss" in r]


def norms(runs: Path, run: str) -> list[float]:
    return [row["gradient_norm"] for row in rows(runs, run) if "gradient_norm" in row]


def trained(runs: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(runs / run / f"checkpoints/step-{STEPS:08d}/trained.safetensors")


def far(one: list[float], other: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def test_losses_and_gradients_are_those_of_one_process(runs: Path) -> None:
    """1 process against 2, stages 0 to 3, resumed or not, on the same or another number of processes."""
    plain = name(0, 1, "whole")
    expected, gradients = losses(runs, plain), norms(runs, plain)
    assert len(expected) == STEPS + 2
    assert expected[STEPS - 1] < 0.5 * expected[0]
    print("\nstage  processes  run        loss: largest relative difference  of the gradient's norm")
    for stage in STAGES:
        for processes in PROCESSES:
            kinds = ("whole", "resumed", f"from {3 - processes}")
            for kind in kinds if stage in INTERRUPTED else kinds[:1]:
                run = name(stage, processes, kind)
                loss, gradient = far(losses(runs, run), expected), far(norms(runs, run), gradients)
                print(f"{stage:5}  {processes:9}  {kind:9}  {loss:34.1e}  {gradient:22.1e}")
                assert loss < 1e-5, run
                assert gradient < 1e-4, run
    assert far(losses(runs, "stage1-of1-from-3"), expected) < 1e-5


@pytest.mark.parametrize("processes", PROCESSES)
def test_an_interruption_leaves_no_trace(runs: Path, processes: int) -> None:
    """The same bits at the end, in float32 and in bf16."""
    for stage in INTERRUPTED:
        for whole, resumed in (("whole", "resumed"), ("bf16", "bf16-resumed"))[: 1 + (stage > 0)]:
            ends = [name(stage, processes, kind) for kind in (whole, resumed)]
            assert losses(runs, ends[1]) == losses(runs, ends[0]), ends
            assert same(*(trained(runs, run) for run in ends)), ends
            states = [runs / run / f"checkpoints/step-{STEPS:08d}/state/optimizer.safetensors" for run in ends]
            assert same(*(load_file(path) for path in states)), ends
            halves = [json.loads((runs / run / "result.json").read_text()) for run in ends]
            assert all(half["changed"] == [] and half["steps"] == STEPS for half in halves)


@pytest.mark.parametrize("processes", PROCESSES)
def test_bf16_is_the_same_in_all_stages(runs: Path, processes: int) -> None:
    ends = [name(stage, processes, "bf16") for stage in STAGES[1:]]
    assert all(far(losses(runs, run), losses(runs, ends[0])) < 0.02 for run in ends)
    assert losses(runs, ends[0])[STEPS - 1] < 0.5 * losses(runs, ends[0])[0]


@pytest.mark.parametrize("processes", PROCESSES)
def test_recomputed_and_prepared_by_workers_it_is_the_same(runs: Path, processes: int) -> None:
    for stage in (2, 3):
        assert far(losses(runs, name(stage, processes, "fast")), losses(runs, name(0, 1, "whole"))) < 1e-5


def test_each_part_keeps_its_learning_rate_on_other_processes(runs: Path) -> None:
    rates = [row["lr"] for row in rows(runs, name(0, 1, "whole")) if "lr" in row]
    assert len(set(rates[HALF].values())) == 3
    for stage in INTERRUPTED:
        for processes in PROCESSES:
            run = name(stage, processes, f"from {3 - processes}")
            assert [row["lr"] for row in rows(runs, run) if "lr" in row] == rates


def test_zero3_checkpoint_equals_others(runs: Path) -> None:
    """The same tensors under the same names, whole: nothing of DeepSpeed in it, and `magma.load` needs none."""
    plain, partitioned = trained(runs, name(0, 1, "whole")), trained(runs, name(3, 2, "whole"))
    assert {n: t.shape for n, t in partitioned.items()} == {n: t.shape for n, t in plain.items()}
    assert all(torch.allclose(t, plain[n], atol=1e-4) for n, t in partitioned.items())
    half = runs / name(3, 2, "half") / f"checkpoints/step-{HALF:08d}"
    last = runs / name(3, 2, "whole") / f"checkpoints/step-{STEPS:08d}"
    files = [sorted(str(p.relative_to(at)) for p in at.rglob("*") if p.is_file()) for at in (half, last)]
    assert files[0] == files[1]
    code = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from importlib.metadata import EntryPoint, entry_points\n"
        "import magma\nfrom magma import checkpoint\n"
        "from magma.plugins import registry\nfrom magma.recipe import parts, recipe\n"
        "both = registry.Registry([*entry_points(group='magma'), EntryPoint('toys', 'toys', 'magma')])\n"
        "parts.installed = recipe.installed = checkpoint.installed = registry.installed = lambda: both\n"
        f"print(magma.load({str(last)!r}).generate(['is'], max_tokens=3) is not None)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_zero3_never_materialises_full_model(runs: Path, large: tuple[Path, int]) -> None:
    """Memory that no file stands behind, at its highest, from assembly to the last step."""
    held = {
        stage: max(int((runs / f"stage{stage}-memory/memory-{rank}").read_text()) / large[1] for rank in range(2))
        for stage in (2, 3)
    }
    print(f"\na rank's own memory, in language models of {large[1] / 2**20:.0f} MiB: {held}")
    assert held[2] > 0.9
    assert held[3] < 0.85
