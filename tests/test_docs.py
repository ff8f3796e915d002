"""README and docs say what is true: their code runs, their tables are complete, their English is plain."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import runpy
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import program
import pytest
import torch

import magma
from magma.interfaces import KINDS
from magma.plugins import hookspecs
from magma.recipe.loader import bundled
from magma.recipe.recipe import Recipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
IDIOMS = (
    *(r"\balone\b", r"\bbehind\b", r"\btells?\b", r"\btold\b", r"\bstands?\b", r"\b(go|goes|going) on\b"),
    *(r"\bof (its|their|one's) own\b", r"where it is not given", r"\bso many\b", r"\bfor who\b", r"\bto the bit\b"),
    *(r"\bfigures\b", r"\bfigure(?! \d)", r"last digit", r"\bof late\b", r"\bmuch of it\b", r"cannot be had"),
    *(r"\bspeaks? of\b", r"\bbegun with\b", r"\bno matter of\b", r"cost no more than themselves", r"changed places"),
    *(r"What is read once", r"The first hour", r"better weights", r"\bread anywhere\b", r"\bto hold less\b"),
)
"""What a reader of the documentation stumbled over; the code's own strings in generated blocks are not among these."""


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts in docs/ find what they share."""
    monkeypatch.syspath_prepend(str(DOCS))


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def block_with(part: str, text: str) -> str:
    (found,) = [block for block in blocks("python", text) if part in block]
    return found


def test_the_python_of_readme_and_of_the_training_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load, _ = blocks("python")
    guide = read("guides/train.md")
    assemble, instances, loop = [block_with(part, guide) for part in ("assemble(", "GPTJ.build", "torch.optim")]
    (tmp_path / "docs").symlink_to(DOCS)
    monkeypatch.chdir(tmp_path)
    run = "recipe run quickstart --set train.samples=32 --set tasks.0.limit=2 --set train.evaluate_samples=2"
    assert program.magma(*run.split()).returncode == 0
    check_described(tmp_path / "runs/quickstart")
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
    exec(loop, names)
    assert magma.load("runs/own_loop")


def fields(section: str, page: str) -> set[str]:
    """The first column of a section's tables."""
    _, _, rest = read(page).partition(f"## {section}\n")
    rows = re.findall(r"^\| (`.*?) \|", rest.partition("\n## ")[0], re.MULTILINE)
    return set(re.findall(r"`([^`]+)`", " ".join(rows)))


