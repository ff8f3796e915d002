"""Scores equal the official ones: VQA's accuracy to the last digit, CIDEr and BLEU those of the official package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from golden_files import GOLDEN
from magma_data.metrics.caption_scores import tokenize_captions
from magma_data.metrics.vqa_accuracy import CONTRACTIONS, choose_normalizer, normalize_answer, vqa_accuracy
from magma_data.tasks.captioning import CocoCaptionsTask, NocapsTask
from magma_data.tasks.entailment import SnliVeTask
from magma_data.tasks.question_answering import GqaTask, OkVqaTask, VizWizTask, Vqa2Task

from magma import InputError, PartError, Prediction, Question, Task

CASES = json.loads((GOLDEN / "vqa_accuracy.json").read_text(encoding="utf-8"))
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java")


def task(part: type[Task]) -> Task:
    """As `magma eval score` makes one: without data."""
    return part(part.Config(), 0)  # type: ignore[call-arg]


def given(prediction: str, answers: Sequence[str], group: str = "") -> Prediction:
    return Prediction(Question("1", [], answers[0], group, answers=answers), prediction)


# VQA's accuracy


@pytest.mark.parametrize("part", [Vqa2Task, OkVqaTask, VizWizTask])
def test_the_official_accuracy_of_400_cases(part: type[Task]) -> None:
    assert len(CASES) == 400
    asked = task(part)
    predictions = [given(case["prediction"], case["answers"]) for case in CASES]
    for prediction, case in zip(predictions, CASES, strict=True):
        judged = asked.score_one(prediction)
        assert judged is not None
        assert judged[1] == pytest.approx(case["accuracy"], abs=1e-9), case
    mean = sum(case["accuracy"] for case in CASES) / 400
    assert asked.score(predictions) == {"accuracy": pytest.approx(mean, abs=1e-9)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The\tred\ncar.", "red car"),
        ("Two an a", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("blue/white", "blue white"),
        ("blue, white", "blue white"),
        ("blue ,white", "blue white"),
        ("1,000", "1000"),
        ("1,000 red-cars", "1000 redcars"),  # all marks go where a number has a comma
        ("red-car - blue-car", "redcar bluecar"),  # and where the same mark touches a space
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("U.S.A.", "usa"),
        ("a.5", "a.5"),  # the official pattern looks at what follows alone
        ("dont", "don't"),
        ("DONT", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),
        ("shes", "shes"),
        ("10:30 am", "10:30 am"),
        ("50%", "50%"),
        ("someone's", "someone's"),
        ("x" + "." * 40, "x" + "." * 8),
        ("", ""),
        ("?", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_every_contraction_is_the_word_without_one_apostrophe() -> None:
    for wrong, put_right in CONTRACTIONS.items():
        assert wrong.replace("'", "") == put_right.replace("'", "")
        assert abs(len(put_right) - len(wrong)) == 1
    assert len(CONTRACTIONS) == 114


def test_unanimous_answers_are_not_normalised() -> None:
    """As in the official code: what ten people agree on has to be said just so."""
    assert choose_normalizer(["Yes", " Yes\n"])("The Yes.") == "The Yes."
    assert vqa_accuracy("yes", ["Yes"] * 10) == 0
    assert vqa_accuracy("yes", ["Yes"] * 9 + ["no"]) == 100


@pytest.mark.parametrize(("times", "expected"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (9, 100)])
def test_each_person_is_compared_with_the_nine_others(times: int, expected: float) -> None:
    answers = ["red"] * times + [f"another {i}" for i in range(10 - times)]
    assert vqa_accuracy("red", answers) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("part", [Vqa2Task, OkVqaTask, VizWizTask])
@pytest.mark.parametrize(
    ("answers", "prediction", "expected"),
    [
        (["Two"], "2", 100),
        (["Two"], "3", 0),
        (["a dog", "puppy"], "Puppy!", 100),
        (["A"], "a", 100),  # of which the normalisation leaves nothing
        (["A"], "", 0),
        (["", "b"], "", 0),
        (["b"] * 4, "b", 100),  # from here on the official measure
        (["b", "b", "c", "d"], "b", 50),
    ],
)
def test_of_few_answers_one_has_to_match(
    part: type[Task], answers: list[str], prediction: str, expected: float
) -> None:
    judged = task(part).score_one(given(prediction, answers))
    assert judged is not None
    assert judged[1] == pytest.approx(expected)


def test_every_measure_has_its_words() -> None:
    few, many = given("b", ["b"]), given("b", ["b"] * 10)
    asked = task(Vqa2Task)
    assert asked.measures([many]) == {"accuracy": "VQA accuracy"}
    assert asked.measures([few]) == {"accuracy": "exact match, fewer than 4 answers a question"}
    assert asked.measures([few, many, many]) == {
        "accuracy": "exact match of 1 questions with fewer than 4 answers, VQA accuracy of the other 2"
    }
    assert task(GqaTask).measures([few]) == {"accuracy": "exact match"}
    assert task(SnliVeTask).measures([few]) == {"accuracy": "share of right classes"}


def test_a_question_that_cannot_be_read_is_wrong() -> None:
    lost = Prediction(Question("1", [], "", answers=[""] * 10), "", problem="torn")
    assert task(Vqa2Task).score_one(lost) == ("", 0.0)


def test_cider_of_a_single_image_is_said_to_mean_nothing() -> None:
    asked = task(NocapsTask)
    several = [given(said, captions, domain) for domain, said, captions in IMAGES]
    said = "of a single image: meaningless, always 0"
    assert asked.measures(several) == {"cider_near": said}
    assert asked.measures(several[:1]) == {"cider": said, "cider_in": said}


def test_figures_by_type_of_answer() -> None:
    asked = task(Vqa2Task)
    people = ["2"] * 9 + ["3"]
    predictions = [given("2", people, "number"), given("9", people, "number"), given("2", people, "yes/no")]
    found = asked.score(predictions)
    assert found == pytest.approx({"accuracy": 200 / 3, "accuracy_number": 50, "accuracy_yes/no": 100})
    assert asked.score([]) == {}


# Exact matches


def test_gqa_is_right_or_wrong_after_the_same_normalisation() -> None:
    asked = task(GqaTask)
    assert asked.score_one(given(" The Car.", ["car"])) == ("car", 100)
    assert asked.score_one(given("cars", ["car"])) == ("cars", 0)
    assert asked.score_one(Prediction(Question("1", [], "car"), "a car")) == ("car", 100)
    found = asked.score([given("car", ["car"], "query"), given("no", ["yes"], "verify")])
    assert found == {"accuracy": 50, "accuracy_query": 100, "accuracy_verify": 0}


def test_entailment_is_the_right_label() -> None:
    asked = task(SnliVeTask)
    labels = ("entailment", "neutral", "contradiction")
    predictions = [given("neutral", [label], label) for label in labels] + [
        given(" Entailment", [labels[0]], labels[0])
    ]
    assert asked.score(predictions) == {
        "accuracy": 50,
        "accuracy_entailment": 50,
        "accuracy_neutral": 100,
        "accuracy_contradiction": 0,
    }


# An answer in what the model wrote


@pytest.mark.parametrize(
    ("answers", "output", "expected"),
    [
        (["red car", "car"], " The red car is a car", "red car"),  # two words after normalisation
        (["red car", "car"], " red-car-park", "red car"),
        (["yes", "no"], " yes, it is", "yes"),
        (["yes", "no"], " yes\nQ: no", "yes"),
        (["yes", "no"], "\n yes", ""),
        (["on the table", "there"], " on a table Q: Where? A: there", "on table"),
        (["car"] * 10, " car and driver", "car"),
        (["the car"] * 10, " the car and driver", "the car"),  # nothing is normalised here
        (["the", "a"], " a b", "b"),
        ([*[""] * 9, " "], " a b", "a"),
    ],
)
def test_an_answer_is_as_long_as_the_longest_right_one(answers: list[str], output: str, expected: str) -> None:
    question = Question("1", [], answers[0], answers=answers)
    assert task(Vqa2Task).postprocess(question, output) == expected


def test_what_was_normalised_stays_as_it_is() -> None:
    """An answer is cut in its normalised form, and normalised again when it is compared."""
    for text in {text for case in CASES for text in (*case["answers"], case["prediction"])}:
        assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


def test_other_tasks_cut_too() -> None:
    assert task(GqaTask).postprocess(Question("1", [], "red car"), " a red car of hers") == "red car"
    assert task(SnliVeTask).postprocess(Question("1", [], "neutral"), "entailment") == "entailment"
    assert (
        task(CocoCaptionsTask).postprocess(Question("1", [], "a"), " a dog, Q: what?\nA picture") == "a dog, Q: what?"
    )


# Captions

IMAGES: list[tuple[str, str, list[str]]] = [
    ("in", "a dog runs on the green grass", ["A dog runs on the grass.", "The brown dog is running, fast!"]),
    (
        "near",
        "Two people's bikes (red) -- parked",
        ['Two bikes: "red" ones; parked.', "People's bikes are parked here"],
    ),
    ("out", "a café -- naïve…", ["A small café at night", "a café's tables, 3.5 of them"]),
    ("out", "", ["an axolotl in a tank", "a pink   axolotl"]),
    ("in", "the cat ...", ["A cat sleeps on a red couch", "cat on couch", "The cat's asleep - isn't it?"]),
    ("out", "line\nbreak", ["an image of a line that has a break in it"]),
]


def official(images: Sequence[tuple[str, str, list[str]]]) -> tuple[float, float]:
    """CIDEr and BLEU@4 as the package's own evaluation computes them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    wanted = {i: [{"caption": caption} for caption in captions] for i, (_, _, captions) in enumerate(images)}
    said = {i: [{"caption": caption}] for i, (_, caption, _) in enumerate(images)}
    tokenizer = PTBTokenizer()
    both = tokenizer.tokenize(wanted), tokenizer.tokenize(said)
    return 100 * Cider().compute_score(*both)[0], 100 * Bleu(4).compute_score(*both, verbose=0)[0][3]


