"""Questions without media, beside others: they are asked once, and a text's likelihood may be measured instead."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import RECIPE, WORDS, ToyTask

import magma
from magma import InputError, Magma, Media, PartConfig, Prediction, Question
from magma.evaluation.results import Evaluation, prediction_from_row

TEXTS = {"4": ("the cat sat on", " the mat"), "5": ("one two three", " four five six")}


class Mixed(ToyTask):
    """Questions with media, without, with a follow-up, and about given texts."""

    name = "mixed"
    max_tokens = 4

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        for i in range(4):
            segments: list[Any] = [*([Media("number", i)] if i % 2 else []), f"is {i}"]
            yield Question(str(i), segments, WORDS[i], "follow" if i == 1 else "count")
        for key, (prompt, text) in TEXTS.items():
            yield Question(key, [prompt], "", "text", continuation=text)
        yield Question("6", [Media("number", 2), "it"], "", "text", continuation=" is")

    def follow_up(self, prediction: Prediction) -> Question | None:
        """The second step shows no medium."""
        if prediction.question.group != "follow":
            return None
        return Question("1", ["a second step"], "one", "count")

    def score(self, predictions: Any) -> dict[str, float]:
        return {"count_accuracy": float(len(predictions))}


@pytest.fixture
def model(toys: None) -> Magma:  # noqa: ARG001
    return magma.assemble(RECIPE).eval()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_likelihoods_are_those_of_the_model(model: Magma, batch_size: int) -> None:
    found = magma.evaluate(model, Mixed(PartConfig(), 0), batch_size=batch_size)
    assert len(found) == 21
    by_run = {run: {one.question.id: one for one in found if one.baseline == run} for run in ("", "shuffled", "blind")}
    for run in by_run.values():
        for key, (prompt, text) in TEXTS.items():
            ((total, _),) = model.log_likelihood([[prompt]], [text])
            assert run[key].log_likelihood == pytest.approx(total, abs=1e-4)
            assert (run[key].num_tokens, run[key].text) == (len(text), "")  # a token is a byte
        assert run["0"].log_likelihood is None
        assert run["0"].num_tokens == 0
    ((with_medium, _), (without, _)) = model.log_likelihood([[Media("number", 2), "it"], ["it"]], [" is", " is"])
    assert by_run[""]["6"].log_likelihood == pytest.approx(with_medium, abs=1e-4)
    assert by_run["blind"]["6"].log_likelihood == pytest.approx(without, abs=1e-4)
    assert with_medium != pytest.approx(without, abs=1e-3)


def test_the_controls_ask_only_what_has_media(model: Magma, tmp_path: Path) -> None:
    said: list[tuple[str, int]] = []
    evaluation = Evaluation(model, Mixed(PartConfig(), 0), tmp_path, {"task": "mixed"}, batch_size=1)
    evaluation.run([0], progress=lambda run, done: said.append((run, done)))
    counts = {run: sum(name == run for name, _ in said) for run, _ in said}
    assert counts == {"mixed, 0 shots": 7, "mixed, 0 shots, shuffled": 3, "mixed, 0 shots, blind": 3}
    assert [done for run, done in said if run.endswith("blind")] == [5, 6, 7]
    rows = {
        path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in tmp_path.glob("*.jsonl")
    }
    text_only = {str(i) for i in (0, 2, 4, 5)}  # question 1 has a medium in its first step
    assert {row["id"] for row in rows["0_shot.jsonl"] if row.get("uses_media") is False} == text_only
    for name in ("0_shot.shuffled.jsonl", "0_shot.blind.jsonl"):
        assert [row["number"] for row in rows[name]] == list(range(7))
        same = [row for row in rows[name] if row["id"] in text_only]
        assert same == [row for row in rows["0_shot.jsonl"] if row["id"] in text_only]


def test_an_interrupted_evaluation_has_the_same_likelihoods(model: Magma, tmp_path: Path) -> None:
    def stop(_: str, done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    whole, cut = (
        Evaluation(model, Mixed(PartConfig(), 0), tmp_path / name, {"task": "mixed"}, batch_size=1)
        for name in ("whole", "cut")
    )
    whole.run([0])
    with pytest.raises(KeyboardInterrupt):
        cut.run([0], progress=stop)
    cut.run([0])
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes(), file.name
    row = json.loads((tmp_path / "cut/0_shot.jsonl").read_text().splitlines()[4])
    again = prediction_from_row(row)
    assert again.log_likelihood == row["log_likelihood"]
    assert math.isfinite(row["log_likelihood"])
    assert (again.num_tokens, again.uses_media) == (row["tokens"], False) == (8, False)


def test_a_text_that_does_not_fit_is_an_error_that_names_it(toys: None) -> None:  # noqa: ARG001
    model = magma.assemble({**RECIPE, "lm": {"use": "toy", "context": 20}}).eval()
    with pytest.raises(magma.TooLong, match="question 4"):
        magma.evaluate(model, Mixed(PartConfig(), 0))


def test_a_model_with_a_head_measures_no_text() -> None:
    from toys import ToyEncoder, ToyHead, ToyLM, ToyPrefix

    lm, encoder = ToyLM(ToyLM.Config()), ToyEncoder(ToyEncoder.Config())
    prefix = ToyPrefix(ToyPrefix.Config(), encoder.dim, encoder.length, lm.dim)
    head = ToyHead(ToyHead.Config(classes=("a", "b")), lm.dim)
    with pytest.raises(InputError, match="classification head"):
        magma.evaluate(Magma(lm, {"number": magma.Input(encoder, prefix)}, head=head), Mixed(PartConfig(), 0))
