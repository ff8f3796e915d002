"""Written and spoken digits, trained separately and combined without training: the answers, and what it never learned.

`python -m benchmarks.compose_digits FSDD OUT` trains recipes/quickstart.toml and recipes/audio_digits.toml with
`only_with` in all adapters, and combines the runs. It prints as JSON how many answers to all held-out images and
recordings differ from those of the two runs, and the scores of "Are they the same number?".
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from magma_data.digits.same_number import SameNumberTask
from magma_data.digits.spoken import SpokenDigitsTask
from magma_data.digits.written import DigitsTask

import magma
from magma import Magma, Prediction
from magma.compose import compose

RECIPES = {"image": "quickstart", "audio": "audio_digits"}


def train(name: str, recordings: Path, out: Path, samples: int | None) -> Path:
    """The run of one recipe whose adapters act only with its input."""
    changes = [f'adapters.{place}.only_with=["{name}"]' for place in ("attention", "mlp")]
    changes += ["tasks=[]", "train.evaluate_every=0", "train.workers=0"]
    if name == "audio":
        changes += [f"data.{use}.0.path={recordings}" for use in ("train", "evaluation")]
    if samples is not None:
        changes.append(f"train.samples={samples}")
    if not (out / name).exists():
        magma.run(RECIPES[name], out / name, changes)
    return out / name


def answers(model: Magma, task: magma.Task) -> list[Prediction]:
    """The model's own answers to all questions of the test split."""
    return magma.evaluate(model, task, baselines=("",))


def main() -> None:
    """Print the results as JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("recordings", type=Path, help="Folder of the Free Spoken Digit Dataset's recordings.")
    arguments.add_argument("out", type=Path, help="Folder of the three runs.")
    arguments.add_argument("--samples", type=int, help="Length of both trainings. Default: as in the recipes.")
    given = arguments.parse_args()
    runs = {name: train(name, given.recordings, given.out, given.samples) for name in RECIPES}
    if not (given.out / "both").exists():
        compose(list(runs.values()), given.out / "both")
    both = magma.load(given.out / "both")
    path = {"path": str(given.recordings)}
    tasks: dict[str, magma.Task] = {
        "image": DigitsTask(DigitsTask.Config(groups=("caption",)), 0),
        "audio": SpokenDigitsTask(SpokenDigitsTask.Config(**path), 0),
    }
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        before, after = answers(magma.load(runs[name]), task), answers(both, task)
        differing = sum(one.output != other.output for one, other in zip(before, after, strict=True))
        found[name] = {"answers": len(after), "that differ": differing, **task.score(after)}
    pairs = SameNumberTask(SameNumberTask.Config(**path), 0)
    said = answers(both, pairs)
    found["same_number"] = {"answers": len(said), **pairs.score(said), "examples": [one.text for one in said[:5]]}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
