"""Keys of recipes that have another name now: the former name still works, in recipes, checkpoints and runs."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import program
import pytest
from magma_data.digits.written import Digits
from magma_data.sources.captions import Captions
from magma_data.tasks.question_answering import Vqa2Task
from magma_lms.gptj import GPTJ
from magma_vision.clip import Clip
from magma_vision.nfresnet import NFResNet
from magma_vision.timm_features import Timm

import magma
from magma import PartConfig, Recipe
from magma.recipe.loader import bundled
from magma.recipe.schema import Cosine


def edit(folder: Path, file: Path, text: str, table: str) -> None:
    """Write a file of a checkpoint, and its hash into the manifest's `table`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    name = file.relative_to(folder).as_posix()
    assert name in manifest[table]
    file.write_text(text)
    manifest[table][name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


SMALL = {"use": "clip", "layers": [1, 1, 1, 1], "width": 16, "image_size": 32}


@pytest.mark.parametrize(
    ("config", "former", "current", "value", "others"),
    [
        (Clip.Config, "pretrained", "weights", "openai", {"model": "RN50"}),
        (Clip.Config, "smaller", "allow_smaller", True, {"model": "RN50"}),
        (NFResNet.Config, "pretrained", "weights", True, {}),
        (Timm.Config, "pretrained", "weights", True, {"model": "test_vit"}),
        (Digits.Config, "pairs", "question_pairs", (("Q: How many? A:", " {}"),), {}),
        (Digits.Config, "questions", "question_fraction", 0.5, {}),
        (Captions.Config, "about", "source_url", "https://example.org", {"path": "data"}),
        (Vqa2Task.Config, "joint", "shot_separator", " ", {}),
        (GPTJ.Config, "words", "num_embeddings", 50_258, {}),
    ],
)
def test_a_former_name_is_read_with_a_warning(
    config: type[PartConfig], former: str, current: str, value: Any, others: dict[str, Any]
) -> None:
    with pytest.warns(DeprecationWarning, match=f"^the key `{former}` is now called `{current}`"):
        read = config(**{former: value, **others})
    assert read == config(**{current: value, **others})
    assert former not in read.model_dump()
    with pytest.warns(DeprecationWarning, match=former):  # the one that was laid over the other, as overrides are
        assert config(**{current: value, former: value, **others}) == read


def test_a_recipe_and_an_override_may_use_former_names() -> None:
    with pytest.warns(DeprecationWarning, match="`questions` is now called `question_fraction`"):
        recipe = Recipe.load("quickstart", ["data.train.0.questions=0.5"])
    assert recipe.part("data.train.0")[1].question_fraction == 0.5
    with pytest.warns(DeprecationWarning, match="`pretrained` is now called `weights`"):
        recipe = Recipe.load("magma_base", ["inputs.image.encoder.pretrained=false"])
    assert recipe.part("inputs.image.encoder")[1].weights is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, whose recipe has former names."""
    folder = tmp_path_factory.mktemp("models") / "small"
    recipe = {
        "name": "small",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {"image": {"encoder": {**SMALL, "allow_smaller": True}, "prefix": {"use": "linear"}}},
    }
    magma.save(magma.assemble(recipe), folder)
    text = (folder / "recipe.toml").read_text()
    assert "\nallow_smaller = true\n" in text
    edit(folder, folder / "recipe.toml", text.replace("allow_smaller = true", "smaller = true"), "files")
    return folder


def test_a_checkpoint_with_former_names_loads_without_a_warning(checkpoint: Path) -> None:
    model = magma.load(checkpoint)  # warnings are errors here
    assert model.inputs["image"].encoder.config.allow_smaller  # type: ignore[attr-defined]


def test_an_evaluation_with_former_names_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Vqa2Task.check_inputs(data)
    words = ["--task", "vqa2", "--data", data, "--limit", "2", "--out", tmp_path / "out"]
    assert program.magma("eval", checkpoint, *words).returncode == 0
    (about,) = tmp_path.glob("out/**/about.json")
    known = json.loads(about.read_text())
    known["config"]["joint"] = known["config"].pop("shot_separator")
    about.write_text(json.dumps(known))
    again = program.magma("eval", checkpoint, *words)
    assert again.returncode == 0, again.stderr


def test_a_run_in_stages_with_former_names_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = ["train.samples=16", "train.batch_size=8", "train.evaluate_every=0", "tasks=[]", "data.evaluation=[]"]
    changes += ["stages.0.train.samples=8", "stages.0.train.evaluate_every=0", "inputs.image.encoder.image_size=32"]
    magma.run("quickstart_stages", out, changes)
    folder = magma.checkpoint.find_checkpoint(out)
    (state,) = (folder / "state").glob("trainer*.json")
    text = state.read_text()
    former = re.sub(r"\.question_fraction\b", ".questions", re.sub(r"\.question_pairs\b", ".pairs", text))
    assert former != text
    edit(folder, state, former, "state")
    magma.run("quickstart_stages", out, changes, resume=True)


def test_the_program_prints_the_former_names_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "old.toml"
    recipe.write_text(f'extends = "{bundled()["quickstart"]}"\n[train.schedule]\nfinal = 0.2\n')
    shown = program.magma("recipe", "show", recipe, "--set", "data.train.0.questions=0.5")
    assert shown.returncode == 0, shown.stderr
    for former, current in (("final", "final_lr_ratio"), ("questions", "question_fraction")):
        assert shown.stderr.count(f"warning: the key `{former}` is now called `{current}`") == 1


def test_a_schedule_without_use_changes_the_default_one() -> None:
    changed = Recipe.load("quickstart", ["train.schedule={final_lr_ratio=0.3}"]).train
    assert changed is not None
    assert changed.schedule == Cosine(use="cosine", final_lr_ratio=0.3)
