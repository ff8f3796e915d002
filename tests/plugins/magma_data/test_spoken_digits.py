"""Spoken digits: the split, the order of a pass, what is asked and scored, and a run that learns them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from magma_data.digits.spoken import SpokenDigits, SpokenDigitsTask

import magma
from magma import InputError, Media, Prediction


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Two speakers, ten digits, seven takes each; a digit is a pitch."""
    folder = tmp_path / "fsdd"
    folder.mkdir()
    for digit in range(10):
        for speaker in ("ann", "bob"):
            for take in range(7):
                time = np.arange(1600 + 80 * take) / 8000
                wave = 0.5 * np.sin(2 * np.pi * (200 + 150 * digit) * time)
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", wave.astype(np.float32), 8000)
    soundfile.write(folder / "noise.wav", wave, 8000)
    return folder


def test_spoken_digits_have_the_sets_own_split(spoken: Path) -> None:
    train = SpokenDigits(SpokenDigits.Config(path=str(spoken)), 0)
    test = SpokenDigits(SpokenDigits.Config(path=str(spoken), split="test"), 0)
    names = [[example.name for example, _ in source.iterate()] for source in (train, test)]
    assert [len(found) for found in names] == [40, 100]
    assert all(int(name[:-4].split("_")[-1]) >= 5 for name in names[0])
    assert names[1] == sorted(names[1])
    assert not set(names[0]) & set(names[1])


def test_spoken_digits_go_on_from_anywhere_in_an_order_of_each_pass(spoken: Path) -> None:
    source = SpokenDigits(SpokenDigits.Config(path=str(spoken)), 0)
    whole = list(source.iterate())
    assert [e.name for e, _ in source.iterate(whole[10][1])] == [e.name for e, _ in whole[11:]]
    again = [e.name for e, _ in source.iterate(whole[-1][1])]
    assert again != [e.name for e, _ in whole]
    assert sorted(again) == sorted(e.name for e, _ in whole)


def test_spoken_digits_are_asked_for_and_scored(spoken: Path) -> None:
    task = SpokenDigitsTask(SpokenDigitsTask.Config(path=str(spoken), limit=20), 0)
    asked = list(task.questions("test", 2, 0))
    assert len(asked) == 20
    assert {one.extra["speaker"] for one in asked} == {"ann", "bob"}
    assert len({one.answer for one in asked}) == 10
    shown = [segment.value for segment in asked[0].segments if isinstance(segment, Media)]
    assert len(shown) == 3
    assert not {path.name for path in shown[:2]} & {f"{one.id}.wav" for one in asked}
    said = [Prediction(one, f" {one.answer}." if one.extra["speaker"] == "ann" else " a two") for one in asked]
    scores = task.score(said)
    assert scores["accuracy_ann"] == 1.0
    assert scores["accuracy_bob"] == pytest.approx(0.1)
    assert not {one.id for one in task.questions("train", 0, 0)} & {one.id for one in task.questions("test", 0, 0)}
    with pytest.raises(InputError, match="^split: given 'val'; allowed: train, test$"):
        next(task.questions("val", 0, 0))


def test_what_is_not_there_is_said_with_where_to_get_it(tmp_path: Path) -> None:
    for part in (SpokenDigits, SpokenDigitsTask):
        (problem,) = part.problems(part.Config(path=str(tmp_path)))
        assert "https://github.com/Jakobovski/free-spoken-digit-dataset" in problem
    with pytest.raises(magma.RecipeError, match=r"data\.train\.0: path: given .*, which has no recordings"):
        magma.run("audio_digits", tmp_path / "run", [f"data.train.0.path={tmp_path}"])


def test_a_small_run_learns_to_hear(spoken: Path, tmp_path: Path) -> None:
    sizes = ("inputs.audio.encoder.seconds=0.5", "train.samples=1600", "train.evaluate_every=0", "train.batch_size=16")
    paths = [f"{where}.path={spoken}" for where in ("data.train.0", "data.evaluation.0", "tasks.0")]
    report = magma.run("audio_digits", tmp_path / "run", [*sizes, *paths, "train.lr=2e-3", "tasks.0.limit=40"])
    assert report["accuracy"] >= 0.9
    assert report["shuffled_accuracy"] < 0.4
    assert report["frozen_unchanged"] is True


@pytest.mark.slow
def test_real_spoken_digits_are_heard(tmp_path: Path) -> None:
    folder = Path(os.environ.get("MAGMA_DATA", "../shared/data")) / "fsdd"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set MAGMA_DATA to the folder that holds the Free Spoken Digit Dataset")
    paths = [f"{where}.path={folder.resolve()}" for where in ("data.train.0", "data.evaluation.0", "tasks.0")]
    # A quarter of the recipe's samples: smaller batches learn as much from them, without masks in the spectrograms.
    short = ["train.samples=4_800", "train.batch_size=16", "train.lr=1.5e-3", "train.evaluate_every=0"]
    short += ["inputs.audio.encoder.spec_augment=false"]
    report = magma.run("audio_digits", tmp_path / "run", [*paths, *short])
    assert report["accuracy"] >= 0.9
    assert report["shuffled_accuracy"] < 0.2
    assert report["frozen_unchanged"] is True
