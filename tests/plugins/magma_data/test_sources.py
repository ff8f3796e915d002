"""Captions, questions and labels on disk."""

from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from magma_data.formats.order import IndexedRows
from magma_data.sources.captions import Captions
from magma_data.sources.labelled import Labelled
from magma_data.sources.question_answering import Vqa
from magma_data.sources.rows import RowSource
from PIL import Image
from pydantic import ValidationError

import magma
from magma import Example, InputError, Media, SourceState, Text


def write(folder: Path, name: str, rows: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))


def source(part: type[RowSource], path: Path, seed: int = 0, **fields: Any) -> RowSource:
    return part(part.Config(path=str(path), **fields), seed)  # type: ignore[call-arg]


def at(epoch: int) -> SourceState:
    return {"epoch": epoch, "position": 0}


def said(example: Example) -> list[str]:
    return [segment.text for segment in example.segments if isinstance(segment, Text)]


def problems(rows: RowSource) -> list[str]:
    return [example.problem for example, _ in rows.iterate() if example.problem is not None]


def several(pairs: RowSource, count: int, state: SourceState | None = None) -> list[tuple[str, list[str], SourceState]]:
    """The next examples, over as many passes as it takes."""
    found: list[tuple[str, list[str], SourceState]] = []
    while len(found) < count:
        for example, after in itertools.islice(pairs.iterate(state), count - len(found)):
            found.append((example.name, said(example), after))
        state = found[-1][2]
    return found


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    rows = [{"image": f"images/{i}.png", "captions": [f"a {i}", f"the {i}", f"one {i}"]} for i in range(7)]
    write(tmp_path / "set", "train.jsonl", rows)
    write(tmp_path / "set", "val.jsonl", [{"image": "images/0.png", "caption": "a validation"}])
    return tmp_path / "set"


def test_a_caption_is_the_target_behind_its_image(captions: Path) -> None:
    ((example, _),) = source(Captions, captions, split="val").iterate()
    medium, text = example.segments
    assert medium == Media("image", captions / "images/0.png")
    assert text == Text("a validation", target=True)
    assert example.name == f"{captions / 'val.jsonl'} line 1"
    assert len(list(source(Captions, captions).iterate())) == 8
    assert len(list(source(Captions, captions / "train.jsonl", limit=3).iterate())) == 3


def test_a_template_makes_a_sentence_of_a_caption(captions: Path) -> None:
    ((example, _),) = source(Captions, captions, split="val", template="<bos>It is {caption}.").iterate()
    text = example.segments[1]
    assert text == Text("<bos>It is a validation.", target=True)
    assert isinstance(text, Text)
    assert text.control == ((0, 11), (23, 24))  # the caption cannot contain control tokens
    with pytest.raises(ValidationError, match=r"contains \{caption\} once, not 'A picture'"):
        source(Captions, captions, template="A picture")


@pytest.mark.parametrize("shuffle", [True, False])
def test_it_goes_on_from_any_row(captions: Path, shuffle: bool) -> None:
    pairs = source(Captions, captions, split="train", shuffle=shuffle)
    whole = several(pairs, 14)
    for position in range(13):
        again = source(Captions, captions, split="train", shuffle=shuffle)
        state = json.loads(json.dumps(whole[position][2]))
        assert several(again, 13 - position, state) == whole[position + 1 :]
    first, second = ([name for name, _, _ in whole[at : at + 7]] for at in (0, 7))
    assert sorted(first) == sorted(second)
    assert (first == second) is (not shuffle)
    for seed in (1, -1):
        other = several(source(Captions, captions, seed=seed, split="train"), 7)
        assert [name for name, _, _ in other] != first
        assert sorted(texts for _, texts, _ in other) != sorted(texts for _, texts, _ in whole[:7])


def test_a_pass_draws_one_of_several_texts(captions: Path) -> None:
    texts = {text for _, (text,), _ in several(source(Captions, captions, split="train"), 140)}
    assert texts == {f"{word} {i}" for word in ("a", "the", "one") for i in range(7)}
    still = {text for _, (text,), _ in several(source(Captions, captions, split="train", shuffle=False), 21)}
    assert still == {f"a {i}" for i in range(7)}


def test_questions_and_answers(tmp_path: Path) -> None:
    write(tmp_path, "q.jsonl", [{"image": "0.png", "question": "What {is}?", "answers": ["one", "two", "two"]}])
    ((example, _),) = source(Vqa, tmp_path, shuffle=False).iterate()
    assert example.segments[1:] == [Text("Q: What {is}? A:"), Text(" two", target=True)]
    ((example, _),) = source(Vqa, tmp_path, shuffle=False, template="{question} Answer:").iterate()
    assert said(example)[0] == "What {is}? Answer:"
    drawn = {said(example)[1] for epoch in range(40) for example, _ in source(Vqa, tmp_path).iterate(at(epoch))}
    assert drawn == {" one", " two"}


def test_the_most_frequent_answer_and_the_first_of_equals(tmp_path: Path) -> None:
    for answers, most in ((["b", "a", "a ", "c"], " a"), (["b", "a", "a", "b"], " b")):
        write(tmp_path, "q.jsonl", [{"image": "0.png", "question": "Q?", "answers": answers}])
        ((example, _),) = source(Vqa, tmp_path, shuffle=False).iterate()
        assert said(example)[1] == most


def test_labels(tmp_path: Path) -> None:
    write(tmp_path, "l.jsonl", [{"image": "0.png", "text": "It rains.", "label": "neutral"}])
    ((example, _),) = source(Labelled, tmp_path).iterate()
    assert example.label == "neutral"
    assert example.segments[1:] == [Text("It rains.")]
    ((example, _),) = source(Labelled, tmp_path, template="Claim: {text}").iterate()
    assert said(example) == ["Claim: It rains."]


