"""Mistakes in recipes are reported in the words of a recipe, not in those of the library that finds them."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from magma import Recipe, RecipeError

RECIPE: dict[str, Any] = {
    "name": "words",
    "lm": {"use": "gptj", "weights": "bundled:tiny"},
    "inputs": {
        "image": {
            "encoder": {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
            "prefix": {"use": "linear"},
        }
    },
    "adapters": {"mlp": {"use": "sequential"}},
    "data": {"train": [{"use": "digits"}]},
    "train": {"steps": 2, "batch_size": 2, "lr": 1e-2},
}


def problems(path: str, value: Any) -> list[str]:
    raw = copy.deepcopy(RECIPE)
    *tables, key = path.split(".")
    here = raw
    for name in tables:
        here = here[name]
    here[key] = value
    with pytest.raises(RecipeError) as caught:
        Recipe.load(raw)
    return caught.value.problems


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("callbacks", {"use": "x"}, "callbacks: given a table with use; allowed: tables, [[callbacks]]"),
        ("data.train", {"use": "digits"}, "data.train: given a table with use; allowed: tables, [[data.train]]"),
        ("tasks", ["digits"], "tasks.0: given 'digits'; allowed: a table with `use`, the name of a part"),
        ("train.steps", 2.5, "train.steps: given 2.5; allowed: a whole number"),
        ("train.compile", "maybe", "train.compile: given 'maybe'; allowed: true, false"),
        ("train.schedule", "cosine", "train.schedule: given 'cosine'; allowed: a table with `use`"),
        (
            "train.schedule",
            {"use": "step"},
            "train.schedule.use: given 'step'; allowed: 'constant', 'cosine', 'linear'",
        ),
        (
            "train.optimizer",
            {"betas": [0.9]},
            "train.optimizer.betas: given [0.9]; allowed: a list of 2 entries",
        ),
        ("train.optimizer", "adam", "train.optimizer: given 'adam'; allowed: a table"),
        ("adapters.mlp.at", "", "adapters.mlp.at: given ''; allowed: at least 1 character"),
        ("adapters.mlp.only_with", "image", "adapters.mlp.only_with: given 'image'; allowed: a list"),
        ("adapters.mlp.only_with", [1], "adapters.mlp.only_with.0: given 1; allowed: a string"),
        (
            "inputs.image.encoder.layers",
            [1],
            "inputs.image.encoder.layers: given [1]; allowed: a whole number or a list of 4 entries",
        ),
        (
            "inputs.image.encoder",
            {"use": "fused", "of": {"use": "clip"}},
            "inputs.image.encoder.of: given a table with use; allowed: tables, [[inputs.image.encoder.of]]",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_in_plain_words(path: str, value: Any, message: str) -> None:
    assert problems(path, value) == [message]


@pytest.mark.parametrize("value", ["text", 1.5, True, [], [[]], {}, {"a": {}}, None], ids=repr)
def test_no_word_of_the_library_is_in_a_message(value: Any) -> None:
    """Every key of the recipe with values of every type."""

    def paths(table: dict[str, Any], prefix: str = "") -> list[str]:
        inside = [one for key, v in table.items() if isinstance(v, dict) for one in paths(v, f"{prefix}{key}.")]
        return [*(f"{prefix}{key}" for key in table), *inside]

    for path in [
        *paths(RECIPE),
        "tasks",
        "callbacks",
        "seed",
        "init",
        "head",
        "deepspeed",
        "stages",
        "train.optimizer",
    ]:
        try:
            found = problems(path, value)
        except pytest.fail.Exception:  # it is accepted
            continue
        for line in found:
            assert not re.search(r"valid|[Tt]uple|[Dd]ict|instance|Input |String|object|pars|validation", line), line
