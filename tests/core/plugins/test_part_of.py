"""Parts inside parts: what a recipe may say, what is reported, and what is planned, trained, saved and loaded."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from magma_fusion import Fused
from nested_toys import Scaled, fused_recipe
from safetensors.torch import load_file, save_file
from torch import nn
from toys import RECIPE, ToyEncoder, ToyLM, ToyPrefix

import magma
from magma import Encoder, Features, Input, Magma, PartConfig, PartError, PartOf, Recipe, RecipeError, testing
from magma.deprecation import RenamedKeyWarning
from magma.manifest import find_checkpoint, read_manifest
from magma.plan import plan
from magma.plugins import registry
from magma.plugins.part_of import check_nested_parts
from magma.recipe.assemble import learning_rates, recipe_from_model
from magma.recipe.json_schema import json_schema
from magma.recipe.keys import keys_of
from magma.training.train import train
from magma.verify import verify

pytestmark = pytest.mark.usefixtures("nested_toys")

ENCODER = "inputs.number.encoder"
DEEP = {"use": "scaled", "inner": {"use": "scaled", "start": 2.0, "lr": 5e-3, "inner": {"use": "plain"}}}
"""A prefix in a prefix in a prefix."""


def problems(recipe: dict[str, Any], *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(recipe, overrides)
    return caught.value.problems


def test_every_part_has_a_path_and_its_defaults_are_filled_in() -> None:
    given = fused_recipe({"use": "fused", "of": [{"use": "fingers"}]}, {"use": "fingers", "dim": 5})
    given["inputs"]["number"]["prefix"] = {"use": "scaled"}
    given["adapters"]["mlp"] = {"use": "several", "inner": {"first": {"use": "add"}, "second": {"use": "add"}}}
    recipe = Recipe.load(given)
    assert [path for path, *_ in recipe.parts() if not path.startswith(("data", "tasks"))] == [
        "lm",
        ENCODER,
        f"{ENCODER}.of.0",
        f"{ENCODER}.of.0.of.0",
        f"{ENCODER}.of.1",
        "inputs.number.prefix",
        "inputs.number.prefix.inner",
        "adapters.mlp",
        "adapters.mlp.inner.first",
        "adapters.mlp.inner.second",
    ]
    assert recipe.part(f"{ENCODER}.of.0.of.0")[1].dim == 6
    assert recipe.inputs["number"].encoder.fields["of"][0]["of"] == [{"use": "fingers", "dim": 6}]
    assert recipe.inputs["number"].prefix.fields == {"inner": {"use": "plain"}, "start": 1.0}
    assert Recipe.load(recipe.model_dump(mode="json", exclude_none=True)) == recipe


def test_tables_of_toml_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "fused.toml"
    Recipe.load(RECIPE)
    path.write_text(
        Recipe.load(RECIPE).to_toml().replace('[inputs.number.encoder]\nuse = "fingers"\ndim = 6', "")
        + """
        [inputs.number.encoder]
        use = "fused"
        [[inputs.number.encoder.of]]
        use = "fingers"
        [[inputs.number.encoder.of]]
        use = "fingers"
        dim = 5
        """
    )
    child = tmp_path / "child.toml"
    child.write_text('extends = "fused.toml"\n[inputs.number.encoder]\njoin = "sequence"\n')
    recipe = Recipe.load(child, (f"{ENCODER}.of.1.dim=6", f"{ENCODER}.of.1.trainable=false", f"{ENCODER}.of.0.lr=1e-4"))
    assert recipe.inputs["number"].encoder.fields == {
        "of": [{"use": "fingers", "lr": 1e-4, "dim": 6}, {"use": "fingers", "trainable": False, "dim": 6}],
        "join": "sequence",
    }
    again = tmp_path / "again.toml"
    again.write_text(recipe.to_toml())
    assert Recipe.load(again) == recipe
    assert problems(fused_recipe(), f"{ENCODER}.of.7.dim=2")[0].startswith(f"--set {ENCODER}.of.7.dim=2: there is no")


def test_all_mistakes_are_reported_at_once_with_their_paths() -> None:
    given = fused_recipe(
        {"use": "finger"},
        {"use": "fingers", "dmi": 5, "lr": -1, "trainable": "no"},
        {"use": "fused", "of": [{"use": "fingers", "dim": "x"}], "join": "sum"},
        "fingers",  # type: ignore[arg-type]
        {"dim": 3},
        joins="channels",
    )
    found = problems(given)
    for start in (
        f'{ENCODER}.of.0.use: given \'finger\'; no encoder is called "finger". Did you mean "fingers"?',
        f"{ENCODER}.of.1.lr: given -1; allowed: a finite number above 0",
        f"{ENCODER}.of.1.trainable: given 'no'; allowed: true, false",
        f'{ENCODER}.of.1.dmi: given 5, an unknown key. Did you mean "dim"? Allowed: dim',
        f"{ENCODER}.of.2.of.0.dim: given 'x'; allowed: a whole number",
        f"{ENCODER}.of.2.join: given 'sum'; allowed: 'channels' or 'sequence'",
        f"{ENCODER}.of.3: given 'fingers'; allowed: a table with `use`, the name of a part",
        f"{ENCODER}.of.4: given a table with dim; allowed: a table with `use`, the name of a part",
        f"{ENCODER}.joins: given 'channels', an unknown key. Did you mean \"join\"?",
    ):
        assert [one for one in found if one.startswith(start)], (start, found)
    assert len(found) == 9
    assert problems(fused_recipe(of=[])) == [f"{ENCODER}.of: given []; allowed: at least 1 entry"]


def test_nothing_in_a_frozen_part_is_trained() -> None:
    given = fused_recipe({"use": "fingers", "trainable": True})
    frozen = f"{ENCODER}.of.0.trainable: given true; allowed: false, because {ENCODER}, which contains it, is frozen"
    assert problems(given, "inputs.number.trainable=false") == [frozen]
    given["stages"] = [{"name": "prefix", "inputs": {"number": {"trainable": False}}}, {}]
    assert problems(given) == [f"stages[0].{frozen}"]


def test_a_stage_may_train_other_parts() -> None:
    given = fused_recipe({"use": "fingers", "trainable": False}, {"use": "fingers", "dim": 5})
    path = f"{ENCODER}.of.0"
    given["stages"] = [{"inputs": {"number": {"lr": 3e-4}}}, {"parts": {path: {"trainable": True, "lr": 1e-5}}}]
    recipe = Recipe.load(given)
    first, second = recipe.in_stages()
    assert (path in learning_rates(first), learning_rates(first)[f"{ENCODER}.of.1"]) == (False, 3e-4)
    assert (learning_rates(second)[path], learning_rates(second)[f"{ENCODER}.of.1"]) == (1e-5, 1e-2)
    assert Recipe.load(recipe.model_dump(mode="json", exclude_none=True)).in_stages() == [first, second]
    for unknown in (f"{ENCODER}.of.2", ENCODER, "inputs.number.prefix.inner", "lm"):
        given["stages"] = [{"parts": {unknown: {"trainable": True}}}]
        (problem,) = problems(given)
        assert problem.startswith(f"stages[0].parts.{unknown}: given a table for a part that the recipe does not have")


def test_files_of_nested_parts_are_found_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.safetensors").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    given = fused_recipe({"use": "filed", "weights": "w.safetensors"}, {"use": "filed", "weights": "~/w.safetensors"})
    recipe = Recipe.load(given, folder=tmp_path)
    assert [one["weights"] for one in recipe.inputs["number"].encoder.fields["of"]] == [
        str(tmp_path / "w.safetensors")
    ] * 2
    assert recipe.to_toml(tmp_path).count('"w.safetensors"') == 2
    assert recipe.problems() == []
    missing = Recipe.load(fused_recipe({"use": "filed", "weights": "none"}, {"use": "filed", "weights": "w"}))
    assert missing.problems() == [
        f"{ENCODER}.of.0: weights: none is not a file",
        f"{ENCODER}.of.1: weights: w is not a file",
    ]


def test_former_keys_and_keys_of_old_checkpoints() -> None:
    given = fused_recipe({"use": "filed", "file": "w"})
    given["inputs"]["number"]["prefix"] = {"use": "scaled", "prefix": {"use": "plain"}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recipe = Recipe.load(given)
    assert [str(one.message) for one in caught if one.category is RenamedKeyWarning] == [
        "the key `file` is now called `weights`",
        "the key `prefix` is now called `inner`",
    ]
    assert recipe.inputs["number"].prefix.fields["inner"] == {"use": "plain"}
    assert recipe.part(f"{ENCODER}.of.0")[1].sharp is False
    old = Recipe.load(given, model_only=True)
    assert old.part(f"{ENCODER}.of.0")[1].sharp is True


def test_learning_rates_and_the_plan() -> None:
    given = fused_recipe({"use": "fingers", "lr": 2e-4}, {"use": "fingers", "trainable": False})
    given["inputs"]["number"] |= {"lr": 3e-4, "prefix": {**DEEP, "lr": 7e-3}}
    given["adapters"]["mlp"] = {"use": "several", "inner": {"a": {"use": "add", "lr": 1e-3}, "b": {"use": "add"}}}
    recipe = Recipe.load(given)
    rates = {
        ENCODER: 3e-4,
        f"{ENCODER}.of.0": 2e-4,
        "inputs.number.prefix": 7e-3,
        "inputs.number.prefix.inner": 5e-3,
        "inputs.number.prefix.inner.inner": 5e-3,
        "adapters.mlp": 1e-2,
        "adapters.mlp.inner.a": 1e-3,
        "adapters.mlp.inner.b": 1e-2,
    }
    assert learning_rates(recipe) == rates
    rows = {row.path: row for row in plan(recipe).parts}
    member = sum(p.numel() for p in ToyEncoder(ToyEncoder.Config()).parameters())
    assert (rows[ENCODER].parameters, rows[ENCODER].lr) == (0, None)
    assert (rows[f"{ENCODER}.of.0"].trained, rows[f"{ENCODER}.of.0"].lr) == (member, 2e-4)
    assert (rows[f"{ENCODER}.of.1"].frozen, rows[f"{ENCODER}.of.1"].lr) == (member, None)
    assert {path: row.lr for path, row in rows.items() if row.trained} == {
        k: v for k, v in rates.items() if rows[k].trained
    }
    assert rows["inputs.number.prefix"].parameters == 16
    assert rows["adapters.mlp.inner.a"].kind == "adapter"
    model = magma.assemble(recipe)
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())


def test_a_run_trains_saves_and_resumes_parts_inside_parts(tmp_path: Path) -> None:
    given = fused_recipe({"use": "fingers", "lr": 2e-4}, {"use": "fingers", "trainable": False})
    given["inputs"]["number"]["prefix"] = DEEP
    given["adapters"]["mlp"] = {
        "use": "several",
        "inner": {"a": {"use": "add", "trainable": False}, "b": {"use": "add"}},
    }
    whole = Recipe.load(given, ("train.steps=5",))
    before = magma.assemble(whole).state_dict()
    train(whole, tmp_path / "whole")
    folder = find_checkpoint(tmp_path / "whole")
    model = magma.load(folder)
    after = model.state_dict()

    def moved(prefix: str) -> set[bool]:
        return {not torch.equal(t, after[name]) for name, t in before.items() if name.startswith(prefix) and t.ndim}

    assert moved(f"{ENCODER}.of.0.") == {True}
    assert moved(f"{ENCODER}.of.1.") == {False}
    assert moved("inputs.number.prefix.") == {True}
    assert moved("lm.mlp.adapter.inner.a.") == {False}
    assert moved("lm.mlp.adapter.inner.b.") == {True}
    manifest = read_manifest(folder)
    assert manifest.parts[f"{ENCODER}.of.1"].trained == 0 < manifest.parts[f"{ENCODER}.of.0"].trained
    assert not [name for name in manifest.trained if name.startswith(f"{ENCODER}.of.1.")]  # its seed draws it again
    assert [name for name in manifest.trained if ".inner.a." in name]  # an adapter has no other source
    assert not [one for one in verify(folder) if one.unchecked]
    # Adam's first step moves every weight by the learning rate
    train(Recipe.load(given, ("train.steps=1", "train.schedule.use=constant")), tmp_path / "one")
    step = magma.load(tmp_path / "one").state_dict()
    for name, rate in ((f"{ENCODER}.of.0.norm.bias", 2e-4), ("inputs.number.prefix.inner.factors", 5e-3)):
        largest = float((step[name] - before[name]).abs().max())
        assert largest == pytest.approx(rate, rel=1e-3)
    # three steps, and the other two in another process's place
    train(
        Recipe.load(given, ("train.steps=5", "train.checkpoint_every=3", "train.keep_checkpoints=5")),
        tmp_path / "parts",
    )
    shutil.rmtree(tmp_path / "parts/checkpoints/step-00000005")
    train(Recipe.load(given, ("train.steps=5", "train.checkpoint_every=3")), tmp_path / "parts", resume=True)
    resumed = load_file(find_checkpoint(tmp_path / "parts") / "trained.safetensors")
    assert all(torch.equal(t, resumed[name]) for name, t in load_file(folder / "trained.safetensors").items())


@pytest.mark.filterwarnings("ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning")  # DeepSpeed's
def test_partitioned_weights_give_the_same_model(tmp_path: Path) -> None:
    """ZeRO 3 gathers the weights of each module where it is called, also with a tuple of tensors."""
    given = fused_recipe({"use": "fingers", "lr": 2e-4}, {"use": "fingers", "trainable": False})
    given["inputs"]["number"]["prefix"] = DEEP
    found = []
    for stage, recomputed in ((0, "none"), (0, "encoder"), (3, "none")):
        given["deepspeed"] = {"zero_optimization": {"stage": stage}}
        folder = tmp_path / f"{stage} {recomputed}"
        train(Recipe.load(given, ("train.steps=2", f"train.activation_checkpointing={recomputed}")), folder)
        assert not [one for one in verify(folder) if one.unchecked]
        found.append(load_file(find_checkpoint(folder) / "trained.safetensors"))
    assert found[0].keys() == found[1].keys() == found[2].keys()
    assert all(torch.equal(t, found[1][name]) for name, t in found[0].items())
    assert all(t.allclose(found[2][name], atol=1e-6) for name, t in found[0].items())


def test_a_part_starts_from_a_checkpoint_by_its_path(tmp_path: Path) -> None:
    given = fused_recipe({"use": "fingers", "trainable": False}, {"use": "fingers", "dim": 5})
    train(Recipe.load(given, ("train.steps=2",)), tmp_path / "first")
    second = fused_recipe({"use": "fingers"}, {"use": "fingers", "dim": 5, "trainable": False})
    second["init"] = {"checkpoint": str(tmp_path / "first")}
    planned = {row.path: row.start for row in plan(Recipe.load(second)).parts}
    assert (planned[f"{ENCODER}.of.0"], planned[f"{ENCODER}.of.1"]) == ("own weights", "checkpoint")
    train(Recipe.load(second, ("train.steps=2",)), tmp_path / "second")
    one, two = magma.load(tmp_path / "first").state_dict(), magma.load(tmp_path / "second").state_dict()
    assert all(torch.equal(t, two[name]) for name, t in one.items() if name.startswith(f"{ENCODER}.of.1."))
    assert not torch.equal(one[f"{ENCODER}.of.0.linear.weight"], two[f"{ENCODER}.of.0.linear.weight"])
    assert not [found for found in verify(tmp_path / "second") if found.unchecked]


def test_verify_reports_what_it_cannot_check(tmp_path: Path) -> None:
    torch.manual_seed(5)
    file = tmp_path / "w.safetensors"
    save_file(ToyEncoder(ToyEncoder.Config()).state_dict(), file)
    given = fused_recipe(
        {"use": "filed", "weights": str(file), "trainable": False}, {"use": "fingers", "trainable": False}
    )
    train(Recipe.load(given, ("train.steps=1",)), tmp_path / "run")
    assert not [one for one in verify(tmp_path / "run") if one.unchecked]
    file.unlink()
    unchecked = {one.what: one.unchecked for one in verify(tmp_path / "run") if one.unchecked}
    assert unchecked == {
        f"{ENCODER}.of.0": f"weights: {file} is not a file",
        f"{ENCODER}.of.1": f"it is not loaded without the other parts of {ENCODER}",
    }
    with pytest.raises(PartError, match=rf"^{ENCODER}: of\.0: weights: {file} cannot be read"):
        magma.load(tmp_path / "run")


def test_a_model_of_instances_has_a_recipe() -> None:
    encoder = Fused.build(of=[{"use": "fingers", "trainable": False}, {"use": "fingers", "lr": 1e-4}])
    prefix = Scaled.build(12, 4, 16, inner={"use": "scaled"})
    prefix.nested_parts()["inner"].freeze()
    model = Magma(ToyLM(ToyLM.Config()), {"number": Input(encoder, prefix)})
    recipe = recipe_from_model(model)
    assert recipe.inputs["number"].encoder.fields["of"] == [
        {"use": "fingers", "trainable": False, "dim": 6},
        {"use": "fingers", "lr": 1e-4, "dim": 6},
    ]
    inner = recipe.inputs["number"].prefix.fields["inner"]
    assert (inner["trainable"], inner["inner"]) == (False, {"use": "plain"})
    assert recipe.trained_parts() == {path: not parts[0].frozen for path, parts in model.parts().items()}


def test_the_part_that_cannot_be_built_is_named() -> None:
    class Refusing(ToyEncoder):
        """Accepts no width."""

        name = "refusing"

        def __init__(self, config: ToyEncoder.Config) -> None:
            raise PartError("dim: given 6; allowed: none")

    entries = registry.installed()._entries
    entries["encoder", "refusing"] = [
        registry.Entry("encoder", "refusing", Refusing, entries["encoder", "fused"][0].plugin)
    ]
    try:
        given = fused_recipe({"use": "fingers"}, {"use": "fused", "of": [{"use": "refusing"}]})
        with pytest.raises(PartError, match=rf"^{ENCODER}: of\.1: of\.0: dim: given 6; allowed: none$"):
            magma.assemble(given)
    finally:
        del entries["encoder", "refusing"]


class Direct(Scaled):
    """Builds the part by itself."""

    def __init__(self, config: Scaled.Config, *sizes: int) -> None:
        super().__init__(config, *sizes)
        self.inner = config.inner.part(config.inner.config, *sizes)  # type: ignore[arg-type]


class OtherName(Scaled):
    """Has no attribute with the name of the field."""

    def __init__(self, config: Scaled.Config, *sizes: int) -> None:
        super().__init__(config, *sizes)
        self.wrapped = self.inner
        del self.inner

    def num_embeddings(self, features: int) -> int:
        return self.wrapped.num_embeddings(features)

    def forward(self, features: Features) -> Features:
        values, lengths = self.wrapped(features)
        return Features(values * self.factors, lengths)


class Wakes(Scaled):
    """Puts the part into training mode although it is frozen."""

    def train(self, mode: bool = True) -> Wakes:
        super().train(mode)
        for module in self.inner.modules():
            module.training = self.training
        return self


class Thaws(Scaled):
    """Trains everything inside, frozen or not."""

    def train(self, mode: bool = True) -> Thaws:
        super().train(mode)
        self.requires_grad_(not self.frozen)
        return self


class Writes(Scaled):
    """Changes the weights of the part in a forward pass."""

    def forward(self, features: Features) -> Features:
        found = super().forward(features)
        if self.training:
            with torch.no_grad():
                next(self.inner.parameters()).mul_(0.5)
        return found


FAULTS: dict[type[Scaled], str] = {
    Direct: "nested_parts_found",
    OtherName: "nested_parts_found",
    Wakes: "nested_parts_freeze",
    Thaws: "nested_parts_freeze",
    Writes: "nested_parts_freeze",
}


@pytest.mark.parametrize("part", [Scaled, *FAULTS], ids=lambda part: part.__name__)
def test_the_conformance_kit_finds_faults_of_nested_parts(part: type[Scaled]) -> None:
    found = {one.check: one.problem for one in testing.run_checks(part) if one.problem}
    assert len(found) <= 4, found
    assert FAULTS[part] in found if part in FAULTS else found == {}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (lambda self, part: setattr(self, "members", nn.ModuleList([part])), "members.0"),
        (lambda self, part: setattr(self, "hidden", [part]), "none"),
    ],
)
def test_a_part_that_is_kept_under_another_name_is_refused(keep: Any, kept: str) -> None:
    class Misnamed(ToyEncoder):
        """Does not use the name of the field."""

        class Config(ToyEncoder.Config):
            of: tuple[PartOf[Encoder], ...]

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            keep(self, config.of[0].build())

    part = Misnamed(Misnamed.Config(of=[{"use": "fingers"}]))  # type: ignore[arg-type]
    with pytest.raises(PartError, match=rf"keeps the parts of its config as {kept}; allowed: of\.0, the submodules"):
        check_nested_parts(part)


def test_a_part_by_hand_inside_another_one_is_not_listed() -> None:
    """Packages that wrap a part without declaring it work as before."""

    class ByHand(ToyEncoder):
        def __init__(self, config: ToyEncoder.Config) -> None:
            super().__init__(config)
            self.inner = ToyEncoder(config)

    model = Magma(
        ToyLM(ToyLM.Config()), {"number": Input(ByHand(ToyEncoder.Config()), ToyPrefix(PartConfig(), 6, 4, 16))}
    )
    assert list(model.parts()) == ["lm", ENCODER, "inputs.number.prefix"]
    assert len(model.part_parameters(ENCODER)) == len(list(model.input_modules()["number"].encoder.parameters()))


def test_configs_in_python() -> None:
    config = Fused.Config(of=[{"use": "fingers", "dim": 5}, {"use": "fused", "of": [{"use": "fingers"}]}])  # type: ignore[list-item]
    assert config.of[0].part is ToyEncoder
    for copied in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), Fused.Config(**config.model_dump())):
        assert copied == config
    assert json.loads(config.model_dump_json())["of"][0] == {"use": "fingers", "dim": 5}
    encoder = pickle.loads(pickle.dumps(Fused.build(**config.model_dump())))
    assert list(encoder.all_parts()) == ["of.0", "of.1.of.0", "of.1", ""]


def test_data_sources_may_contain_data_sources() -> None:
    given = copy.deepcopy(RECIPE)
    given["data"]["train"] = [{"use": "twice", "source": {"use": "twice", "source": {"use": "counting"}}, "weight": 2}]
    recipe = Recipe.load(given, ("train.steps=1",))
    paths = [path for path, *_ in recipe.parts() if path.startswith("data.train")]
    assert paths == ["data.train.0", "data.train.0.source", "data.train.0.source.source"]
    part, config = recipe.part("data.train.0")
    names = [example.name for example, _ in part(config, 0).iterate()]
    plain, its_config = recipe.part("data.train.0.source.source")
    assert names == [example.name for example, _ in plain(its_config, 0).iterate() for _ in range(4)]
    (problem,) = problems(given, "data.train.0.source.weight=2")
    assert problem.startswith("data.train.0.source.weight: given 2, an unknown key. Allowed: source")


def test_schema_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magma.recipe.json_schema.installed", registry.installed)
    schema = json_schema()
    (member,) = schema["$defs"]["encoder.fused"]["properties"]["of"]["items"].values()
    assert schema["$defs"][member.removeprefix("#/$defs/")] == {"$ref": "#/$defs/nested.encoder"}
    nested = schema["$defs"]["nested.encoder.fingers"]["properties"]
    assert nested.keys() == {"use", "dim", "trainable", "lr"}
    assert nested["trainable"]["type"] == "boolean"
    assert schema["$defs"]["encoder.fingers"]["properties"].keys() == {"use", "dim"}
    assert {"$ref": "#/$defs/nested.prefix.plain"} in schema["$defs"]["nested.prefix"]["anyOf"]
    assert "x-magma-kind" not in json.dumps(schema)
    keys = {key.name: (key.type, key.default) for key in [*keys_of(Fused.Config), *keys_of(Scaled.Config)]}
    assert keys["of"] == ("array of encoder tables", "required")
    assert keys["inner"] == ("prefix table", '{ use = "plain" }')