def test_the_authors_folders(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "images/0").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"images/0/{i}.jpg")
        row = {"image_path": f"images/0/{i}.jpg", "captions": [f"caption {i}"], "metadata": {}}
        write(tmp_path / "image_data/0", f"{i}.json", [row])
    found = [example for example, _ in source(Captions, tmp_path).iterate()]
    assert sorted(text for example in found for text in said(example)) == [f"caption {i}" for i in range(3)]
    for example in found:
        medium = example.segments[0]
        assert isinstance(medium, Media)
        assert medium.value.is_file()
    for split in (None, "val"):
        assert Vqa.problems(Vqa.Config(path=str(tmp_path), split=split)) == [
            f"path: {tmp_path} has none of: a folder that `save_to_disk` wrote, *.jsonl, *.tar, *.parquet, "
            "*.csv, *.tsv, *.json"
        ]
    assert Captions.problems(Captions.Config(path=str(tmp_path))) == []
    write(tmp_path / "image_data/0", "0.json", [{"captions": ["a"]}])
    (problem,) = problems(source(Captions, tmp_path))
    assert "image_data/0/0.json: image_path: given None; allowed: text" in problem


def test_the_authors_folders_have_no_splits(tmp_path: Path) -> None:
    """Else a recipe's train and val would be the same rows."""
    write(tmp_path / "image_data", "0.json", [{"image_path": "images/0.jpg", "captions": ["a"]}])
    (problem,) = Captions.problems(Captions.Config(path=str(tmp_path), split="val"))
    assert problem == (
        f"split: given 'val', which {tmp_path} does not have; allowed: `split = false`, which reads all rows"
    )
    with pytest.raises(InputError, match="given 'val'"):
        list(source(Captions, tmp_path, split="val").iterate())
    assert len(list(Captions(Captions.Config(path=str(tmp_path), split=False), 0).iterate())) == 1


def test_blank_lines_count_but_are_no_rows(tmp_path: Path) -> None:
    row = {"image": "0.png", "caption": "a"}
    write(tmp_path, "a.jsonl", ["", row, " ", {**row, "caption": "b"}])
    write(tmp_path, "b.jsonl", ["", row])
    found = [(example.name, said(example)) for example, _ in source(Captions, tmp_path, shuffle=False).iterate()]
    assert found == [
        (f"{tmp_path / 'a.jsonl'} line 2", ["a"]),
        (f"{tmp_path / 'a.jsonl'} line 4", ["b"]),
        (f"{tmp_path / 'b.jsonl'} line 2", ["a"]),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ("[1]", "line 1: given a list; allowed: a JSON object"),
        ({"caption": "a"}, "line 1: image: given None; allowed: text"),
        ({"image": "a.png", "caption": " "}, "line 1: caption: given ' '; allowed: text"),
        ({"image": "a.png", "captions": []}, r"line 1: captions: given \[\]; allowed: a list of texts"),
        ({"image": "../a.png", "caption": "a"}, 'line 1: image: given "../a.png"; allowed: a path inside'),
        ({"image": "/etc/a.png", "caption": "a"}, "allowed: a path inside"),
    ],
)
def test_a_bad_row_is_named(row: Any, message: str, tmp_path: Path) -> None:
    """In its turn: the rows around it are read."""
    good = {"image": "a.png", "caption": "a"}
    write(tmp_path, "c.jsonl", [row, good])
    rows = source(Captions, tmp_path, shuffle=False)
    (problem,) = problems(rows)
    assert re.search(message, problem)
    assert [said(example) for example, _ in rows.iterate()] == [[], ["a"]]


def test_what_is_missing_is_explained(captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Captions.Config(path="cc12m", source_url="https://example.org/cc12m")
    (problem,) = Captions.problems(gone)
    assert problem.startswith("path: given 'cc12m', which is neither beside the recipe nor in $MAGMA_DATA nor")
    assert "download it from https://example.org/cc12m. Allowed: a folder of rows" in problem
    assert "set `path` to it, or MAGMA_DATA to the folder that contains it" in problem
    assert Captions.problems(Captions.Config(path=str(captions), split="test")) == [
        f"split: given 'test', which {captions} does not have; allowed: train, val"
    ]
    assert Captions.problems(Captions.Config(path=str(tmp_path))) == [
        f"path: {tmp_path} contains several data sets with splits: set; allowed: one of them ({captions})"
    ]
    monkeypatch.setenv("MAGMA_DATA", str(tmp_path))
    recipe = magma.Recipe.load(
        {"name": "r", "lm": {"use": "gptj"}, "data": {"train": [{"use": "captions", "path": "set", "split": "train"}]}}
    )
    assert recipe.part("data.train.0")[1].path == str(captions)
    assert recipe.problems() == []


def test_memory_is_flat_in_the_number_of_rows(tmp_path: Path) -> None:
    """Sixteen bytes a row, and as much again while they are gathered."""
    row = json.dumps({"image": "0.png", "caption": "a caption of some length, so that texts would be seen"}) + "\n"
    (tmp_path / "c.jsonl").write_text(row * 200_000)
    pairs = source(Captions, tmp_path)
    tracemalloc.start()
    assert len(list(itertools.islice(pairs.iterate({"epoch": 0, "position": 150_000}), 1000))) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(pairs.rows, IndexedRows)
    assert len(pairs.rows) == 200_000
    assert peak < 12e6
