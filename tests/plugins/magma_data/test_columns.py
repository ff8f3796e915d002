"""What a row says, however its columns are called: media, texts, nulls, empty texts."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from magma_data.digits.same_number import SameNumberTask
from magma_data.digits.spoken import SpokenDigitsTask
from magma_data.digits.written import DigitsTask
from magma_data.sources.captions import Captions
from magma_data.sources.labelled import Labelled
from magma_data.sources.plain_text import PlainText
from magma_data.sources.question_answering import Vqa
from magma_data.sources.rows import RowSource
from magma_data.tasks.captioning import CocoCaptionsTask
from magma_data.tasks.question_answering import GqaTask, Vqa2Task
from magma_data.tasks.rows import RowsTask

import magma
from magma import Example, InputError, Media, Question, RecipeError, Text


def lines(file: Path, *rows: Mapping[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file.parent


def source(part: type[RowSource], path: Path, **fields: Any) -> RowSource:
    return part(part.Config(path=str(path), shuffle=False, **fields), 0)  # type: ignore[call-arg]


def examples(part: type[RowSource], path: Path, **fields: Any) -> list[Example]:
    return [example for example, _ in source(part, path, **fields).iterate()]


def task(part: type[RowsTask], path: Path, **fields: Any) -> RowsTask:
    return part(part.Config(path=str(path), **fields), 0)  # type: ignore[call-arg]


def told(example: Example) -> tuple[str, bytes, list[str]]:
    assert example.problem is None, example.problem
    medium, *texts = example.segments
    assert isinstance(medium, Media)
    content = medium.value if isinstance(medium.value, bytes) else medium.value.read_bytes()
    return medium.name, content, [text.text for text in texts if isinstance(text, Text)]


# Columns by any name


def as_lines(folder: Path) -> Path:
    (folder / "clips").mkdir(parents=True)
    (folder / "clips/1.wav").write_bytes(b"sound")
    return lines(folder / "train.jsonl", {"path": "clips/1.wav", "sentence": "Hello.", "image": "no.png"})


def as_csv(folder: Path, suffix: str = "csv", comma: str = ",") -> Path:
    (folder / "clips").mkdir(parents=True)
    (folder / "clips/1.wav").write_bytes(b"sound")
    rows = (["path", "sentence", "image"], ["clips/1.wav", "Hello.", "no.png"])
    (folder / f"train.{suffix}").write_text("".join(comma.join(row) + "\n" for row in rows))
    return folder


def as_tsv(folder: Path) -> Path:
    return as_csv(folder, "tsv", "\t")


def as_compressed_json(folder: Path) -> Path:
    file = as_lines(folder) / "train.jsonl"
    (folder / "train.json.gz").write_bytes(gzip.compress(b"[" + file.read_bytes() + b"]"))
    file.unlink()
    return folder


def as_table(folder: Path) -> Path:
    import datasets

    column = {"path": [{"bytes": b"sound", "path": None}], "sentence": ["Hello."], "thumb": [b"pixels"]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(column)}).save_to_disk(folder)
    return folder


def as_parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    table = pa.table({"path": [b"sound"], "sentence": ["Hello."], "image": [b"pixels"]})
    pq.write_table(table, folder / "train.parquet")
    return folder


def as_tar(folder: Path) -> Path:
    """Here a column is the ending of a member."""
    folder.mkdir()
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for ending, content in {"path": b"sound", "png": b"pixels", "sentence": b"Hello.\n"}.items():
            info = tarfile.TarInfo(f"1.{ending}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("write", [as_lines, as_csv, as_tsv, as_compressed_json, as_table, as_parquet, as_tar])
def test_columns_say_which_is_which(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "set")
    for columns in ({"audio": "path", "text": "sentence"}, {"image": "path", "caption": "sentence"}):
        (example,) = examples(Captions, folder, input="audio", columns=columns)
        assert told(example) == ("audio", b"sound", ["Hello."])
    asked = task(CocoCaptionsTask, folder, split="train", input="audio", columns=columns)
    (question,) = asked.questions("test", 0, 0)
    assert question.answer == "Hello."
    medium = question.segments[0]
    assert isinstance(medium, Media)
    assert (medium.value if isinstance(medium.value, bytes) else medium.value.read_bytes()) == b"sound"


def test_every_source_takes_them(tmp_path: Path) -> None:
    (tmp_path / "1.wav").write_bytes(b"sound")
    row = {"file": "1.wav", "q": "Who?", "a": ["me"], "said": "Hello.", "kind": "calm"}
    folder = lines(tmp_path / "train.jsonl", row)
    (one,) = examples(Vqa, folder, columns={"image": "file", "question": "q", "answers": "a"})
    assert told(one)[2] == ["Q: Who? A:", " me"]
    (one,) = examples(Labelled, folder, columns={"image": "file", "text": "said", "label": "kind"})
    assert (told(one)[2], one.label) == (["Hello."], "calm")
    (one,) = examples(PlainText, folder, columns={"text": "said"})
    assert one.segments == [Text("Hello.", target=True)]
    nested = lines(tmp_path / "n/train.jsonl", {"file": "1.wav", "qas": [{"q": "A?", "a": "x"}, {"q": "B?", "a": "y"}]})
    columns = {"image": "file", "questions": "qas", "question": "q", "answer": "a"}
    assert [e.segments[2] for e in examples(Vqa, nested, columns=columns)] == [
        Text(" x", target=True),
        Text(" y", target=True),
    ]


def test_a_given_column_may_hold_a_list(tmp_path: Path) -> None:
    folder = lines(tmp_path / "t.jsonl", {"image": "1.png", "sentences": ["a", "b", "b"], "captions": ["c"]})
    (one,) = examples(Captions, folder, columns={"caption": "sentences"})
    assert one.segments[1] == Text("b", target=True)


def test_a_column_with_the_inputs_name_needs_no_words(tmp_path: Path) -> None:
    (tmp_path / "1.wav").write_bytes(b"sound")
    folder = lines(tmp_path / "t.jsonl", {"audio": "1.wav", "image": "no.png", "caption": "Hello."})
    assert told(examples(Captions, folder, input="audio")[0]) == ("audio", b"sound", ["Hello."])
    lines(folder / "t.jsonl", {"audio": None, "image": "1.wav", "caption": "Hello."})
    assert told(examples(Captions, folder, input="audio")[0])[1] == b"sound"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (as_lines, "sound: given None; allowed: text; columns of this row: path, sentence, image"),
        (as_table, "columns: given 'sound'; allowed: path, sentence, thumb"),
        (as_parquet, "columns: given 'sound'; allowed: path, sentence, image"),
        (as_tar, "columns: given 'sound'; allowed: path, png, sentence"),
    ],
)
def test_an_unknown_column_lists_the_known_ones(write: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "set")
    try:
        (example,) = examples(Captions, folder, columns={"image": "sound", "caption": "sentence"})
        problem = example.problem
    except InputError as error:
        problem = str(error)
    assert problem is not None
    assert message in problem


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"captoin": "a"}, "not of 'captoin'. Did you mean \"caption\"?"),
        ({"audio": "a", "image": "b"}, "one column for audio or image, which mean the same field"),
        ({"caption": "a", "text": "b"}, "one column for caption or text, which mean the same field"),
    ],
)
def test_keys_of_columns_are_checked_with_the_recipe(columns: dict[str, str], message: str) -> None:
    table = {"use": "captions", "path": "nowhere", "input": "audio", "columns": columns}
    with pytest.raises(RecipeError) as raised:
        magma.Recipe.load({"name": "r", "lm": {"use": "gptj"}, "data": {"train": [table]}})
    assert message in str(raised.value)


# Nulls, and empty texts


def test_null_is_a_field_that_is_not_there(tmp_path: Path) -> None:
    row = {"image": "1.png", "caption": "a", "captions": None, "question": "Q?", "answer": "b", "answers": None}
    folder = lines(tmp_path / "val.jsonl", {**row, "id": None, "answer_type": None, "questions": None})
    assert examples(Captions, folder)[0].segments[1] == Text("a", target=True)
    assert examples(Vqa, folder)[0].segments[2] == Text(" b", target=True)
    (question,) = task(Vqa2Task, folder).questions("test", 0, 0)
    assert (question.id, question.group, question.answers) == ("val.jsonl line 1", "", ("b",))


def test_an_empty_text_among_others_is_dropped(tmp_path: Path) -> None:
    folder = lines(tmp_path / "test.jsonl", {"image": "1.png", "captions": ["", "a dog", " ", None]})
    assert examples(Captions, folder)[0].segments[1] == Text("a dog", target=True)
    drawn = Captions(Captions.Config(path=str(folder)), 0)
    assert {e.segments[1] for i in range(9) for e, _ in drawn.iterate({"epoch": i, "position": 0})} == {
        Text("a dog", target=True)
    }
    (question,) = task(CocoCaptionsTask, folder).questions("test", 0, 0)
    assert question.answers == ("a dog",)
    lines(folder / "test.jsonl", {"image": "1.png", "captions": ["", " "]})
    problem = examples(Captions, folder)[0].problem
    assert problem is not None
    assert "captions: given ['', ' ']; allowed: a list of texts that are not all empty" in problem


# Media elsewhere


def test_media_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media/1.png").write_bytes(b"pixels")
    folder = lines(tmp_path / "rows/test.jsonl", {"image": "1.png", "caption": "a"})
    media = str(tmp_path / "media")
    assert told(examples(Captions, folder, media=media)[0])[1] == b"pixels"
    (question,) = task(CocoCaptionsTask, folder, media=media).questions("test", 0, 0)
    assert question.segments[0] == Media("image", tmp_path / "media/1.png")
    for path in ("../rows/test.jsonl", "/etc/passwd"):
        lines(folder / "test.jsonl", {"image": path, "caption": "a"})
        problem = examples(Captions, folder, media=media)[0].problem
        assert problem is not None
        assert f'image: given "{path}"; allowed: a path inside {media}' in problem
    for config in (Captions.Config(path=str(folder), media="gone"), GqaTask.Config(path=str(folder), media="gone")):
        part = Captions if isinstance(config, Captions.Config) else GqaTask
        assert part.problems(config)[-1].startswith("media: given 'gone', which is no folder beside the recipe")


@pytest.mark.parametrize("url", ["https://example.org/1.jpg", "http://example.org/1.jpg", "s3://bucket/1.jpg"])
def test_a_url_says_how_to_download_it(url: str, tmp_path: Path) -> None:
    folder = lines(tmp_path / "t.jsonl", {"image": url, "caption": "a"})
    problem = examples(Captions, folder)[0].problem
    assert problem is not None
    assert f'line 1: image: given "{url}"; allowed: a path of a file. Download the files first: img2dataset' in problem


# Copies among completed examples


def copies(folder: Path) -> Path:
    """Two questions; of eight completed examples five are copies in some way."""
    folder.mkdir()
    for name, content in {"a": b"A", "b": b"B", "copy": b"A", "c": b"C", "d": b"D", "e": b"E"}.items():
        (folder / f"{name}.png").write_bytes(content)
    (folder / "link.png").symlink_to("b.png")

    def row(i: str, image: str) -> dict[str, str]:
        return {"id": i, "image": image, "question": "Q?", "answer": i}

    lines(folder / "val.jsonl", row("1", "a.png"), row("2", "b.png"))
    shots = {"1": "c", "3": "a", "4": "copy", "5": "./link", "6": "d", "7": "e", "8": "c"}
    return lines(folder / "train.jsonl", *(row(i, f"{image}.png") for i, image in shots.items()))


def as_shards(files: Path, folder: Path) -> Path:
    """The same rows with their media inside."""
    folder.mkdir()
    for split in ("val", "train"):
        with tarfile.open(folder / f"{split}-000000.tar", "w") as tar:
            for number, line in enumerate((files / f"{split}.jsonl").read_text().splitlines()):
                row = json.loads(line)
                medium = (files / row.pop("image")).read_bytes()
                for ending, content in {"png": medium, "json": json.dumps(row).encode()}.items():
                    info = tarfile.TarInfo(f"{number}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def test_no_shot_is_a_copy_of_the_question(tmp_path: Path) -> None:
    files = copies(tmp_path / "files")
    shards = as_shards(files, tmp_path / "shards")
    for seed in range(5):
        found = [[q.shots for q in task(GqaTask, f, split="val").questions("test", 3, seed)] for f in (files, shards)]
        assert found[0] == found[1]
        first, second = found[0]
        assert set(first) <= {"5", "6", "7", "8"}
        assert set(second) <= {"1", "3", "4", "6", "7", "8"}
    with pytest.raises(InputError, match="5 shots: 4 completed examples can stand before question 1"):
        list(task(GqaTask, files, split="val").questions("test", 5, 0))


def test_a_shot_that_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    files = copies(tmp_path / "files")
    asked = task(GqaTask, files, split="val")
    whole = [q.shots for seed in range(9) for q in asked.questions("test", 2, seed)]
    asked.can_read = lambda medium: medium.value.name != "d.png"
    found = [q.shots for seed in range(9) for q in asked.questions("test", 2, seed)]
    assert all("6" not in shots and len(set(shots)) == 2 for shots in found)
    kept = [(one, other) for one, other in zip(whole, found, strict=True) if "6" not in one]
    assert kept
    assert all(one == other for one, other in kept)
    asked.can_read = lambda _: False
    with pytest.raises(
        InputError, match=r"0 completed examples can stand before question 1 \(4 others cannot be read\)"
    ):
        list(asked.questions("test", 1, 0))


def test_digits_and_recordings_show_no_copies_either(tmp_path: Path) -> None:
    """Of the training split, questions are asked about what may be shown, too."""
    for take in (0, 5, 6, 7):
        for digit in (3, 8):
            content = b"same" if take in (5, 6) else f"{digit} {take}".encode()
            (tmp_path / f"{digit}_ann_{take}.wav").write_bytes(content)

    def contents(question: Question) -> list[Any]:
        media = [s.value for s in question.segments if isinstance(s, Media)]
        return [one.read_bytes() if isinstance(one, Path) else one.tobytes() for one in media]

    for question in SpokenDigitsTask(SpokenDigitsTask.Config(path=str(tmp_path)), 0).questions("train", 1, 0):
        *shown, own = contents(question)
        assert own not in shown
    for question in SameNumberTask(SameNumberTask.Config(path=str(tmp_path)), 0).questions("train", 1, 0):
        *shown, image, recording = contents(question)
        assert not {image, recording} & set(shown)
    digits = DigitsTask(DigitsTask.Config(groups=("larger",), limit=60), 0)
    for question in digits.questions("train", 40, 0):  # some had copies before
        *shown, one, other = contents(question)
        assert not {one, other} & set(shown)
