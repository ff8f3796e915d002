"""What `magma eval` leaves: every answer, scores that do not depend on how it was run, tables."""

from __future__ import annotations

import codecs
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import program
import pytest
from pydantic import Field
from toys import RECIPE, WORDS, ToyEncoder, ToyTask
from typer.testing import CliRunner

import magma
from magma import InputError, Magma, Media, PartConfig, Prediction, Question, TooLong
from magma.cli import app as cli
from magma.evaluation.report import report
from magma.evaluation.results import Evaluation, _line, score_file

KINDS = ("", "shuffled", "blind")


class Counted(ToyTask):
    """Forty questions, behind shots, judged one by one."""

    name = "counted"
    max_tokens = 3

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        for i in range(40):
            shown = [part for j in range(shots) for part in (Media("number", (i + j) % 4), f" {WORDS[(i + j) % 4]}. ")]
            used = [str((i + j) % 4) for j in range(shots)]
            yield Question(
                *(str(i), [*shown, Media("number", i % 4), "is" * (i % 3)], WORDS[i % 4]),
                extra={"i": i},
                shots=used,
                shot_lengths=[2] * shots,
            )

    def postprocess(self, question: Question, output: str) -> str:
        return output[:2]

    def score_one(self, prediction: Prediction) -> tuple[str, float]:
        text = prediction.text.strip()
        return text, float(len(text) == 2)

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return {"count_accuracy": sum(self.score_one(p)[1] for p in predictions) / len(predictions)}


@pytest.fixture
def model(toys: None) -> Magma:  # noqa: ARG001  # the registry's parts
    return magma.assemble(RECIPE).eval()


def evaluation(model: Magma, folder: Path, batch_size: int = 7, **about: Any) -> Evaluation:
    return Evaluation(model, Counted(PartConfig(), 0), folder, {"task": "counted", **about}, 0, batch_size)


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {f.name: [json.loads(line) for line in f.read_text().splitlines()] for f in sorted(folder.glob("*.jsonl"))}


