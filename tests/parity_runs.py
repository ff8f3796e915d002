"""Training runs that are to come out alike, for `test_parity.py`: one after the other, here or under a launcher.

Two inputs that take turns, and text alone: in every micro-step the processes hold other modalities, in training and
in evaluation. BatchNorm is frozen, nothing is random but the weights at the start.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

STEPS, HALF = 6, 3


def recipe(stage: int, **changes: Any) -> dict[str, Any]:
    """Batches of four with one example a micro-batch."""
    way = {
        "encoder": {"use": "fingers"},
        "prefix": {"use": "mlp", "hidden": 20, "dropout": 0.0, "layernorm": True},
        "batchnorm": "frozen",
        "lr": 3e-3,
    }
    sources = [
        {"use": "counting", "input": "seen"},
        {"use": "counting", "input": "heard", "length": 7},
        {"use": "counting", "text_only": True, "length": 3},
    ]
    return {
        "name": "parity",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {"seen": way, "heard": way},
        "adapters": {
            "attention": {"use": "sequential", "downsample": 8, "lr": 2e-3},
            "mlp": {"use": "parallel", "downsample": 8, "scale": "learned"},
        },
        "data": {"train": sources, "evaluation": sources},
        "train": {
            "steps": STEPS,
            "batch_size": 4,
            "micro_batch_size": 1,
            "lr": 5e-3,
            "warmup_steps": 3,
            "precision": "fp32",
            "gradient_clipping": 1.0,
            "evaluate_every": HALF,
            "evaluate_samples": 3,  # processes have unequal shares
            **changes,
        },
        # a threshold of 0: also what is small is partitioned
        "deepspeed": {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}},
    }


def install_toys(replace_attribute: Callable[[object, str, object], None] = setattr) -> None:
    """The registry has the installed parts and the toys."""
    from magma.plugins.registry import Registry

    toys = [EntryPoint(name, name, "magma") for name in ("toys", "extra_toys")]
    both = Registry([*entry_points(group="magma"), *toys])
    for module in ("magma.recipe.recipe", "magma.recipe.parts", "magma.checkpoint", "magma.plugins.registry"):
        replace_attribute(import_module(module), "installed", lambda: both)


def train_all(folder: Path, jobs: list[dict[str, Any]]) -> None:
    """Every job: a recipe, a folder, and whether to stop half-way, to resume a copy of another run, to measure."""
    from magma import Recipe
    from magma.training.progress import Callbacks, Progress
    from magma.training.train import train

    rank = int(os.environ.get("RANK", 0))

    def halfway(now: Progress) -> None:
        if now.step == HALF:
            os.kill(os.getpid(), signal.SIGINT)

    for job in jobs:
        out = folder / job["out"]
        if job.get("copy") and rank == 0:
            shutil.copytree(folder / job["copy"], out)
        callbacks = Callbacks(step=halfway) if job.get("stop") else Callbacks()
        with highest_memory() if job.get("measured") else contextlib.nullcontext([0]) as memory:
            result = train(Recipe.load(job["recipe"]), out, resume=bool(job.get("copy")), callbacks=callbacks)
        (out / f"memory-{rank}").write_text(str(memory[-1]))
        if rank == 0:
            (out / "result.json").write_text(json.dumps(replace(result, folder=str(result.folder)).__dict__))


@contextlib.contextmanager
def highest_memory() -> Iterator[list[int]]:
    """Yields a list: at the end, its last entry is the largest growth of memory without a file, in bytes."""

    def anonymous() -> int:
        found = next(line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
        return 1024 * int(found.split()[1])

    before, found = anonymous(), [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.003):
            found.append(max(found[-1], anonymous() - before))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        done.set()
        watching.join()


def main(folder: Path) -> None:
    """The jobs of `jobs.json`."""
    install_toys()
    train_all(folder, json.loads((folder / "jobs.json").read_text()))


def note_connection(place: Path) -> None:
    """At the end of the process: is it still connected to the others? (Written after what was registered later.)"""
    import torch

    place.write_text(str(torch.distributed.is_initialized()))


if __name__ == "__main__":
    try:
        folder = Path(sys.argv[1])
        atexit.register(note_connection, folder / f"connected-{os.environ['RANK']}")
        main(folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
