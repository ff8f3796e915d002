"""Names that an input cannot have, refused in the recipe and by the model, with the reason."""

from __future__ import annotations

import copy
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from toys import RECIPE, ToyEncoder, ToyLM, ToyPrefix

import magma
from magma import Decoding, Input, Magma, PartError, Recipe, RecipeError
from magma.cli import app as cli
from magma.names import OPTIONS

pytestmark = pytest.mark.usefixtures("toys")


def named(name: str) -> dict[str, Any]:
    raw = copy.deepcopy(RECIPE)
    raw["inputs"] = {name: raw["inputs"]["number"]}
    return raw


@pytest.mark.parametrize("name", ["values", "keys", "forward", "training", "_modules"])
def test_names_that_torch_uses_are_refused(name: str) -> None:
    reason = f'another name: "{name}" is an attribute of torch.nn.ModuleDict, which holds the inputs'
    with pytest.raises(RecipeError) as raised:
        Recipe.load(named(name))
    assert raised.value.problems == [f"inputs.{name}: given {name!r}; allowed: {reason}"]
    way = Input(ToyEncoder(ToyEncoder.Config()), ToyPrefix(ToyPrefix.Config(), 6, 4, 16))
    with pytest.raises(PartError) as built:
        Magma(ToyLM(ToyLM.Config()), {name: way})
    assert str(built.value) == raised.value.problems[0]


@pytest.mark.parametrize("name", ["a.b", "a-b", "2d", "", "a b", "größe"])
def test_what_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(RecipeError) as raised:
        Recipe.load(named(name))
    assert raised.value.problems == [
        f"inputs.{name}: given {name!r}; allowed: a letter or underscore, then letters, digits and underscores"
    ]


@pytest.mark.parametrize("name", ["text", "seed", "device", "max_tokens"])
def test_options_of_generate_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=rf'inputs.{name}: .* "{name}" is an option of `magma generate`'):
        Recipe.load(named(name))


def test_every_option_of_generate_is_known() -> None:
    given = {*inspect.signature(cli.generate).parameters, *(field.name for field in fields(Decoding))}
    assert given <= set(OPTIONS)


def test_a_checkpoint_keeps_the_name_that_an_earlier_version_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magma.recipe.schema.name_problem", lambda _: None)
    model = magma.assemble(named("a-b"))
    magma.save(model, tmp_path / "old", Recipe.load(named("a-b")))
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as again:
        install(again)
        assert list(magma.load(tmp_path / "old").input_modules()) == ["a-b"]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import install_parts

    install_parts(monkeypatch, "toys")


def test_ordinary_names_are_allowed() -> None:
    for name in ("image", "audio", "scan_2", "_x", "Values", "class"):
        assert list(Recipe.load(named(name)).inputs) == [name]