def test_every_answer_is_kept_with_how_it_was_asked(model: Magma, tmp_path: Path) -> None:
    scores = evaluation(model, tmp_path).run([0, 2])
    found = rows(tmp_path)
    assert set(found) == {f"{n}_shot{f'.{kind}' if kind else ''}.jsonl" for n in (0, 2) for kind in KINDS}
    assert all([row["number"] for row in kept] == list(range(40)) for kept in found.values())
    one = found["2_shot.jsonl"][5]
    assert one["prompt"] == "[number] one. [number] two. [number]isis"
    assert one["shots"] == ["1", "2"]
    assert one["prediction"] == one["output"][:2]
    assert (one["answer"], one["extra"], one["compared"]) == ("one", {"i": 5}, one["prediction"].strip())
    assert found["0_shot.blind.jsonl"][5]["prompt"] == "isis"
    assert found["0_shot.blind.jsonl"][3]["output"] == ""  # nothing was left to ask
    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["scores"] == scores
    assert (told["task"], told["primary"], told["questions"]) == ("counted", "count_accuracy", 40)
    for count in ("0", "2"):
        for kind in KINDS:
            kept = found[f"{count}_shot{f'.{kind}' if kind else ''}.jsonl"]
            mean = sum(row["score"] for row in kept) / 40
            assert scores[count][kind or "model"]["count_accuracy"] == pytest.approx(mean)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_batches_change_nothing(model: Magma, tmp_path: Path, batch_size: int) -> None:
    evaluation(model, tmp_path / "a").run([0, 1])
    evaluation(model, tmp_path / "b", batch_size).run([0, 1])
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_windows_hold_all_questions(model: Magma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation(model, tmp_path / "a").run([0], ["", "blind"])
    monkeypatch.setattr("magma.evaluation.results.WINDOW", 6)
    evaluation(model, tmp_path / "b").run([0], ["", "blind"])
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


@pytest.mark.parametrize("torn", ["", '{"number": 39, "id'])
def test_an_interruption_changes_nothing(model: Magma, tmp_path: Path, torn: str) -> None:
    evaluation(model, tmp_path / "whole").run([0, 1])

    def stop(name: str, done: int) -> None:
        if name == "counted, 0 shots, shuffled" and done > 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluation(model, tmp_path / "cut").run([0, 1], progress=stop)
    partial = tmp_path / "cut/0_shot.shuffled.jsonl.partial"
    assert 15 < len(partial.read_text().splitlines()) < 40
    with partial.open("a") as file:
        file.write(torn)
    asked: list[str] = []
    evaluation(model, tmp_path / "cut").run([0, 1], progress=lambda name, _: asked.append(name))
    assert "counted, 0 shots" not in asked
    assert "counted, 1 shot" in asked
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    for name in ("scores.json", "about.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "cut" / name).read_text()
    assert not list((tmp_path / "cut").glob("*.partial"))


def test_questions_asked_with_fewer_shots_are_counted(toys: None, tmp_path: Path) -> None:  # noqa: ARG001
    """In the file, in scores.json, and on the screen; the same after an interruption, and refused by option."""
    model = magma.assemble({**RECIPE, "lm": {"use": "toy", "context": 24}}).eval()
    said: list[str] = []
    asked = replace(evaluation(model, tmp_path / "a"), say=said.append)
    asked.run([0, 2])
    found = rows(tmp_path / "a")
    counts = {name: sum("dropped_shots" in row for row in kept) for name, kept in found.items()}
    assert counts["0_shot.jsonl"] == counts["2_shot.blind.jsonl"] == 0
    assert 0 < counts["2_shot.jsonl"] < 40
    assert all(len(row["shots"]) == 2 - row.get("dropped_shots", 0) for row in found["2_shot.jsonl"])
    told = json.loads((tmp_path / "a/scores.json").read_text())["asked_with_fewer_shots"]
    assert told["2"]["model"] == counts["2_shot.jsonl"]
    assert set(told) == {"2"}
    assert any(f"{counts['2_shot.jsonl']} of 40 questions do not fit with all in-context" in one for one in said)
    before = (tmp_path / "a/scores.json").read_text()
    asked.run([0, 2])
    assert (tmp_path / "a/scores.json").read_text() == before
    with pytest.raises(TooLong):
        replace(evaluation(model, tmp_path / "b"), fewer_shots=False).run([2])


def test_a_folder_belongs_to_one_evaluation(model: Magma, tmp_path: Path) -> None:
    evaluation(model, tmp_path, seed=1).run([0], [""])
    evaluation(model, tmp_path, seed=1).run([1], [""])
    assert set(json.loads((tmp_path / "scores.json").read_text())["scores"]) == {"0", "1"}
    with pytest.raises(InputError, match=r"holds another evaluation \(seed differ\)"):
        evaluation(model, tmp_path, seed=2).run([0], [""])
    evaluation(model, tmp_path, seed=2).run([0], [""], replace=True)
    assert set(json.loads((tmp_path / "scores.json").read_text())["scores"]) == {"0"}


# Files of predictions


def test_anyones_predictions_are_scored(tmp_path: Path) -> None:
    file = tmp_path / "them.jsonl"
    lines = [{"prediction": "ab", "answers": ["ab", "ab", "c"]}, {"prediction": "abc", "answer": "x"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert score_file(Counted(PartConfig(), 0), file) == {"count_accuracy": 0.5, "per_item": [1.0, 0.0]}


def test_byte_order_marks_and_cr_lf_are_no_part_of_a_prediction(tmp_path: Path) -> None:
    file = tmp_path / "them.jsonl"
    line = json.dumps({"prediction": "ab", "answer": "ab"}).encode()
    file.write_bytes(codecs.BOM_UTF8 + line + b"\r\n" + line + b"\r\n")
    assert score_file(Counted(PartConfig(), 0), file)["per_item"] == [1.0, 1.0]


def test_the_program_scores_as_the_official_evaluation_does(tmp_path: Path) -> None:
    """All 400 golden cases, from a file of predictions."""
    golden = json.loads((Path(__file__).parents[2] / "golden/vqa_accuracy.json").read_text())
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps({k: case[k] for k in ("prediction", "answers")}) + "\n" for case in golden))
    done = CliRunner().invoke(cli.cli, ["eval", "score", "vqa2", str(file), "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_text())
    expected = [case["accuracy"] for case in golden]
    assert len(expected) == 400
    assert found["per_item"] == pytest.approx(expected, abs=1e-9)
    assert found["accuracy"] == pytest.approx(sum(expected) / 400, abs=1e-9)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: given a list; allowed: an object"),
        ('{"answers": ["a"]}', "line 1: prediction: given None; allowed: text"),
        ('{"prediction": "a", "answers": "a"}', "line 1: answers: given 'a'; allowed: a list of texts"),
        ('{"prediction": "a"}', "line 1: neither `answers` nor `answer`"),
        ("", "has no predictions"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "them.jsonl"
    file.write_text(f"{line}\n")
    with pytest.raises(InputError, match=message):
        score_file(Counted(PartConfig(), 0), file)


# Reports


def run_folder(folder: Path, published: str, **scores: dict[str, float]) -> Path:
    folder.mkdir()
    (folder / "recipe.toml").write_text(f'name = "{folder.name}"\n[lm]\nuse = "gptj"\n{published}')
    for task, by_shots in scores.items():
        place = folder / "eval" / task
        place.mkdir(parents=True)
        told = {
            "task": task,
            "primary": "accuracy",
            "scores": {n: {"model": {"accuracy": x, "other": 1.0}} for n, x in by_shots.items()},
        }
        (place / "scores.json").write_text(json.dumps(told))
    return folder


def test_report_shows_published_scores_in_brackets(tmp_path: Path) -> None:
    published = "[published]\nvqa2 = { accuracy = { 0 = 32.7, 4 = 43.8 } }\ncoco = { cider.0 = 39.6 }\n"
    one = run_folder(tmp_path / "one", published, vqa2={"0": 31.04, "2": 40.0}, gqa={"0": 7.0})
    two = run_folder(tmp_path / "two", "", vqa2={"0": 0.25})
    tables = report([one, two])
    assert tables["vqa2"] == [
        ["run", "accuracy @ 0", "accuracy @ 2", "accuracy @ 4"],
        ["one", "31.0 (32.7)", "40.0", "- (43.8)"],
        ["two", "0.2", "-", "-"],
    ]
    assert tables["coco"] == [["run", "cider @ 0"], ["one", "- (39.6)"], ["two", "-"]]
    assert tables["gqa"][1] == ["one", "7.0"]
    assert tables["average accuracy"] == [["run", "average"], ["one", "26.0 (38.2)"], ["two", "0.2"]]


def test_the_unit_of_a_score_decides_its_decimals(tmp_path: Path) -> None:
    """Of the file; of the installed task, for files of earlier versions; four digits where neither is known."""
    folder = run_folder(tmp_path / "one", "", vqa2={"0": 0.8}, digits={"0": 1.0}, mine={"0": 0.8}, strange={"0": 0.8})
    file = folder / "eval/mine/scores.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "unit": "percent"}))
    tables = report([folder])
    assert [tables[task][1][1] for task in ("vqa2", "digits", "mine", "strange")] == ["0.8", "1.000", "0.8", "0.8"]


def test_published_figures_are_not_inherited_and_table_1_averages() -> None:
    parent, child = (magma.Recipe.load(name) for name in ("paper/adapters/none", "paper/adapters/attn8_ff8"))
    values = [x for task in ("vqa2", "okvqa", "gqa", "vizwiz") for x in parent.published[task]["accuracy"].values()]
    assert round(sum(values) / 16, 1) == 20.4  # its "Avg."
    assert child.published["vqa2"]["accuracy"]["4"] == 45.2
    assert set(magma.Recipe.load("paper/finetune/gqa").published) == {"gqa"}
    assert magma.Recipe.load("released/magma_v1").published == {}


# The program


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    recipe = {
        "name": "small",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {
            "image": {
                "encoder": {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": 32},
                "prefix": {"use": "linear"},
            }
        },
    }
    return magma.save(magma.assemble(recipe), tmp_path / "small")


def test_the_program_asks_scores_and_reports(checkpoint: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    words = ["--task", "digits", "--set", 'groups=["caption", "name"]', "--limit", "3", "--shots", "0", "2"]
    done = runner.invoke(cli.cli, ["eval", str(checkpoint), *words])
    assert done.exit_code == 0, done.output
    assert "caption_accuracy @ 2" in done.output
    again = runner.invoke(cli.cli, ["eval", "ask", *words, str(checkpoint), "--batch-size", "1"])
    assert again.exit_code == 0, again.output
    place = checkpoint / "eval/digits"
    assert len((place / "2_shot.jsonl").read_text().splitlines()) == 6
    scored = runner.invoke(
        cli.cli, ["eval", "score", "digits", str(place / "0_shot.jsonl"), "--json", str(tmp_path / "o")]
    )
    assert scored.exit_code == 0, scored.output
    assert json.loads((tmp_path / "o").read_text())["per_item"]
    told = runner.invoke(cli.cli, ["eval", "report", str(checkpoint), "--json"])
    assert json.loads(told.output)["digits"][0] == ["run", "caption_accuracy @ 0", "caption_accuracy @ 2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "digitz"], 'no task is called "digitz". Did you mean "digits"?'),
        (["--task", "digits", "--set", "prompts=x"], 'Did you mean "prompt"?'),
        (["--task", "spoken_digits", "--data", "nowhere"], "which has no recordings"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(tmp_path: Path, words: list[str], message: str) -> None:
    done = program.magma("eval", tmp_path, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_killed_and_asked_again(checkpoint: Path, tmp_path: Path) -> None:
    """By SIGKILL, at whatever it was doing."""
    words = ["eval", str(checkpoint), "--task", "digits", "--limit", "24", "--batch-size", "8", "--shots", "0"]
    words += ["--set", 'groups=["caption", "parity_two_step"]']
    whole = program.magma(*words, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    cut = tmp_path / "cut"
    command = [sys.executable, "-m", "magma.cli", *words, "--out", str(cut)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not any(f.read_bytes() for f in cut.glob("0_shot*.partial")) and process.poll() is None:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (cut / "0_shot.blind.jsonl").exists()
    again = program.magma(*words, "--out", cut)
    assert again.returncode == 0, again.stderr
    for name in ("0_shot.jsonl", "0_shot.shuffled.jsonl", "0_shot.blind.jsonl", "scores.json"):
        assert (cut / name).read_text() == (tmp_path / "whole" / name).read_text(), name


# What cannot be read


def torn(monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    plain = ToyEncoder.__dict__["prepare"]

    def prepare(self: ToyEncoder, raw: Any, rng: Any = None) -> Any:
        if raw == number:
            raise InputError(f"{raw}.num is torn")
        return plain(self, raw, rng)

    monkeypatch.setattr(ToyEncoder, "prepare", prepare)


def test_what_cannot_be_read_is_listed_and_asked_again_once_it_can(
    model: Magma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation(model, tmp_path / "whole").run([0], [""])
    whole = rows(tmp_path / "whole")["0_shot.jsonl"]
    said: list[str] = []
    with monkeypatch.context() as patch:
        torn(patch, 3)
        asked = replace(evaluation(model, tmp_path / "torn"), max_unreadable=0.25, say=said.append)
        scores = asked.run([0], [""])
        kept = rows(tmp_path / "torn")["0_shot.jsonl"]
        for good, row in zip(whole, kept, strict=True):
            if row["number"] % 4 != 3:
                assert row == good
                continue
            assert (row["problem"], row["prediction"], row["score"]) == (
                f"question {row['id']}: number: 3.num is torn",
                "",
                0.0,
            )
        right = sum(row["score"] for row in whole if row["number"] % 4 != 3)
        assert scores["0"]["model"]["count_accuracy"] == pytest.approx(right / 40)
        path = tmp_path / "torn/0_shot.jsonl"
        assert said == [
            f"10 of 40 questions cannot be read and count as wrong; {path} has all of them:"
            + "".join(f"\n  - question {i}: number: 3.num is torn" for i in (3, 7, 11))
            + "\n  - and 7 others"
        ]
        with pytest.raises(InputError, match="10 of 40 questions cannot be read, and max_unreadable allows a fraction"):
            replace(asked, folder=tmp_path / "ends", max_unreadable=0.2).run([0], [""])
    asked.run([0], [""])
    assert rows(tmp_path / "torn") == rows(tmp_path / "whole")
    assert (tmp_path / "torn/scores.json").read_text() == (tmp_path / "whole/scores.json").read_text()


def test_a_field_that_a_config_did_not_have_has_its_default(model: Magma, tmp_path: Path) -> None:
    """An evaluation goes on in a newer version."""

    class Config(PartConfig):
        old: int = 1
        added: dict[str, str] = Field(default_factory=dict)

    def asked(**config: Any) -> Evaluation:
        task = Counted(Config(), 0)
        return Evaluation(model, task, tmp_path, {"task": "counted", "config": config}, 0, 64)

    asked(old=1).run([0], [""])
    asked(old=1, added={}).run([0], [""])
    with pytest.raises(InputError, match=r"holds another evaluation \(config differ\)"):
        asked(old=1, added={"a": "b"}).run([0], [""])


# How scores were measured


def test_a_table_says_how_scores_were_measured(model: Magma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "measures", lambda *_: {"accuracy": "exact match"})
    evaluation(model, tmp_path / "asked").run([0], [""])
    assert json.loads((tmp_path / "asked/scores.json").read_text())["measures"] == {"0": {"accuracy": "exact match"}}


def test_a_report_says_how_scores_were_measured(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", "", vqa2={"0": 31.0, "4": 40.0})
    file = one / "eval/vqa2/scores.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "measures": {n: {"accuracy": "exact match"} for n in ("0", "4")}}))
    assert report([one])["measures"] == [
        ["run", "task", "score", "measured as"],
        ["one", "vqa2", "accuracy @ 0, 4", "exact match"],
    ]


@pytest.mark.parametrize(
    ("answers", "prediction", "value", "said"),
    [
        (["Red car"], "the red car.", 100, "exact match, fewer than 4 answers per question"),
        (["red", "blue", "red"], "blue", 100, "exact match, fewer than 4 answers per question"),
        (["red"] * 9 + ["blue"], "blue", 30, "VQA accuracy"),
    ],
)
def test_the_program_says_which_measure_it_is(
    answers: list[str], prediction: str, value: float, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "them.jsonl"
    file.write_text(json.dumps({"prediction": prediction, "answers": answers, "id": None, "group": None}) + "\n")
    for task in ("vqa2", "okvqa", "vizwiz"):
        done = CliRunner().invoke(cli.cli, ["eval", "score", task, str(file), "--json", str(tmp_path / "out.json")])
        assert done.exit_code == 0, done.output
        assert f"accuracy  {value:.4f}  ({said})" in done.output
        assert json.loads((tmp_path / "out.json").read_text())["measures"] == {"accuracy": said}


def test_null_answers_are_none(tmp_path: Path) -> None:
    file = tmp_path / "them.jsonl"
    file.write_text(json.dumps({"prediction": "ab", "answers": None, "answer": "ab", "output": None}) + "\n")
    assert score_file(Counted(PartConfig(), 0), file)["count_accuracy"] == 1.0


def test_an_answer_with_half_a_surrogate_pair_is_written() -> None:
    line = _line({"answer": "caf\u00e9 \ud83d"})
    assert line.encode() == b'{"answer": "caf\xc3\xa9 \\ud83d"}\n'
    assert json.loads(line) == {"answer": "caf\u00e9 \ud83d"}
