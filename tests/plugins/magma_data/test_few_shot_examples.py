"""Which few-shot examples a question gets."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from magma_data.tasks.question_answering import Vqa2Task
from task_rows import LAYOUTS, SPLITS, Rows, asked, jsonl, png, questions, told

from magma import InputError

# Completed examples


def test_shots_are_seeded_by_question_and_recorded(vqa: Path) -> None:
    first, again, other = (questions(Vqa2Task, vqa, 4, seed) for seed in (5, 5, 6))
    assert [(q.id, q.shots, told(q.segments)) for q in first] == [(q.id, q.shots, told(q.segments)) for q in again]
    assert [q.shots for q in first] != [q.shots for q in other]
    assert len({tuple(q.shots) for q in first}) > 1
    assert all(len(set(q.shots)) == 4 for q in first)
    limited = questions(Vqa2Task, vqa, 4, 5, limit=2)
    assert [(q.id, q.shots) for q in limited] == [(q.id, q.shots) for q in first[:2]]


def test_fixed_shots_stand_before_every_question(vqa: Path) -> None:
    found = questions(Vqa2Task, vqa, 3, fixed_shots=True)
    assert len({tuple(q.shots) for q in found}) == 1
    for question in found:
        assert all(a is b for a, b in zip(question.segments[:6:2], found[0].segments[:6:2], strict=True))
    assert found[0].shots != questions(Vqa2Task, vqa, 3, seed=1, fixed_shots=True)[0].shots


@pytest.mark.parametrize("write", LAYOUTS)
@pytest.mark.parametrize("fixed", [False, True])
def test_no_shot_is_about_the_questions_own_image(
    write: Callable[[Path, dict[str, Rows]], Path], fixed: bool, tmp_path: Path
) -> None:
    folder = write(tmp_path / "set", SPLITS)
    for seed in range(10):
        for question in questions(Vqa2Task, folder, 4, seed, shots_split="val", fixed_shots=fixed):
            assert question.id[:-3] not in [shot[:-3] for shot in question.shots]
    with pytest.raises(InputError, match="5 shots: 4 few-shot examples are available for question 0000; allowed: "):
        questions(Vqa2Task, folder, 5, shots_split="val")


def test_unanswered_and_unreadable_rows_are_no_shots(tmp_path: Path) -> None:
    rows = [asked(i) for i in range(10, 14)]
    rows[0]["questions"][0]["answers"] = []
    rows[1]["questions"][1]["answers"] = ["", " "]
    rows[2]["questions"] = "none"
    folder = jsonl(tmp_path / "set", {"train": rows, "val": SPLITS["val"]})
    shots = {shot for seed in range(9) for q in questions(Vqa2Task, folder, 4, seed) for shot in q.shots}
    assert shots == {"10001", "11000", "13000", "13001"}


@pytest.mark.parametrize("write", LAYOUTS)
def test_shots_come_from_all_over_their_split(write: Callable[[Path, dict[str, Rows]], Path], tmp_path: Path) -> None:
    folder = write(
        tmp_path / "set", {"train": [asked(i) for i in range(60)], "val": [asked(i) for i in range(90, 130)]}
    )
    shots = [int(shot[:-3]) for q in questions(Vqa2Task, folder, 4) for shot in q.shots]
    assert len(set(shots)) > 20
    assert min(shots) < 15
    assert max(shots) >= 45


def test_the_split_of_the_shots_is_not_held(tmp_path: Path) -> None:
    """Memory grows with what is shown, not with the split: 2,000 images in shards, of which 512 rows are kept."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(20):
        with webdataset.TarWriter(str(folder / f"train-{number:06}.tar")) as tar:
            for i in range(number * 100, number * 100 + 100):
                sample = {"png": png(i) + bytes(50_000), "json": json.dumps(asked(i)).encode()}
                tar.write({"__key__": f"{i:09}", **sample})
    jsonl(folder / "other", {"val": SPLITS["val"]})
    with webdataset.TarWriter(str(folder / "val-000000.tar")) as tar:
        tar.write({"__key__": "000000000", "png": png(0), "json": json.dumps(asked(0)).encode()})
    tracemalloc.start()
    found = questions(Vqa2Task, folder, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 2
    assert peak < 45e6 < 2000 * 50_000
