"""Clips of moving shapes: what the command makes, what the task asks, and what the recipe learns."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from magma_video.moving_shapes.draw import DIRECTIONS, FRAMES, OPPOSITE, MovingShape
from magma_video.moving_shapes.make import make
from magma_video.moving_shapes.source import MovingShapes
from magma_video.moving_shapes.task import MovingShapesTask, first_direction
from video_files import decoded

import magma
from magma import InputError, Media, Text


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "moving_shapes"
    make(folder, train=8, test=4, seed=0)
    return folder


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def centre(pixels: np.ndarray) -> tuple[float, float]:
    """Where the bright shape is: x and y."""
    light = pixels.astype(float).sum(2)
    light -= np.median(light)
    light[light < 60] = 0
    y, x = np.indices(light.shape)
    return float((x * light).sum() / light.sum()), float((y * light).sum() / light.sum())


@pytest.mark.parametrize("split", ["train", "test"])
def test_clips_show_what_their_rows_say(split: str, clips: Path) -> None:
    found = rows(clips, split)
    forward = [row["answer"] for row in found if row["group"] == "forward"]
    assert forward == [*DIRECTIONS] * (2 if split == "train" else 1)
    for row in found:
        frames = decoded(clips / row["video"])
        assert len(frames) == FRAMES
        (x0, y0), (x1, y1) = centre(frames[0]), centre(frames[-1])
        dx, dy = DIRECTIONS[row["answer"]]
        assert np.sign(round((x1 - x0) / 8)) == dx
        assert np.sign(round((y1 - y0) / 8)) == dy


def test_held_out_clips_are_written_in_both_orders(clips: Path) -> None:
    found = rows(clips, "test")
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert (one["group"], other["group"]) == ("forward", "reversed")
        assert other["answer"] == OPPOSITE[one["answer"]]
        pairs = zip(decoded(clips / one["video"]), reversed(decoded(clips / other["video"])), strict=True)
        for a, b in pairs:
            assert np.abs(a.astype(int) - b).mean() < 3  # both are compressed


def test_one_frame_says_nothing_about_the_side() -> None:
    """The middle of a clip, and so the set of its frames, has the same distribution in both directions."""
    for a, b in (("left", "right"), ("up", "down")):
        one, other = (MovingShape.random(name, random.Random(5)) for name in (a, b))
        assert one.middle == other.middle
        assert np.array_equal(one.frames(), other.frames()[::-1])


def test_the_same_arguments_give_the_same_clips(clips: Path, tmp_path: Path) -> None:
    make(tmp_path, train=2, test=1, seed=0)
    assert rows(tmp_path, "train") == rows(clips, "train")[:2]
    for name in ("train/00001.mp4", "test/00000_reversed.mp4"):
        assert (tmp_path / name).read_bytes() == (clips / name).read_bytes()
    make(tmp_path / "other", train=2, test=1, seed=1)
    assert (tmp_path / "other/train/00001.mp4").read_bytes() != (clips / "train/00001.mp4").read_bytes()


def test_a_folder_with_something_in_it_is_not_written_to(clips: Path) -> None:
    with pytest.raises(InputError, match="which exists; allowed: a new or an empty folder"):
        make(clips, train=1, test=1, seed=0)


def test_the_command(tmp_path: Path) -> None:
    done = program.magma("data", "make", "moving-shapes", "--out", tmp_path / "a", "--train", "3", "--test", "1")
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "a", "train")) == 3
    assert len(list((tmp_path / "a").rglob("*.mp4"))) == 5


def test_questions_of_the_task(clips: Path) -> None:
    task = MovingShapesTask(MovingShapesTask.Config(path=str(clips)), 0)
    asked = list(task.questions("test", 0, 0))
    assert len(asked) == 8
    assert len({question.id for question in asked}) == 8
    assert [question.answer for question in asked[:4]] == ["left", "right", "right", "left"]
    limited = MovingShapesTask(MovingShapesTask.Config(path=str(clips), limit=1), 0)
    (first, _) = limited.questions("test", 2, 0)
    assert len([one for one in first.segments if isinstance(one, Media)]) == 3
    assert first.shot_lengths == [3, 3]
    assert len(set(first.shots)) == 2
    with pytest.raises(InputError, match="99 shots: allowed: at most 8"):
        list(task.questions("test", 99, 0))
    with pytest.raises(InputError, match="val.jsonl: no such file"):
        list(task.questions("val", 0, 0))


def test_examples_ask_before_they_show(clips: Path) -> None:
    source = MovingShapes(MovingShapes.Config(path=str(clips)), 0)
    found = list(source.iterate())
    example, state = found[2]
    question, medium, answer = example.segments
    assert isinstance(question, Text)
    assert isinstance(medium, Media)
    assert isinstance(answer, Text)
    assert (question.text, medium.name, answer.target) == ("Which way does it move?", "video", True)
    assert answer.text.strip() in DIRECTIONS
    rest = [one for one, _ in source.iterate(state)]
    assert [one.name for one in rest] == [one.name for one, _ in found[3:]]
    second = [one.name for one, _ in source.iterate(found[-1][1])]
    assert sorted(second) == sorted(one.name for one, _ in found)
    assert second != [one.name for one, _ in found]


def test_missing_clips_are_reported_with_the_command(tmp_path: Path) -> None:
    (problem,) = MovingShapesTask.problems(MovingShapesTask.Config(path=str(tmp_path)))
    assert "has no train.jsonl and no test.jsonl" in problem
    assert "magma data make moving-shapes --out" in problem


@pytest.mark.parametrize(
    ("text", "word"), [(" left.", "left"), ("It is Up, not down", "up"), ("the moon", ""), ("", "")]
)
def test_the_first_direction_of_an_answer_counts(text: str, word: str) -> None:
    assert first_direction(text) == word


@pytest.mark.timed
@pytest.mark.slow
def test_the_recipe_learns_which_way_a_shape_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "moving_shapes", train=2000, test=200, seed=0)
    monkeypatch.setenv("MAGMA_DATA", str(tmp_path))
    start = time.monotonic()
    report = magma.run("moving_shapes", tmp_path / "run")
    assert time.monotonic() - start < 360
    scores = report["tasks"]["0.moving_shapes"]
    for name in ("accuracy", "reversed_accuracy"):
        assert scores["model"][name] >= 0.9
        assert scores["shuffled"][name] <= 0.35
        assert scores["blind"][name] <= 0.3
    assert report["frozen_unchanged"] is True
