"""TOML in; every mistake out, at once, before anything loads."""

from __future__ import annotations

import codecs
import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from toys import RECIPE

from magma import Recipe, RecipeError
from magma.recipe.loader import bundled


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def recipe(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RECIPE), **changes}


@pytest.mark.parametrize("name", list(bundled()))
def test_every_bundled_recipe_is_valid(name: str) -> None:
    loaded = Recipe.load(name)
    assert loaded.name == name.replace("/", "_").removeprefix("released_")
    assert loaded.description
    assert Recipe.load(loaded.model_dump(mode="json", exclude_none=True)) == loaded


@pytest.mark.usefixtures("toys")
def test_defaults_of_parts_stand_in_the_resolved_recipe(tmp_path: Path) -> None:
    loaded = Recipe.load(RECIPE)
    assert loaded.adapters["mlp"].fields == {"width": 4}
    again = Recipe.load(write(tmp_path, "again.toml", loaded.to_toml()))
    assert again == loaded


def test_five_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    loaded_before = set(sys.modules)
    path = write(
        tmp_path,
        "wrong.toml",
        """
        extends = "base.toml"
        [inputs.image]
        encoder = { use = "clipp" }
        prefix = { use = "linear", dropout = 1.5 }
        [adapters.mlp]
        use = "sequential"
        down_sample = 8
        [train]
        lr = "fast"
        batch_size = 0
        """,
    )
    write(tmp_path, "base.toml", 'name = "base"\n[lm]\nuse = "gptj"\n[train]\nsteps = 1\n')
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    assert f"{path}: 5 mistakes" in text
    assert 'inputs.image.encoder.use: given \'clipp\'; no encoder is called "clipp". Did you mean "clip"?' in text
    assert "inputs.image.prefix.dropout: given 1.5; allowed: less than 1" in text
    assert 'adapters.mlp.down_sample: given 8, an unknown key. Did you mean "downsample"? Allowed: downsample' in text
    assert "train.lr: given 'fast'; allowed: a number" in text
    assert "train.batch_size: given 0; allowed: greater than 0" in text
    assert not {"open_clip", "transformers", "deepspeed"} & (set(sys.modules) - loaded_before)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm": {"us": "toy"}}, "lm.use: missing"),
        ({"train": {"lr": 1.0, "batch_size": 1}}, "train: given .*; allowed: give either `samples` or `steps`"),
        ({"seed": 2**63}, "seed: given 9223372036854775808; allowed: less than 9223372036854775808"),
        ({"trian": {}}, 'trian: given {}, an unknown key. Did you mean "train"?'),
        (
            {"deepspeed": {"optimizer": {}}},
            r"deepspeed.optimizer: given {}, but \[train\] sets it; allowed: train.optimizer instead",
        ),
        (
            {"deepspeed": {"zero_optimization": {"stage": "auto"}}},
            "deepspeed.zero_optimization.stage: given 'auto'; allowed: 0, 1, 2, 3",
        ),
        (
            {"deepspeed": {"zero_optimization": {"reduce_bucket_size": "auto"}}},
            "deepspeed.zero_optimization.reduce_bucket_size: given 'auto'; allowed: a number >= 1",
        ),
        ({"deepspeed": {"zero_optimization": 2}}, "deepspeed.zero_optimization: given 2; allowed: a table"),
        (
            {"adapters": {"attention": {"use": "add", "lr": -1}}},
            r"adapters.attention.lr: given -1; allowed: a finite number above",
        ),
        ({"adapters": {"a b": {"use": "add"}}}, "adapters.a b.*allowed: a letter or underscore"),
        ({"adapters": {"see": {"use": "add", "blocks": "first"}}}, 'adapters.see.blocks: .*"every 4"'),
        ({"adapters": {"see": {"use": "add", "blocks": [1, 1]}}}, "adapters.see.blocks: .*each index once"),
        ({"adapters": {"see": {"use": "add", "at": 3}}}, "adapters.see.at: given 3; allowed: .*string"),
        (
            {"data": {"train": [{"use": "counting", "weight": 0}]}},
            r"data.train.0.weight: given 0; allowed: a finite number above 0",
        ),
        ({"data": {"train": [{"use": "counting", "lenght": 3}]}}, r'data.train.0.lenght.*Did you mean "length"'),
        (
            {"train": {**RECIPE["train"], "schedule": {"use": "cosine", "end": 1}}},
            r"train.schedule.cosine.end: given 1, an unknown key.* Allowed: use, final_lr_ratio",
        ),
    ],
)
def test_each_mistake_says_where_what_and_what_is_allowed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(recipe(**change))


