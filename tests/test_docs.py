"""README and docs say what is true: their code runs, their tables are complete."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import program
import pytest
import torch

import magma
from magma.interfaces import KINDS
from magma.plugins import hookspecs
from magma.recipe.loader import bundled
from magma.recipe.recipe import Recipe
from magma.recipe.schema import Train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load, assemble, instances, _ = blocks("python")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    run = "recipe run quickstart --set train.samples=32 --set tasks.0.limit=2 --set train.evaluate_samples=2"
    assert program.magma(*run.split()).returncode == 0
    names: dict[str, object] = {}
    exec(load, names)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    exec(assemble, names)
    assembled = names["model"]
    assert isinstance(assembled, magma.Magma)
    assert {row.path for row in assembled.summary() if row.trained} == {
        *("inputs.image.encoder", "inputs.image.prefix", "adapters.mlp")
    }
    exec(instances, names)
    by_hand = names["model"]
    assert isinstance(by_hand, magma.Magma)
    assert all(p.grad is not None for p in by_hand.parameters() if p.requires_grad)
    loaded = magma.load("runs/by_hand")
    by_hand.eval()
    assert torch.equal(loaded.logits([names["image"], "A"]), by_hand.logits([names["image"], "A"]))


def test_readmes_plugin_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from magma.plugins.registry import Registry, installed

    *_, text = blocks("python")
    assert len(text.strip().splitlines()) <= 45
    module = types.ModuleType("magma_thermometer")
    exec(text, module.__dict__)
    monkeypatch.setitem(sys.modules, "magma_thermometer", module)
    found = Registry([EntryPoint("thermometer", "magma_thermometer", "magma")]).find("encoder", "thermometer")
    encoder = found.part.build(width=8)  # type: ignore[attr-defined]
    prefix = installed().find("prefix", "linear").part.build(8, 1, 192)  # type: ignore[attr-defined]
    lm = installed().find("lm", "gptj").part.build(weights="bundled:tiny")  # type: ignore[attr-defined]
    model = magma.Magma(lm, {"temperature": magma.Input(encoder, prefix)})
    example = magma.Example([magma.Media("temperature", 21.5), magma.Text("It is warm today.", target=True)])
    model.loss(model.collator().batch([example])).backward()
    assert all(p.grad is not None for p in encoder.parameters())
    with pytest.raises(magma.InputError, match="allowed: degrees Celsius"):
        encoder.prepare("hot")


def test_readmes_recipe_is_valid(tmp_path: Path) -> None:
    (text,) = [block for block in blocks("toml") if "extends" in block]
    (tmp_path / "quickstart.toml").write_text((ROOT / "recipes/quickstart.toml").read_text())
    (tmp_path / "parallel.toml").write_text(text)
    recipe = Recipe.load(tmp_path / "parallel.toml")
    assert set(recipe.adapters) == {"mlp"}
    assert recipe.adapters["mlp"].fields["scale"] == "learned"


def test_every_hook_and_argument_is_documented() -> None:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    hooks = [f for name, f in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("magma_")]
    assert len(hooks) == 2
    for hook in hooks:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{hook.__name__}`"))
        for argument in inspect.signature(hook).parameters:
            assert f"`{argument}`" in row
            assert f"{argument}:" in inspect.getdoc(hook)  # type: ignore[operator]
    assert all(f"| `{kind}` | `magma.{base.__name__}`" in text for kind, base in KINDS.items())


def test_the_plugin_guide_says_what_the_code_does() -> None:
    made = runpy.run_path(str(ROOT / "docs/plugins.py"))
    text = made["PAGE"].read_text(encoding="utf-8")
    assert made["page"](text) == text, "`python docs/plugins.py` writes what the code says into docs/plugins.md"
    lines = len((ROOT / "examples/magma-timeseries/magma_timeseries.py").read_text().splitlines())
    assert f"one file of {lines} lines" in " ".join(text.split())
    assert lines <= 60


def test_the_miniature_says_what_was_measured() -> None:
    made = runpy.run_path(str(ROOT / "docs/miniature.py"))
    text = made["PAGE"].read_text(encoding="utf-8")
    assert made["page"](text) == text, "`python docs/miniature.py` writes the table"
    runs = json.loads(made["RESULTS"][-1].read_text(encoding="utf-8"))["runs"]
    recipes = {name.replace("/", "_") for name in bundled() if name.startswith("mini/")}
    assert {run["recipe"] for run in runs} == set(made["ROWS"]) == recipes
    assert all(len({run["seed"] for run in runs if run["recipe"] == name}) >= 3 for name in recipes)
    assert all(run["frozen_unchanged"] for run in runs)


def test_every_recipe_key_is_documented() -> None:
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    for model in (Recipe, Train):
        for key in model.model_fields:
            assert re.search(rf"[`\[.]{key}[`\].]|\[{key}", text), key


def test_every_public_name_has_a_docstring() -> None:
    for name in magma.__all__:
        value = getattr(magma, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name


def test_every_shipped_part_says_what_it_is() -> None:
    from magma.plugins.registry import installed

    for entry in installed().entries():
        assert inspect.getdoc(entry.part)
        assert entry.part.Config.__doc__ or not entry.part.Config.model_fields, entry.name


def test_readmes_plan_is_what_the_program_prints() -> None:
    (text,) = blocks("text")
    done = program.magma("recipe", "plan", ROOT / "recipes/magma_long.toml")
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    assert printed[: len(text.splitlines())] == text.splitlines()


def test_every_bundled_recipes_data_is_named_in_the_docs() -> None:
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    for path in (ROOT / "recipes").rglob("*.toml"):
        for source in Recipe.load(path).data.train:
            found = source.fields.get("path")  # absolute where $MAGMA_DATA or the working folder has it
            assert found is None or f"`{Path(found).name}`" in text


def test_performance_says_what_was_measured() -> None:
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    files = sorted(set(re.findall(r"benchmarks/results/[\w.-]+\.json", text)))
    assert files
    for row in [row for file in files for row in json.loads((ROOT / file).read_text())["rows"]]:
        figures = [f"{row[key]:.3g}" for key in ("value", "low", "high")]
        found = [line for line in text.splitlines() if line.startswith("|") and figures[0] in line]
        assert found, row["name"]
        assert row["low"] == row["high"] or any(f"{figures[1]} to {figures[2]}" in line for line in found), row["name"]