def check_described(run: Path) -> None:
    """The reference describes every field and file that a run leaves."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    written = {key for row in rows for key in row}
    conditional = {"stage", "skipped", "auxiliary_losses"}
    assert written - conditional == fields("metrics.jsonl", "reference/metrics.md") - conditional
    report = json.loads((run / "report.json").read_text())
    stops = {"stopped_by", "stop_reason"}
    assert report.keys() - stops == fields("report.json", "reference/metrics.md") - stops
    page = read("reference/run-folder.md")
    checkpoint = run / "checkpoints/step-00000001"
    for file in [*run.iterdir(), *checkpoint.iterdir(), *(checkpoint / "state").iterdir()]:
        assert re.search(rf"`{re.escape(file.name)}[`/]", page), file
    keys = json.loads((checkpoint / "manifest.json").read_text()).keys()
    assert keys <= fields("A checkpoint", "reference/run-folder.md"), keys


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
    text = read("guides/plugins.md")
    hooks = [f for name, f in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("magma_")]
    assert len(hooks) == 2
    for hook in hooks:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{hook.__name__}`"))
        for argument in inspect.signature(hook).parameters:
            assert f"`{argument}`" in row
            assert f"{argument}:" in inspect.getdoc(hook)  # type: ignore[operator]
    assert all(f"| `{kind}` | `magma.{base.__name__}`" in text for kind, base in KINDS.items())


@pytest.mark.parametrize("script", ["data", "plugins", "prefixes"])
def test_generated_tables_say_what_the_code_does(script: str) -> None:
    made = runpy.run_path(str(DOCS / f"{script}.py"))
    text = made["PAGE"].read_text(encoding="utf-8")
    assert made["page"](text) == text, f"`python docs/{script}.py` writes what the code says into {made['PAGE'].name}"


def test_the_plugin_guide_counts_the_lines_of_its_example() -> None:
    lines = len((ROOT / "examples/magma-timeseries/magma_timeseries.py").read_text().splitlines())
    assert f"one file of {lines} lines" in " ".join(read("guides/plugins.md").split())
    assert lines <= 60


def test_the_guide_counts_the_lines_of_the_other_examples() -> None:
    text = " ".join(read("guides/plugins.md").split())
    for name in ("contrastive", "loss-spike"):
        lines = len((ROOT / f"examples/magma-{name}/magma_{name.replace('-', '_')}.py").read_text().splitlines())
        assert re.search(rf"`examples/magma-{name}` is [^.]* in {lines} lines", text)


def test_every_recipe_key_and_every_command_is_in_the_reference() -> None:
    made = runpy.run_path(str(DOCS / "reference.py"))
    assert made["without_sentence"]() == []
    for path, page in made["PAGES"].items():
        text = path.read_text(encoding="utf-8")
        assert page(text) == text, f"`python docs/reference.py` writes what the code says into {path.name}"


def test_every_public_name_is_in_the_reference() -> None:
    listed = re.findall(r"^::: magma\.(\w+)$", read("reference/api.md"), re.MULTILINE)
    assert sorted(listed) == sorted(magma.__all__)


def test_the_miniature_says_what_was_measured() -> None:
    made = runpy.run_path(str(DOCS / "miniature.py"))
    text = made["PAGE"].read_text(encoding="utf-8")
    assert made["page"](text) == text, "`python docs/miniature.py` writes the table"
    runs = json.loads(made["RESULTS"][-1].read_text(encoding="utf-8"))["runs"]
    recipes = {name.replace("/", "_") for name in bundled() if name.startswith("mini/")}
    assert {run["recipe"] for run in runs} == set(made["ROWS"]) == recipes
    assert all(len({run["seed"] for run in runs if run["recipe"] == name}) >= 3 for name in recipes)
    assert all(run["frozen_unchanged"] for run in runs if "steps" in run)


def test_the_results_say_what_was_measured() -> None:
    made = runpy.run_path(str(DOCS / "results.py"))
    text = made["PAGE"].read_text(encoding="utf-8")
    assert made["page"](text) == text, "`python docs/results.py` writes the tables"
    runs = json.loads(made["RESULTS"][-1].read_text(encoding="utf-8"))["runs"]
    recipes = {name.replace("/", "_") for name in bundled() if name.startswith("emoji")}
    assert (
        {"emoji", "emoji_frozen"} <= {run["recipe"] for run in runs} <= {*recipes, "emoji_neutral"} == set(made["ROWS"])
    )
    assert all(run["frozen_unchanged"] for run in runs if "steps" in run)
    naming = [run["tasks"]["0.emoji"] for run in runs if run["recipe"] == "emoji"]
    shown = [f"{sum(one[way]['naming_word_f1'] for one in naming) / len(naming):.3f}" for way in naming[0]]
    assert all(f" {score} |" in README for score in shown)


def test_the_changelog_has_no_relative_links() -> None:
    """The site shows it from another folder, so that such links would lead nowhere."""
    text = (DOCS.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((?!https?://)[^)]*\)", text) == []


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
    text = read("paper/recipes.md") + read("guides/data.md")
    for path in (ROOT / "recipes").rglob("*.toml"):
        for source in Recipe.load(path).data.train:
            found = source.fields.get("path")  # absolute where $MAGMA_DATA or the working folder has it
            assert found is None or f"`{Path(found).name}`" in text


def test_performance_says_what_was_measured() -> None:
    text = read("paper/benchmarks.md")
    files = sorted(set(re.findall(r"benchmarks/results/[\w.-]+\.json", text)))
    assert files
    for row in [row for file in files for row in json.loads((ROOT / file).read_text())["rows"]]:
        figures = [f"{row[key]:.3g}" for key in ("value", "low", "high")]
        found = [line for line in text.splitlines() if line.startswith("|") and figures[0] in line]
        assert found, row["name"]
        assert row["low"] == row["high"] or any(f"{figures[1]} to {figures[2]}" in line for line in found), row["name"]


def prose(path: Path) -> str:
    """What a person wrote: without generated blocks, code and comments."""
    text = path.read_text(encoding="utf-8")
    for pattern in (
        r"<!-- (\w+): python docs/\w+\.py -->.*?<!-- end of \1 -->",
        r"```.*?```",
        r"`[^`]*`",
        r"<!--.*?-->",
    ):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    return " ".join(text.split())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_english_is_plain(path: Path) -> None:
    text = prose(path)
    found = [text[max(0, m.start() - 40) : m.end() + 40] for idiom in IDIOMS for m in re.finditer(idiom, text, re.I)]
    assert not found, "\n".join(found)


def test_readme_is_short_and_names_only_what_is_there() -> None:
    assert len(README.splitlines()) <= 200
    for path in re.findall(r"(?:docs|recipes)/[\w/.-]+\.(?:md|png|toml|wav)|\b[A-Z]+\.(?:md|cff)\b", README):
        assert (ROOT / path).is_file(), path
    shown = [word for block in blocks("sh") for word in re.findall(r"\S+\.(?:png|wav)", block)]
    assert shown
    assert all((ROOT / path).is_file() for path in shown)


def test_every_page_is_in_the_navigation() -> None:
    nav = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]))
    assert nav == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_pre_commit_runs_the_linters_of_ci() -> None:
    (line,) = re.findall(r"^(ruff check .*?) \|\|", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert hooks == line.split(" && ")


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra `docs` is not installed")
def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def tutorial(folder: Path) -> dict[str, Any]:
    """The tutorial's files in a folder, with its plugin as an installed one; names of the plugin's module."""
    for script in ("make_recordings.py", "to_jsonl.py"):
        runpy.run_path(str(DOCS / "tutorial" / script))
    for file in ("sensor.toml", "magma_sensor.py"):
        (folder / file).write_text((DOCS / "tutorial" / file).read_text(encoding="utf-8"), encoding="utf-8")
    entry = folder / "magma_sensor-0.1.0.dist-info"
    entry.mkdir()
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: magma-sensor\nVersion: 0.1.0\n")
    (entry / "entry_points.txt").write_text("[magma]\nsensor = magma_sensor\n")
    return runpy.run_path(str(folder / "magma_sensor.py"))


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files as they are, with fewer steps; the numbers that it shows are from a run of all of them."""
    from magma import testing

    monkeypatch.chdir(tmp_path)
    names, text = tutorial(tmp_path), read("tutorial.md")
    table = (tmp_path / "data/labels.csv").read_text().splitlines()
    assert "\n".join(table[:3]) in text
    findings = testing.run_checks(names["Sensor"])
    assert [one for one in findings if one.problem] == []
    assert f"{len(findings)} of {len(findings)} checks passed" in text
    line = (tmp_path / "data/train.jsonl").read_text().splitlines()[0]
    assert line in text
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    few = "--set train.samples=64 --set train.evaluate_every=0 --set tasks.0.limit=4 --set data.evaluation=[]"
    done = program.start("recipe", "run", "sensor.toml", *few.split())
    assert done.returncode == 0, done.stderr
    (plan,) = [block for block in blocks("text", text) if block.startswith(" part ")]
    printed = {line.rstrip() for line in (done.stdout + done.stderr).splitlines()}
    assert printed >= set(plan.splitlines()[:6])
    report = json.loads((tmp_path / "runs/sensor/report.json").read_text())
    assert report["tasks"]["0.gqa"]["model"].keys() == {"accuracy"}
