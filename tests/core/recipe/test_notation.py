"""TOML and JSON of others: what is in them, or why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toys import RECIPE

from magma import InputError, Recipe, RecipeError
from magma.evaluation.results import score_file
from magma.recipe.notation import DEPTH, TooDeep, check_depth, parse_json, parse_toml
from magma.runs.folder import recipe_differences

MANY = 100_000
DOTS = 1000
"""Fewer: tomllib's time grows with their square."""


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_what_is_nested_as_deep_as_allowed_is_read() -> None:
    text = json.dumps(nested(DEPTH))
    assert parse_json(text) == parse_json(text.encode()) == nested(DEPTH)
    assert parse_toml(f"x = {json.dumps(nested(DEPTH - 1))}") == {"x": nested(DEPTH - 1)}
    check_depth({"x": (nested(DEPTH - 2),)})


@pytest.mark.parametrize("levels", [DEPTH + 1, MANY])
def test_what_is_nested_deeper_is_refused(levels: int) -> None:
    arrays = "[" * levels + "]" * levels
    tables = '{"a":' * levels + "1" + "}" * levels
    for read, text in (
        (parse_json, arrays),
        (parse_json, tables),
        (parse_toml, f"x = {arrays}"),
        (parse_toml, f"{'a.' * min(levels, DOTS)}a = 1"),
        (parse_toml, f"[{'a.' * min(levels, DOTS)}a]"),
    ):
        with pytest.raises(TooDeep, match="nested in more than 100 levels"):
            read(text)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (parse_json, "{"),
        (parse_json, b"\xff"),
        (parse_json, "9" * 5000),
        (parse_toml, "x"),
        (parse_toml, f"x = {'9' * 5000}"),
    ],
)
def test_what_cannot_be_read_is_a_value_error(read: Callable[[Any], Any], text: str | bytes) -> None:
    with pytest.raises(ValueError, match="."):
        read(text)


@pytest.mark.usefixtures("toys")
def test_a_recipe_nested_too_deep_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    for text in (f"name = {'[' * MANY}{']' * MANY}", f"{'a.' * DOTS}a = 1", f"x = {'9' * 5000}"):
        path.write_text(text)
        with pytest.raises(RecipeError, match="deep.toml: 1 mistake\n  - (it is nested|Exceeds)"):
            Recipe.load(path)
    with pytest.raises(RecipeError, match="the recipe: 1 mistake\n  - it is nested"):
        Recipe.load({**RECIPE, "deepspeed": {"x": nested(MANY)}})


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("override", [f"seed={'[' * MANY}{']' * MANY}", f"{'a.' * MANY}a=1"])
def test_an_override_nested_too_deep_is_refused(override: str) -> None:
    with pytest.raises(RecipeError, match=r"--set .*: it is nested in more than 100 levels") as error:
        Recipe.load(RECIPE, [override])
    assert len(str(error.value)) < 500


@pytest.mark.usefixtures("toys")
def test_a_message_does_not_repeat_all_that_was_given() -> None:
    for wrong in ({"seed": "x" * MANY}, {"unknown": "x" * MANY}, {"name": {"x" * MANY: 1}}):
        with pytest.raises(RecipeError) as error:
            Recipe.load({**RECIPE, **wrong})
        assert len(str(error.value)) < 1000


def test_other_files_of_users_are_refused_by_name(tmp_path: Path) -> None:
    for text in (f"x = {'[' * MANY}{']' * MANY}", "no TOML"):
        (tmp_path / "recipe.toml").write_text(text)
        with pytest.raises(InputError, match="recipe.toml cannot be read: "):
            recipe_differences(tmp_path, tmp_path)
    (tmp_path / "p.jsonl").write_text("[" * MANY + "]" * MANY)
    with pytest.raises(InputError, match="p.jsonl line 1: not JSON: it is nested"):
        score_file(None, tmp_path / "p.jsonl")  # type: ignore[arg-type]  # read before it is scored
