"""The task without media: it measures the language model, and equals the bare one where nothing was added to it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from magma_data.convert.emoji.countries import read_countries
from magma_data.tasks.text_ability import TextAbilityTask, read_paragraphs

import magma
from magma import InputError, Magma, Prediction

LM: dict[str, Any] = {"name": "bare", "lm": {"use": "gptj", "weights": "bundled:tiny"}}
IMAGE = {
    "encoder": {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "prefix": {"use": "linear"},
}


def made(**fields: Any) -> TextAbilityTask:
    return TextAbilityTask(TextAbilityTask.Config(**fields), 0)


def scores(model: Magma, task: TextAbilityTask) -> dict[str, float]:
    return task.score(magma.evaluate(model, task, baselines=("",)))


def test_the_text_is_english_prose() -> None:
    found = read_paragraphs()
    assert len(found) > 25  # of every version of Python
    assert sum(len(paragraph.split()) for paragraph in found) > 1500
    assert len(set(found)) == len(found)
    for paragraph in found:
        assert paragraph[0].isupper()
        assert paragraph.endswith(".")
        assert "\n" not in paragraph
        assert "  " not in paragraph


def test_countries_and_texts_are_asked() -> None:
    found = {question.id: question for question in made().questions("test", 2, 0)}
    assert len(found) == 2 * len(read_countries()) + len(read_paragraphs())
    kenya, texts = found["capital/KE"], [question for question in found.values() if question.group == "text"]
    assert kenya.segments[-1] == "The capital of Kenya is"
    assert kenya.answer == "Nairobi"
    assert all(shot.endswith(".\n") and shot.startswith("The capital of ") for shot in kenya.segments[:2])
    assert "capital/KE" not in kenya.shots
    assert found["continent/NL"].segments[-1] == "The Netherlands is on the continent of"
    assert [q.segments[0] + (q.continuation or "") for q in texts] == read_paragraphs()
    assert {len(str(q.segments[0]).split()) for q in texts} == {4}
    assert len(list(made(limit=3).questions("test", 0, 0))) == 9
    with pytest.raises(InputError, match="split: given 'train'; allowed: test"):
        list(made().questions("train", 0, 0))


def test_no_more_examples_than_other_countries() -> None:
    others = len(read_countries()) - 1
    first = next(made(limit=1).questions("test", others, 0))
    assert len(set(first.shots)) == others
    with pytest.raises(InputError, match=f"shots: given {others + 1}; allowed: 0 to {others}"):
        list(made(limit=1).questions("test", others + 1, 0))


def test_perplexity_is_that_of_all_tokens() -> None:
    task = made(limit=2)
    _, _, first, *_, second = task.questions("test", 0, 0)
    found = [
        Prediction(first, "Andorra la Vella"),
        Prediction(second, "", log_likelihood=-10.0, num_tokens=4),
        Prediction(second, "", log_likelihood=-50.0, num_tokens=26),
    ]
    assert task.score(found)["perplexity"] == pytest.approx(math.exp(60 / 30))
    assert task.score_one(found[2]) == ("", pytest.approx(50 / 26))
    assert "perplexity" not in task.score(found[:1])
    assert "help of Python 3." in task.measures(found)["perplexity"]


def test_a_model_without_adapters_equals_the_bare_language_model() -> None:
    """As the paper's Frozen: whatever the prefix has learned does not matter for prompts without media."""
    task = made(limit=6)
    bare = magma.assemble(LM).eval()
    frozen = magma.assemble({**LM, "inputs": {"image": IMAGE}}).eval()
    adapted = magma.assemble({**LM, "inputs": {"image": IMAGE}, "adapters": {"mlp": {"use": "sequential"}}}).eval()
    with torch.no_grad():
        for module in (*adapted.lm.all_adapters(), frozen.inputs):
            for parameter in module.parameters():
                parameter.normal_(0, 0.1)
    expected = scores(bare, task)
    assert scores(frozen, task) == expected
    assert scores(adapted, task)["perplexity"] != pytest.approx(expected["perplexity"], rel=1e-3)
    texts = [question for question in task.questions("test", 0, 0) if question.group == "text"]
    pairs = bare.log_likelihood([q.segments for q in texts], [q.continuation or "" for q in texts])
    tokens = [
        len(bare.lm.encode(f"{q.segments[0]}{q.continuation}")) - len(bare.lm.encode(q.segments[0])) for q in texts
    ]
    loss = -sum(total for total, _ in pairs) / sum(tokens)
    assert expected["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