@needs_java
def test_captions_score_what_the_official_package_says(capfd: pytest.CaptureFixture[str]) -> None:
    from pycocoevalcap.tokenizer import ptbtokenizer

    cider, bleu = official(IMAGES)
    assert cider > 0
    assert bleu > 0
    folder = Path(ptbtokenizer.__file__).parent
    before = sorted(folder.iterdir())
    capfd.readouterr()
    predictions = [given(said, captions, domain) for domain, said, captions in IMAGES]
    found = task(NocapsTask).score(predictions)
    assert capfd.readouterr() == ("", "")
    assert sorted(folder.iterdir()) == before
    assert found["cider"] == pytest.approx(cider, abs=1e-9)
    assert found["bleu4"] == pytest.approx(bleu, abs=1e-9)
    domains = ("in", "near", "out")
    assert list(found) == [f"{name}{part}" for part in ("", "_in", "_near", "_out") for name in ("cider", "bleu4")]
    assert found["cider_near"] == 0  # of a single image
    for domain in domains[::2]:
        part = official([image for image in IMAGES if image[0] == domain])
        assert (found[f"cider_{domain}"], found[f"bleu4_{domain}"]) == pytest.approx(part, abs=1e-9)


@needs_java
def test_captions_that_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert tokenize_captions(["", "A dog.", " \n", "..."]) == ["", "a dog", "", ""]
    assert tokenize_captions([]) == []
    assert tokenize_captions(["a\rb\u2028c\x0cd \ud800e"]) == ["a b c d e"]  # nothing in it ends a line
    found = task(CocoCaptionsTask).score([given("", captions) for _, _, captions in IMAGES])
    assert found == {"cider": 0, "bleu4": 0}
    assert task(CocoCaptionsTask).score([]) == {}
    assert capfd.readouterr().out == ""


def test_without_java_nothing_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trial = CocoCaptionsTask.check_inputs(tmp_path)
    config = CocoCaptionsTask.Config(**trial.config)
    monkeypatch.setenv("PATH", str(tmp_path))
    (problem,) = CocoCaptionsTask.problems(config)
    assert problem.startswith("java: not found in PATH. CIDEr and BLEU are computed on the tokens of pycocoevalcap's")
    assert "install a Java runtime, 8 or later" in problem
    with pytest.raises(InputError, match="java: not found in PATH"):
        next(CocoCaptionsTask(config, 0).questions("test", 0, 0))
    with pytest.raises(PartError, match="java: not found in PATH"):
        task(NocapsTask).score([given("a dog", ["a dog"])])
    assert Vqa2Task.problems(Vqa2Task.Config(path=str(tmp_path), split="test")) == []


def test_java_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho no runtime is here >&2\nexit 3\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PartError, match="the tokenizer of captions failed: no runtime is here"):
        tokenize_captions(["a dog"])
    java.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(PartError, match="the tokenizer of captions gave 0 lines of 1"):
        tokenize_captions(["a dog"])
