"""`magma recipe keys` and the JSON schema for editors."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from magma import Recipe, RecipeError
from magma.cli.app import cli
from magma.recipe.json_schema import json_schema
from magma.recipe.keys import FRAMEWORK_TABLES, find_tables, keys_of
from magma.recipe.loader import bundled
from magma.recipe.schema import Train

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def problems(value: Any, schema: Any, whole: dict[str, Any], path: str = "") -> list[str]:
    """What the keywords that pydantic writes say against a value."""
    if schema is True:
        return []
    if "$ref" in schema:
        return problems(value, whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], whole, path)
    found = []
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            tried = [problems(value, one, whole, path) for one in schema[choice]]
            if all(tried):
                found += min(tried, key=len)
    if "const" in schema and (value != schema["const"] or type(value) is not type(schema["const"])):
        found.append(f"{path}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} is none of {schema['enum']}")
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [*found, f"{path}: {value!r} is no {kind}"]
    if isinstance(value, dict):
        for key, one in value.items():
            inside = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
            found += [f"{path}.{key}: unknown"] if inside is False else problems(one, inside, whole, f"{path}.{key}")
    if isinstance(value, list) and "items" in schema:
        found += [line for one in value for line in problems(one, schema["items"], whole, path)]
    if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
        found.append(f"{path}: {value} is too small")
    return found


@pytest.mark.parametrize("name", bundled())
def test_bundled_recipes_follow_the_schema(name: str) -> None:
    assert problems(tomllib.loads(bundled()[name].read_text(encoding="utf-8")), json_schema(), json_schema()) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lm = {use = 'gptj', contxt = 3}", "contxt: unknown"),
        ("train = {lr = 0}", "is too small"),
        ("inputs.image.prefix = {use = 'linear', lr = 'high'}", "is no number"),
        ("tasks = [{use = 'digits', shots = 4}]", "is no array"),
        ("train.spike_factor = true", "true"),
        ("tarin = {}", "tarin: unknown"),
    ],
)
def test_the_schema_finds_mistakes(text: str, problem: str) -> None:
    found = problems(tomllib.loads(text), json_schema(), json_schema())
    assert found
    assert problem in " ".join(found).replace("True", "true")


@pytest.mark.parametrize(
    "text",
    [
        "extends = 'base.toml'\nhead = false\nstages = false\nadapters.attention = false\ninputs.image = false",
        "lm = {weights = false}\ntrain = {early_stopping = false, schedule = {use = 'cosine', final = 0.5}}",
        "data.train = [{use = 'digits', weight = 2, questions = 0.5}]",
        "inputs.image.prefix = {use = 'linear', trainable = false}",
    ],
)
def test_the_schema_allows_what_recipes_may_contain(text: str) -> None:
    assert problems(tomllib.loads(text), json_schema(), json_schema()) == []


def test_every_reference_of_the_schema_exists() -> None:
    schema = json_schema()
    targets = {part.partition('"')[0] for part in json.dumps(schema).split('"#/$defs/')[1:]}
    assert targets <= schema["$defs"].keys()


def test_every_key_of_the_framework_has_a_sentence() -> None:
    for title, model in FRAMEWORK_TABLES.items():
        for key in keys_of(model):
            assert key.description.endswith("."), f"{title} {key.name}"


def test_tables_are_found_by_their_names() -> None:
    assert find_tables("train") == {"`[train]`": Train}
    assert find_tables("recipe") == {"Top level": Recipe}
    assert len(find_tables("train.schedule")) == 3
    assert list(find_tables("linear")) == ["head linear", "prefix linear"]
    assert list(find_tables("prefix linear")) == ["prefix linear"]
    assert {title.split()[0] for title in find_tables("encoder")} == {"encoder"}
    with pytest.raises(RecipeError, match=r'given \'trian\', not a table or a part\. Did you mean "train"\?'):
        find_tables("trian")


def test_the_commands(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["recipe", "keys", "train"])
    assert "  lr: number, > 0 (required)\n      Peak learning rate" in result.stdout
    assert '  too_long: "error", "skip" (default: "error")\n' in result.stdout
    assert CliRunner().invoke(cli, ["recipe", "schema", str(tmp_path / "schema.json")]).exit_code == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == json_schema()
    assert json.loads(CliRunner().invoke(cli, ["recipe", "schema"]).stdout) == json_schema()


def test_the_former_name_of_the_last_learning_rate() -> None:
    table = {"lr": 1e-3, "batch_size": 2, "steps": 3, "schedule": {"use": "linear", "final": 0.5}}
    with pytest.warns(DeprecationWarning, match="the key `final` is now called `final_lr_ratio`"):
        assert Train.model_validate(table).schedule.final_lr_ratio == 0.5  # type: ignore[union-attr]


def test_the_former_name_of_an_option() -> None:
    words = ["recipe", "plan", "quickstart", "--json", "--set", "train.batch_size=4"]
    former, current = (CliRunner().invoke(cli, [*words, option, "2"]) for option in ("--world", "--nproc"))
    assert "warning: the option --world is now called --nproc" in former.output
    assert json.loads(current.stdout)["world"] == 2
    assert current.stdout in former.output


def test_an_encoders_key_in_the_wrong_table() -> None:
    tables = {"name": "r", "lm": {"use": "gptj"}, "inputs": {"x": {"encoder": {"use": "clip", "lr": 0.1}}}}
    with pytest.raises(
        RecipeError, match=r"inputs\.x\.encoder\.lr: given 0\.1, an unknown key.*Set inputs\.x\.lr instead"
    ):
        Recipe.load(tables)
