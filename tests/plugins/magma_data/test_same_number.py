"""A written and a spoken digit side by side: who meets whom, what is asked, what scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from magma_data.digits.same_number import PROMPT, SameNumber, SameNumberTask, held_out_pair
from magma_data.digits.written import images

from magma import InputError, Media, Prediction, Text

SIZES = {"inputs.image.encoder.width": 8, "inputs.audio.encoder.width": 16}


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Tones of every digit: five takes held out, eight not."""
    folder = tmp_path / "fsdd"
    folder.mkdir()
    for digit in range(10):
        for take in range(13):
            t = np.arange(1200 + 40 * take) / 8000
            soundfile.write(folder / f"{digit}_ann_{take}.wav", 0.3 * np.sin(2 * np.pi * (200 + 90 * digit) * t), 8000)
    return folder


def written(pixels: object) -> int:
    known, labels = images("train")
    return int(labels[next(i for i, one in enumerate(known) if np.array_equal(one, pixels))])


def test_training_leaves_some_pairs_out_and_half_are_the_same(recordings: Path) -> None:
    source = SameNumber(SameNumber.Config(path=str(recordings)), 0)
    met, answers = set(), []
    for epoch in range(4):
        for example, _ in source.iterate({"epoch": epoch, "position": 0}):
            image, recording, prompt, said = example.segments
            assert isinstance(image, Media)
            assert isinstance(recording, Media)
            assert (image.name, recording.name, prompt) == ("image", "audio", Text(PROMPT))
            pair = written(image.value), int(recording.value.name[0])
            assert said == Text(" yes" if pair[0] == pair[1] else " no", target=True)
            assert int(recording.value.stem.rpartition("_")[2]) >= 5
            met.add(pair)
            answers.append(pair[0] == pair[1])
    assert not {pair for pair in met if held_out_pair(*pair)}
    assert sum(held_out_pair(a, b) for a in range(10) for b in range(10)) == 18
    assert {pair for pair in met if pair[0] == pair[1]} == {(n, n) for n in range(10)}
    assert 0.4 < sum(answers) / len(answers) < 0.6


def test_every_held_out_recording_is_asked_twice_and_guessing_scores_half(recordings: Path) -> None:
    task = SameNumberTask(SameNumberTask.Config(path=str(recordings)), 0)
    asked = list(task.questions("test", 0, 0))
    assert len(asked) == 100
    for question in asked:
        assert question.answer == ("yes" if question.extra["written"] == question.extra["spoken"] else "no")
        assert images("test")[1][question.extra["image"]] == question.extra["written"]
    assert any(held_out_pair(q.extra["written"], q.extra["spoken"]) for q in asked)
    for text in (" yes", "No, they are not."):
        assert task.score([Prediction(q, text) for q in asked])["accuracy"] == 0.5
    assert task.score([Prediction(q, q.answer) for q in asked]) == {"accuracy": 1.0, "accuracy_unseen": 1.0}
    assert task.score([Prediction(q, "maybe") for q in asked])["accuracy"] == 0.0
    shot = next(task.questions("test", 2, 0)).segments
    assert [type(s).__name__ for s in shot] == ["Media", "Media", "str"] * 3
    assert shot[2] in (f"{PROMPT} yes\n", f"{PROMPT} no\n")
    limited = SameNumberTask(SameNumberTask.Config(path=str(recordings), limit=7), 0)
    assert len(list(limited.questions("test", 0, 0))) == 14
    assert len(list(task.questions("train", 0, 0))) == 160
    with pytest.raises(InputError, match="^split: given 'val'; allowed: train, test$"):
        next(task.questions("val", 0, 0))


def run(out: Path, data: Path, *changes: str, processes: int = 1) -> dict[str, dict[str, dict[str, float]]]:
    """The recipe, by the program; its report's tasks."""
    paths = ("data.train.1", "data.train.2", "data.evaluation.1", "data.evaluation.2", "tasks.1", "tasks.2")
    changes = (*changes, *(f"{path}.path={data}" for path in paths))
    command = [sys.executable, "-m", "magma.cli", "recipe", "run", "see_and_hear", "--out", str(out)]
    command += ["--nproc", str(processes), *(word for change in changes for word in ("--set", change))]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    if processes > 1:
        environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, dict[str, float]]] = json.loads((out / "report.json").read_text())["tasks"]
    return found


@pytest.mark.slow
def test_two_processes_with_unequal_modalities_do_not_wait_for_each_other(recordings: Path, tmp_path: Path) -> None:
    small = [f"{path}={value}" for path, value in SIZES.items()]
    limits = [f"tasks.{i}.limit=4" for i in range(3)]
    found = run(
        tmp_path / "run",
        recordings,
        *small,
        *limits,
        "train.samples=96",
        "train.batch_size=8",
        "train.micro_batch_size=1",
        "train.evaluate_every=0",
        processes=2,
    )
    assert len(found) == 3


@pytest.mark.slow
def test_one_model_sees_and_hears(tmp_path: Path) -> None:
    """Real recordings, two thirds of the training."""
    data = Path(os.environ.get("MAGMA_DATA", "")) / "fsdd"
    if not data.is_dir():
        pytest.skip("MAGMA_DATA has no fsdd/")
    found = run(tmp_path / "run", data, "train.samples=23_000")
    images, speech, both = (found[name] for name in ("0.digits", "1.spoken_digits", "2.same_number"))
    assert images["model"]["caption_accuracy"] > 0.95
    assert speech["model"]["accuracy"] > 0.85
    assert both["model"]["accuracy"] > 0.8
    assert both["blind"]["accuracy"] == 0.5
    assert both["shuffled"]["accuracy"] < 0.6
