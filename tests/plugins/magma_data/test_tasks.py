"""Questions of the published sets: prompts, completed examples before them, and what they share."""

from __future__ import annotations

import io
import itertools
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset
from magma_data.tasks.captioning import CocoCaptionsTask, NocapsTask
from magma_data.tasks.entailment import SnliVeTask
from magma_data.tasks.question_answering import GqaTask, OkVqaTask, VizWizTask, Vqa2Task
from magma_data.tasks.rows import RowsTask
from PIL import Image

import magma
from magma import InputError, Media, Question, Text

Rows = Sequence[dict[str, Any]]


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (i % 256, i // 256, 7)).save(file, "PNG")
    return file.getvalue()


def jsonl(folder: Path, splits: dict[str, Rows]) -> Path:
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        lines = []
        for row in rows:
            (folder / f"{row['id']}.png").write_bytes(png(int(row["id"])))
            lines.append(json.dumps({"image": f"{row['id']}.png", **row}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def shards(folder: Path, splits: dict[str, Rows]) -> Path:
    """As `magma data convert` writes them."""
    folder.mkdir()
    index: dict[str, Any] = {"format": 1, "name": "a set", "kind": "vqa", "splits": {}}
    for split, rows in splits.items():
        listed = []
        for number, start in enumerate(range(0, len(rows), 2)):
            listed.append({"file": f"{split}-{number:06}.tar"})
            with webdataset.TarWriter(str(folder / listed[-1]["file"])) as tar:
                for row in rows[start : start + 2]:
                    sample = {"png": png(int(row["id"])), "json": json.dumps(row).encode()}
                    tar.write({"__key__": f"{split}-{int(row['id']):09}", **sample})
        index["splits"][split] = {"shards": listed}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def asked(i: int, count: int = 2) -> dict[str, Any]:
    """An image with its questions."""
    people = [f"a {i}"] * 3 + [f"the {i}"] * 4 + [""] * 3
    questions = [
        {
            "id": f"{i}00{n}",
            "question": f"What is {n} of {i}?",
            "answers": people,
            "answer_type": ("number", "other")[n],
        }
        for n in range(count)
    ]
    return {"id": str(i), "questions": questions}


SPLITS: dict[str, Rows] = {"train": [asked(i) for i in range(10, 15)], "val": [asked(i) for i in range(3)]}
LAYOUTS = [jsonl, shards]


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "vqa2", SPLITS)


def task(part: type[RowsTask], path: Path, **fields: Any) -> RowsTask:
    return part(part.Config(path=str(path), **fields), 0)  # type: ignore[call-arg]


def questions(part: type[RowsTask], path: Path, shots: int = 0, seed: int = 0, **fields: Any) -> list[Question]:
    return list(task(part, path, **fields).questions("test", shots, seed))


def told(segments: Sequence[Any]) -> list[str | bytes]:
    """Texts as they are; of a medium its bytes."""
    found: list[str | bytes] = []
    for segment in segments:
        if isinstance(segment, Text):
            assert not segment.target
            found.append(segment.text)
        else:
            assert isinstance(segment, Media)
            assert segment.name == "image"
            found.append(segment.value if isinstance(segment.value, bytes) else segment.value.read_bytes())
    return found


# Prompts


@pytest.mark.parametrize("write", LAYOUTS)
def test_zero_shot_prompt_format(write: Callable[[Path, dict[str, Rows]], Path], tmp_path: Path) -> None:
    """Figure 3: image, question and answer of each completed example, then image and question."""
    found = questions(Vqa2Task, write(tmp_path / "set", SPLITS), shots=2)
    for question in found:
        n, i = int(question.id[-1]), int(question.id[:-3])
        expected: list[str | bytes] = []
        for shot in question.shots:
            m, j = int(shot[-1]), int(shot[:-3])
            expected += [png(j), f"Q: What is {m} of {j}? A: the {j}\n"]
        assert told(question.segments) == [*expected, png(i), f"Q: What is {n} of {i}? A:"]
        assert question.answer == f"the {i}"
        assert list(question.answers) == [f"a {i}"] * 3 + [f"the {i}"] * 4 + [""] * 3
        assert question.group == ("number", "other")[n]
    assert [question.id for question in found] == ["0000", "0001", "1000", "1001", "2000", "2001"]


def test_few_shot_prompt_format(tmp_path: Path) -> None:
    """The literal bytes of a 2-shot prompt."""

    def one(i: int, question: str, answer: str) -> dict[str, Any]:
        return {"id": str(i), "questions": [{"id": str(i), "question": question, "answers": [answer] * 10}]}

    rows = {
        "train": [one(1, "Which liquid is in the glass?", "water"), one(2, "What is it made of?", "wood")],
        "val": [one(3, "Where does this animal live?", "ocean")],
    }
    (question,) = questions(OkVqaTask, jsonl(tmp_path / "okvqa", rows), shots=2, seed=1)
    texts = {"1": "Q: Which liquid is in the glass? A: water\n", "2": "Q: What is it made of? A: wood\n"}
    (a, b), last = question.shots, "Q: Where does this animal live? A:"
    assert {a, b} == {"1", "2"}
    assert told(question.segments) == [png(int(a)), texts[a], png(int(b)), texts[b], png(3), last]


def test_templates_are_the_configs(vqa: Path) -> None:
    found = questions(
        Vqa2Task,
        vqa,
        shots=1,
        template="<{question}>",
        shot_separator=" | ",
        input="image",
        limit=3,
        split="val",
        seed=2,
    )
    assert len(found) == 3
    for question in found:
        _, shot, _, prompt = told(question.segments)
        assert str(shot).startswith("<What is ")
        assert str(shot).endswith(" | ")
        assert str(prompt).startswith("<What is ")
        assert str(prompt).endswith(">")


@pytest.mark.parametrize("part", [Vqa2Task, CocoCaptionsTask])
@pytest.mark.parametrize("shots", [0, 3])
def test_both_layouts_ask_the_same(part: type[RowsTask], shots: int, tmp_path: Path) -> None:
    rows = {
        split: [{**row, "captions": [f"a caption of {row['id']}", "another"]} for row in some]
        for split, some in SPLITS.items()
    }
    found = [questions(part, write(tmp_path / write.__name__, rows), shots, split="val") for write in LAYOUTS]
    one, other = ([(q.id, q.answer, q.answers, q.group, q.shots, told(q.segments)) for q in some] for some in found)
    assert one == other
    known = {question.id for question in questions(part, tmp_path / "jsonl", split="train")}
    assert all(len(set(q.shots)) == shots and set(q.shots) <= known for some in found for q in some)


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
    with pytest.raises(InputError, match="5 shots: 4 completed examples can stand before question 0000; allowed: "):
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


# What questions share


@pytest.mark.parametrize("write", LAYOUTS)
def test_questions_about_an_image_share_its_medium(
    write: Callable[[Path, dict[str, Rows]], Path], tmp_path: Path
) -> None:
    found = questions(Vqa2Task, write(tmp_path / "set", SPLITS), 1)
    media = [question.segments[-2] for question in found]
    assert [len(list(same)) for _, same in itertools.groupby(media, id)] == [2, 2, 2]
    assert len({id(medium.value) for medium in media}) == 3


def test_rows_about_one_file_come_together(tmp_path: Path) -> None:
    rows = [{"image": f"{i % 2}.png", "question": f"{i}?", "answer": "yes"} for i in range(6)]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = questions(Vqa2Task, tmp_path)
    assert [told([q.segments[-1]]) for q in found] == [[f"Q: {i}? A:"] for i in (0, 2, 4, 1, 3, 5)]
    assert [q.id for q in found] == [f"val.jsonl line {i}" for i in (1, 3, 5, 2, 4, 6)]
    assert len({id(q.segments[0]) for q in found}) == 2
    assert [(q.answer, q.answers) for q in found] == [("yes", ("yes",))] * 6
    assert {q.segments[0].value for q in found} == {tmp_path / "0.png", tmp_path / "1.png"}


# The sets


def test_each_set_has_its_split_and_its_types(tmp_path: Path) -> None:
    row = asked(1, 1)
    row["questions"][0] |= {"answer_type": "unanswerable", "question_type": "verify", "group": "Sports"}
    folder = jsonl(tmp_path / "set", {"val": [row], "testdev": [row]})
    types = {Vqa2Task: "unanswerable", OkVqaTask: "Sports", VizWizTask: "unanswerable", GqaTask: "verify"}
    for part, group in types.items():
        (question,) = questions(part, folder)
        assert question.group == group, part
    assert GqaTask.Config().split == "testdev"
    assert {part.Config().split for part in (Vqa2Task, OkVqaTask, VizWizTask)} == {"val"}  # type: ignore[attr-defined]
    assert (SnliVeTask.Config().split, CocoCaptionsTask.Config().split, NocapsTask.Config().split) == (
        "test",
        "test",
        "val",
    )


def test_any_split_of_the_data_can_be_evaluated(vqa: Path) -> None:
    def ids(asked: str, **fields: Any) -> list[str]:
        return [q.id for q in task(Vqa2Task, vqa, limit=3, **fields).questions(asked, 0, 0)]

    assert ids("train") == ["10000", "10001", "11000"]
    assert ids("val") == ids("test") == ids("val", split="train")  # "test": the split that the config names
    assert ids("test", split="train") == ids("train")
    with pytest.raises(InputError, match=r"split: given 'dev', which .* does not have; allowed: train, val$"):
        ids("dev")


def test_a_default_path_is_looked_for_in_magma_data(vqa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGMA_DATA", str(vqa.parent))
    assert Vqa2Task.problems(Vqa2Task.Config()) == []
    assert len(list(Vqa2Task(Vqa2Task.Config(), 0).questions("test", 0, 0))) == 6


def test_captions_are_those_of_an_image(tmp_path: Path) -> None:
    domains = ("in-domain", "near-domain", "out-domain", "in-domain")
    rows = [{"id": str(i), "captions": [f"a dog {i}", "b"], "domain": domains[i]} for i in range(4)]
    found = questions(NocapsTask, jsonl(tmp_path / "set", {"val": rows}), 2)
    assert [q.group for q in found] == ["in", "near", "out", "in"]
    for i, question in enumerate(found):
        a, b = question.shots
        assert str(i) not in (a, b)
        shots = [png(int(a)), f"A picture of a dog {a}\n", png(int(b)), f"A picture of a dog {b}\n"]
        assert told(question.segments) == [*shots, png(i), "A picture of"]
        assert list(question.answers) == [f"a dog {i}", "b"]


def test_rows_with_a_caption_each_are_one_question(tmp_path: Path) -> None:
    said = ["a", "b", "c", "d", "e", "f"]
    rows = [{"image": f"{i % 2}.png", "caption": text} for i, text in enumerate(said)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = questions(CocoCaptionsTask, tmp_path)
    assert [(q.id, list(q.answers)) for q in found] == [
        ("test.jsonl line 1", ["a", "c", "e"]),
        ("test.jsonl line 2", ["b", "d", "f"]),
    ]


# With models


PIXELS = 64
ENCODER = {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": PIXELS}
RECIPE: dict[str, Any] = {
    "name": "asked",
    "lm": {"use": "gptj", "weights": "bundled:tiny"},
    "inputs": {"image": {"encoder": ENCODER, "prefix": {"use": "linear"}}},
}


def test_entailment_is_asked_of_a_model_with_a_head(tmp_path: Path) -> None:
    labels = ["entailment", "neutral", "contradiction"]
    rows = [
        {"id": str(i), "statements": [{"id": f"{i}#{n}", "text": f"It is {n}.", "label": labels[n]} for n in range(3)]}
        for i in range(4)
    ]
    folder = jsonl(
        tmp_path / "snli_ve", {"test": rows, "train": [{**row, "id": f"{9 + i}"} for i, row in enumerate(rows)]}
    )
    asking = task(SnliVeTask, folder)
    (first, *_) = asking.questions("test", 0, 0)
    assert told(first.segments) == [png(0), "It is 0."]
    assert told(next(asking.questions("test", 1, 0)).segments[1:2])[0] in {
        f"It is {n}. {labels[n]}\n" for n in range(3)
    }
    model = magma.assemble({**RECIPE, "head": {"use": "linear", "classes": labels}}).eval()
    found = magma.evaluate(model, asking, baselines=("",))
    assert len(found) == 12
    assert {prediction.text for prediction in found} <= set(labels)
    scores = asking.score(found)
    assert set(scores) == {"accuracy", *(f"accuracy_{label}" for label in labels)}
    right = sum(prediction.text == prediction.question.answer for prediction in found)
    assert scores["accuracy"] == pytest.approx(100 * right / 12)


def test_questions_are_asked_of_a_model_that_writes(vqa: Path) -> None:
    model = magma.assemble(RECIPE).eval()
    asking = task(Vqa2Task, vqa, shot_separator=" ")
    one, many = (magma.evaluate(model, asking, shots=1, batch_size=size) for size in (1, 32))
    assert [(p.text, p.output) for p in one] == [(p.text, p.output) for p in many]
    for prediction in one:
        assert len(prediction.text.split()) <= 2
        assert "\n" not in prediction.output
    assert set(asking.score(one)) == {"accuracy", "accuracy_number", "accuracy_other"}


# What is missing


def test_a_missing_set_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = GqaTask.problems(GqaTask.Config())
    assert problem == (
        "path: given 'gqa', which is neither beside the recipe nor in $MAGMA_DATA nor in the working folder. `magma "
        "data convert gqa FOLDER --out gqa` makes it of the official files, from "
        "https://cs.stanford.edu/people/dorarad/gqa/download.html; set `path` to it, or MAGMA_DATA to the folder that "
        "holds it"
    )
    with pytest.raises(InputError, match="path: given 'vizwiz', which is neither"):
        next(VizWizTask(VizWizTask.Config(), 0).questions("test", 0, 0))


def test_a_missing_split_is_named(vqa: Path) -> None:
    (problem,) = Vqa2Task.problems(Vqa2Task.Config(path=str(vqa), split="test"))
    assert problem == f"split: given 'test', which {vqa} does not have; allowed: train, val"
    with pytest.raises(InputError, match="split: given 'test'"):
        questions(Vqa2Task, vqa, shots=1, shots_split="test")
    assert len(questions(Vqa2Task, vqa, shots_split="test")) == 6  # nobody asks for shots


def test_rows_that_cannot_be_asked_about_are_named(tmp_path: Path) -> None:
    row = asked(1, 1)
    row["questions"][0]["answers"] = []
    folder = jsonl(tmp_path / "set", {"val": [row]})
    with pytest.raises(InputError, match=r"val.jsonl line 1 questions 0: answers: given \[\]; .* kept from the public"):
        questions(Vqa2Task, folder)
    jsonl(folder, {"val": [asked(1), asked(1)]})
    with pytest.raises(InputError, match="two questions have the id '1000'; allowed: one of its own for each"):
        questions(Vqa2Task, folder)
    (folder / "val.jsonl").write_text("{broken")
    with pytest.raises(InputError, match="val.jsonl line 1: no JSON"):
        questions(Vqa2Task, folder)