@pytest.mark.usefixtures("toys")
def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "toy.toml", tomli_w.dumps(RECIPE))
    changed = Recipe.load(
        path,
        [
            "train.lr=5e-4",
            "name=other",
            "data.train.0.length=3",
            'train.schedule={ use = "constant" }',
            "adapters.mlp=false",
        ],
    )
    assert changed.train is not None
    assert changed.train.lr == 5e-4
    assert changed.train.schedule.use == "constant"
    assert changed.name == "other"
    assert changed.data.train[0].fields["length"] == 3
    assert changed.adapters == {}
    with pytest.raises(RecipeError, match=r"--set train\.lr: allowed: path=value"):
        Recipe.load(path, ["train.lr"])
    with pytest.raises(RecipeError, match=r"there is no data\.train\.-1\.length to set"):
        Recipe.load(RECIPE, ["data.train.-1.length=1"])
    with pytest.raises(RecipeError, match=r"--set data\.train\.7\.length=1: there is no data\.train\.7\.length to set"):
        Recipe.load(path, ["data.train.7.length=1"])


@pytest.mark.usefixtures("toys")
def test_byte_order_marks_and_cr_lf_are_no_part_of_a_recipe(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", tomli_w.dumps(recipe()))
    plain = write(tmp_path, "plain.toml", 'extends = "base.toml"\n[train]\nlr = 0.5\n')
    expected = Recipe.load(plain)
    for name in ("base.toml", "plain.toml"):
        text = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.replace(b"\n", b"\r\n"))
    assert Recipe.load(plain) == expected


@pytest.mark.usefixtures("toys")
def test_extends_merges_and_another_part_replaces(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", tomli_w.dumps(recipe(adapters={"mlp": {"use": "add", "width": 2}})))
    child = write(
        tmp_path, "child.toml", 'extends = "base.toml"\nname = "child"\n[train]\nlr = 0.5\n[adapters]\nmlp = false\n'
    )
    loaded = Recipe.load(child)
    assert loaded.train is not None
    assert (loaded.name, loaded.train.lr, loaded.train.batch_size) == ("child", 0.5, 4)
    assert loaded.adapters == {}
    grandchild = write(tmp_path, "grandchild.toml", 'extends = "child.toml"\n[adapters.mlp]\nuse = "add"\n')
    assert Recipe.load(grandchild).adapters["mlp"].fields == {"width": 4}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'no bundled recipe has this name. Did you mean "quickstart"'):
        Recipe.load("quikstart")
    with pytest.raises(RecipeError, match="line 1"):
        Recipe.load(write(tmp_path, "broken.toml", "= 3"))
    with pytest.raises(RecipeError, match="nowhere.toml does not exist, and no bundled recipe"):
        Recipe.load(write(tmp_path, "orphan.toml", 'extends = "nowhere.toml"'))
    loop = write(tmp_path, "loop.toml", 'extends = "loop.toml"')
    with pytest.raises(RecipeError, match="extends itself"):
        Recipe.load(loop)


def test_relative_paths_are_found_beside_the_recipe_then_in_magma_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'name = "x"\n[lm]\nuse = "gptj"\nweights = "model"\n'
    path = write(tmp_path, "x.toml", text)
    assert Recipe.load(path).lm.fields["weights"] == "model"
    data = tmp_path / "data"
    (data / "model").mkdir(parents=True)
    monkeypatch.setenv("MAGMA_DATA", str(data))
    assert Recipe.load(path).lm.fields["weights"] == str(data / "model")
    (tmp_path / "model").mkdir()
    assert Recipe.load(path).lm.fields["weights"] == str(tmp_path / "model")


@pytest.mark.usefixtures("toys")
def test_what_is_missing_on_this_machine(tmp_path: Path) -> None:
    missing = Recipe.load(recipe(init={"checkpoint": str(tmp_path / "gone")})).problems()
    assert missing == [
        f"init.checkpoint: given '{tmp_path / 'gone'}', which is not a folder; allowed: a checkpoint or a run's folder"
    ]
    assert Recipe.load(RECIPE).problems() == []


@pytest.mark.parametrize(("samples", "batch", "steps"), [(10, 4, 3), (8, 4, 2), (7_600_000, 256, 29_688)])
def test_a_partial_last_batch_is_a_step(samples: int, batch: int, steps: int) -> None:
    train = Recipe.load("quickstart", [f"train.samples={samples}", f"train.batch_size={batch}"]).train
    assert train is not None
    assert train.total_steps == steps


@pytest.mark.parametrize("name", ["quickstart", "quickstart.toml"])
def test_a_recipe_anywhere_extends_a_bundled_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'extends = "{name}"\n[train]\nlr = 1e-5\n')
    changed = Recipe.load(tmp_path / "mine.toml")
    assert changed == Recipe.load("quickstart", ["train.lr=1e-5"])
