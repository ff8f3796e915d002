"""The paper's method with today's language models: planned without a hub, with the published sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from magma_lms.bundled.configurations import CONFIGURATIONS, planned_configuration

import magma
from magma import PartError, Recipe
from magma.plan import plan
from magma.recipe.loader import bundled


class Published(NamedTuple):
    """What is known of a published model, apart from its configuration file."""

    parameters: int
    """Of the whole checkpoint, as the hub counts the elements of its safetensors."""
    language_model: int
    width: int
    attention: int
    """Sites of adapters around attention, or what stands in its place."""
    mlp: int


FRONTIER = {
    "gemma3_4b": Published(4_300_079_472, 3_880_263_168, 2560, 34, 34),
    "granite4_h_micro": Published(3_191_396_096, 3_191_396_096, 2048, 40, 40),
    "llama31_8b": Published(8_030_261_248, 8_030_261_248, 4096, 32, 32),
    "qwen3_8b": Published(8_190_735_360, 8_190_735_360, 4096, 36, 36),
    "smollm2_135m": Published(134_515_008, 134_515_008, 576, 30, 30),
}
CLIP = 136_202_640
"""Parameters of CLIP's RN50x16, all trained."""
CLIP_WIDTH = 3072


def configuration(name: str) -> Any:
    """The bundled configuration of a recipe's language model."""
    from transformers import AutoConfig

    weights = Recipe.load(f"frontier/{name}").lm.fields["weights"]
    return AutoConfig.from_pretrained(CONFIGURATIONS / f"{weights}.json")


def counted(architecture: Any, whole: bool = False) -> int:
    """Parameters of transformers' own model on meta."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    with torch.device("meta"):
        if whole and architecture is not architecture.get_text_config():
            model = AutoModelForImageTextToText.from_config(architecture)
        else:
            model = AutoModelForCausalLM.from_config(architecture.get_text_config())
    return sum(p.numel() for p in model.parameters())


def test_every_recipe_is_here() -> None:
    assert {name for name in bundled() if name.startswith("frontier/")} == {f"frontier/{name}" for name in FRONTIER}


@pytest.mark.parametrize("name", FRONTIER)
def test_a_bundled_configuration_has_the_published_size(name: str) -> None:
    assert counted(configuration(name), whole=True) == FRONTIER[name].parameters


@pytest.mark.parametrize("name", FRONTIER)
def test_a_plan_needs_no_hub_and_counts_exactly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.model_info", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    found = plan(Recipe.load(f"frontier/{name}"))
    published = FRONTIER[name]
    parts = {part.path: part for part in found.parts}
    assert parts["lm"].frozen == parts["lm"].parameters == counted(configuration(name)) == published.language_model
    d, bottleneck = published.width, published.width // 8
    adapter = d * bottleneck + bottleneck + bottleneck * d + d
    assert parts["adapters.attention"].trained == published.attention * adapter
    assert parts["adapters.mlp"].trained == published.mlp * adapter
    assert parts["inputs.image.prefix"].trained == CLIP_WIDTH * d + d + 2 * d
    assert parts["inputs.image.encoder"].trained == CLIP
    assert found.totals["frozen"] == published.language_model
    assert found.totals["trained"] == sum(part.parameters for part in found.parts) - published.language_model
    assert found.flops_per_sample, found.costs_problem
    assert found.activation_bytes_per_sample
    assert found.length is not None
    assert found.length.samples == 7_600_000
    assert found.tokens_per_example["media"] == 144


@pytest.mark.parametrize("name", FRONTIER)
def test_only_the_language_model_differs_from_the_papers(name: str) -> None:
    found, paper = (Recipe.load(which).model_dump() for which in (f"frontier/{name}", "magma_long"))
    assert not found["published"]
    for key in ("inputs", "adapters", "data", "deepspeed", "seed"):
        assert found[key] == paper[key], key
    assert found["train"] == {**paper["train"], "max_length": 2048}


def test_a_configuration_on_this_machine_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "HuggingFaceTB/SmolLM2-135M"
    with torch.device("meta"):
        assert planned_configuration(name) == CONFIGURATIONS / f"{name}.json"
        assert planned_configuration("HuggingFaceTB/SmolLM2-1.7B") is None
        assert planned_configuration(name, revision="main") is None
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    folder.mkdir(parents=True)
    fields = json.loads((CONFIGURATIONS / f"{name}.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": 3}), encoding="utf-8")
    found = plan(Recipe.load("frontier/smollm2_135m"))
    assert {part.path: part.copies for part in found.parts}["adapters.mlp"] == 3
    shutil.rmtree(folder.parent)


def test_weights_are_not_loaded_with_a_bundled_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real configuration counts as soon as there is more than a plan."""
    monkeypatch.setattr("magma.hub.ask_hub", lambda *_: "no network")
    assert planned_configuration("HuggingFaceTB/SmolLM2-135M") is None
    with pytest.raises(PartError, match=r"lm.weights: given 'HuggingFaceTB/SmolLM2-135M'.*no network"):
        magma.assemble(Recipe.load("frontier/smollm2_135m"))
    assert any("no network" in problem for problem in Recipe.load("frontier/smollm2_135m").problems())
