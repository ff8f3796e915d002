"""Classification: the head, its labels, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from magma_heads.linear import LinearHead

import magma
from magma import Example, InputError, Magma, Media, Text

RECIPE = {
    "name": "judge",
    "lm": {"use": "gptj", "weights": "bundled:tiny"},
    "inputs": {
        "image": {
            "encoder": {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
            "prefix": {"use": "linear"},
        }
    },
    "head": {"use": "linear", "classes": ["entailment", "neutral", "contradiction"]},
}
IMAGE = np.full((64, 64), 90, np.uint8)


@pytest.fixture(scope="module")
def model() -> Magma:
    return magma.assemble(RECIPE).eval()


def test_it_reads_the_hidden_state_of_the_last_text_token(model: Magma) -> None:
    """Rows of unequal length in one batch, each judged as if alone."""
    texts = ["It rains.", "A dog sleeps in the sun, they say.", "No."]
    examples = [Example([Media("image", IMAGE), Text(text)], label="neutral") for text in texts]
    batch = model.collator().batch(examples)
    assert batch.labels.tolist() == [1, 1, 1]
    ends = batch.layout.scored % batch.tokens.shape[1]
    image = model.input_modules()["image"].prefix.length
    assert ends.tolist() == [image + len(model.lm.encode(text)) - 1 for text in texts]
    with torch.no_grad():
        hidden = model.lm(model.embed(batch), batch.layout)
        assert isinstance(model.head, LinearHead)
        logits = model.head.projection(hidden)
        assert model(batch).item() == pytest.approx(-logits.log_softmax(-1)[:, 1].sum().item(), rel=1e-5)
    found = model.classify([[IMAGE, text] for text in texts])
    for row, expected in zip(found, logits.softmax(-1).tolist(), strict=True):
        assert list(row) == RECIPE["head"]["classes"]  # type: ignore[index]
        assert list(row.values()) == pytest.approx(expected, abs=1e-5)


def test_it_learns_with_everything_else(model: Magma) -> None:
    trained = {row.path for row in model.summary() if row.trained}
    assert trained == {"inputs.image.encoder", "inputs.image.prefix", "head"}
    model.loss(model.collator().batch([Example([Media("image", IMAGE), Text("a")], label="neutral")])).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.zero_grad()


def test_labels_that_do_not_fit(model: Magma) -> None:
    with pytest.raises(InputError, match="label 'perhaps'; allowed: entailment, neutral, contradiction"):
        model.collator().batch([Example([Text("a")], label="perhaps")])
    with pytest.raises(InputError, match="no target tokens in this batch"):
        model.loss(model.collator().batch([Example([Text("a")])]))
    plain = magma.assemble({key: table for key, table in RECIPE.items() if key != "head"})
    with pytest.raises(InputError, match=r"has the label 'neutral', but this model has no classes"):
        plain.collator().batch([Example([Text("a")], label="neutral")])
    with pytest.raises(InputError, match="it writes, use generate"):
        plain.classify([["a"]])


def test_classes_are_several_and_differ() -> None:
    with pytest.raises(magma.RecipeError, match=r"head.classes: given .*; allowed: classes that all differ"):
        magma.Recipe.load({**RECIPE, "head": {"use": "linear", "classes": ["a", "a"]}})
    assert magma.Recipe.load({**RECIPE, "head": False}).head is None
