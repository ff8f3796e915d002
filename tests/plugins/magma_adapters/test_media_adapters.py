"""What holds for adapters that use media, gated_cross_attention and visual_expert, and mostly for prefix_tuning."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import parity_runs
import pytest
import torch
from media_models import LMS, MEDIA_ADAPTERS, TABLES, build_model
from test_parity import launch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import magma
from magma import Example, Magma, Media, Recipe, Text
from magma.activation_checkpointing import checkpoint_activations
from magma.plan import plan
from magma.training.progress import Callbacks, Progress
from magma.training.train import train

ADAPTERS = list(TABLES)
PROMPTS: list[list[Any]] = [["one", 2, "and", 0, "are"], ["nothing but text"], [3, "is"]]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning"
)  # DeepSpeed 0.19.8 (ZeRO 3)


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=MEDIA_ADAPTERS)
def media_adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("family", LMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_the_bare_language_model(media_adapter: str, family: str, dtype: torch.dtype) -> None:
    bare, model = (build_model(family, one, randomized=False).to(dtype) for one in (None, media_adapter))
    assert model.lm.all_adapters()
    for prompt in PROMPTS:
        assert torch.equal(model.logits(prompt), bare.logits(prompt))


@pytest.mark.parametrize("family", LMS)
def test_disabled_it_is_the_bare_language_model(adapter: str, family: str) -> None:
    bare, model = build_model(family, None), build_model(family, adapter)
    assert not torch.allclose(model.logits(PROMPTS[0]), bare.logits(PROMPTS[0]), atol=1e-3)
    with model.adapters_disabled("media"):
        assert torch.equal(model.logits(PROMPTS[0]), bare.logits(PROMPTS[0]))


@pytest.mark.parametrize("family", LMS)
def test_cached_is_uncached_in_batches_too(adapter: str, family: str) -> None:
    model = build_model(family, adapter)
    found = model.generate_tokens(PROMPTS, max_tokens=5)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        expected: list[int] = []
        for _ in tokens:
            logits = model.logits([*prompt, torch.tensor(expected)] if expected else prompt)
            expected.append(int(logits[-1].argmax()))
        assert tokens == expected
    assert found[0] != found[2]


def examples() -> list[Example]:
    return [
        Example([*(Text(s) if isinstance(s, str) else Media("number", s) for s in prompt), Text(" so", target=True)])
        for prompt in PROMPTS
    ]


@pytest.mark.parametrize("family", LMS)
def test_packed_rows_are_separate_rows(adapter: str, family: str) -> None:
    model = build_model(family, adapter)
    collator = model.collator()
    encoded = [collator.encode_example(one) for one in examples()]
    packed = collator.pack(encoded, 64)
    assert len(packed.tokens) == 1
    alone = sum(model(collator.pad([one])).item() for one in encoded)
    assert model(packed).item() == pytest.approx(alone, rel=1e-5)
    assert model(collator.pad(encoded)).item() == pytest.approx(alone, rel=1e-5)


def gradients(model: Magma, some: list[Example]) -> dict[str, Tensor]:
    model.zero_grad()
    model.train().loss(model.collator().batch(some)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", LMS)
def test_every_weight_has_a_gradient_with_and_without_media(media_adapter: str, family: str) -> None:
    model = build_model(family, media_adapter)
    with_media = gradients(model, examples())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert with_media.keys() == trained
    first_block = [name for name in trained if "adapter_media" in name and ".0." in name]
    assert first_block
    assert all(with_media[name].any() for name in first_block)  # after the last block, media are not read
    without = gradients(model, examples()[1:2])
    assert without.keys() == trained
    assert all(bool(t.isfinite().all()) for t in without.values())
    unused = [name for name in trained if ".expert." in name or (".attn." in name and "adapter_media" in name)]
    assert unused
    assert all(not without[name].any() for name in unused)


def flops(model: Magma, prompt: list[Any]) -> int:
    """Of the language model only, for all columns."""
    batch = model._prompts(model.collator().examples([prompt]))
    with torch.no_grad():
        embeddings, layout = model.lm_inputs(batch)
        with FlopCounterMode(display=False) as counter:
            model.lm(embeddings, replace(layout, first_scored=0))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", LMS)
def test_without_media_nothing_is_computed_for_them(media_adapter: str, family: str) -> None:
    bare, model = build_model(family, None), build_model(family, media_adapter)
    text = PROMPTS[1]
    positions = len(model.lm.beginning) + len(model.lm.encode(text[0]))
    feedforward, one_embedding = 2 * 2 * (32 * 4 * 32) * positions, 2 * 32 * (2 * 2 * 8)
    expected = 2 * (feedforward + one_embedding) if media_adapter == "gated_cross_attention" else 0  # in two blocks
    assert flops(model, text) == flops(bare, text) + expected
    assert flops(model, PROMPTS[0]) > flops(bare, PROMPTS[0])


def test_recomputed_blocks_give_the_same_gradients(adapter: str) -> None:
    plain, recomputed = build_model("llama", adapter), build_model("llama", adapter)
    checkpoint_activations(recomputed, "lm")
    one, two = gradients(plain, examples()), gradients(recomputed, examples())
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], rtol=1e-5, atol=1e-7) for name in one)


@pytest.mark.filterwarnings("ignore")  # dynamo looks at what it should not
@pytest.mark.slow
def test_compiled_blocks_give_the_same(adapter: str) -> None:
    plain, compiled = build_model("llama", adapter), build_model("llama", adapter)
    for block in compiled.lm.blocks:
        block.compile(dynamic=True, backend="eager")  # what is traced is what any backend gets
    for some in (examples(), examples()[1:2]):
        one, two = gradients(plain, some), gradients(compiled, some)
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5) for name in one)
    found = [model.eval().logits(PROMPTS[0]) for model in (plain, compiled)]
    assert torch.allclose(*found, rtol=1e-4, atol=1e-5)


# From recipes

TABLE = {
    "gated_cross_attention": {"use": "gated_cross_attention", "at": "block", "heads": 2, "head_dim": 8, "ff_mult": 1},
    "visual_expert": {"use": "visual_expert", "at": "linears"},
    "prefix_tuning": {"use": "prefix_tuning", "at": "attention", "length": 4},
}


def recipe(adapter: str, *overrides: str, stage: int = 0) -> Recipe:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    tokens = {"vocab_size": 768, "eos_token_id": 0, "max_position_embeddings": 64}
    return Recipe.load(
        {
            "name": "media",
            "lm": {
                "use": "causal",
                "architecture": {"model_type": "llama", **sizes, **tokens},
                "tokenizer": "bundled:tiny",
            },
            "inputs": {
                "image": {
                    "encoder": {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
                    "prefix": {"use": "linear"},
                }
            },
            "adapters": {"media": TABLE[adapter]},
            "data": {"train": [{"use": "digits"}]},
            "train": {"steps": 4, "batch_size": 4, "lr": 1e-2, "precision": "fp32"},
            "deepspeed": {"zero_optimization": {"stage": stage}},
        },
        overrides,
    )


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of each adapter, with a checkpoint in between."""
    folder = tmp_path_factory.mktemp("runs")
    for adapter in ADAPTERS:
        train(recipe(adapter), folder / adapter)
    return folder


@pytest.mark.parametrize("stage", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_zero_stage_gives_the_same_losses(adapter: str, runs: Path, tmp_path: Path, stage: int) -> None:
    train(recipe(adapter, stage=stage), tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(runs / adapter), rel=1e-5)


@pytest.mark.slow
def test_two_processes_of_which_one_has_no_media(tmp_path: Path) -> None:
    """They run the same modules and reduce the same gradients: the losses are those of one process, at each stage.

    Some tables act on every example, others only on those with an input.
    """
    only = {
        "mlp": {"use": "sequential", "downsample": 8, "only_with": ["seen", "heard"]},
        "prefix_only": {**TABLE["prefix_tuning"], "only_with": ["seen"]},
    }

    def table(stage: int) -> dict[str, Any]:
        table = parity_runs.recipe(stage, evaluate_every=None, evaluate_samples=None)
        del table["data"]["evaluation"], table["train"]["evaluate_every"], table["train"]["evaluate_samples"]
        return {**table, "adapters": {**TABLE, **only}}

    jobs = [{"out": f"stage-{stage}", "recipe": table(stage)} for stage in (1, 2, 3)]
    launch(tmp_path, 2, jobs)
    (tmp_path / "one").mkdir()
    launch(tmp_path / "one", 1, jobs[:1])
    expected = losses(tmp_path / "one" / "stage-1")
    assert len(expected) == parity_runs.STEPS
    for job in jobs:
        assert losses(tmp_path / job["out"]) == pytest.approx(expected, rel=1e-4)


def test_a_run_resumes_with_the_same_bits(adapter: str, runs: Path, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    assert not train(recipe(adapter), tmp_path, callbacks=Callbacks(step=interrupt)).finished
    assert train(recipe(adapter), tmp_path, resume=True).finished
    assert losses(tmp_path) == losses(runs / adapter)
    whole, parts = (magma.load(folder).trained_tensors() for folder in (runs / adapter, tmp_path))
    assert [name for name in whole if "adapter_media" in name]
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_a_loaded_model_is_the_saved_one(adapter: str, runs: Path, tmp_path: Path) -> None:
    model = magma.load(runs / adapter)
    start = magma.assemble(recipe(adapter)).trained_tensors()
    changed = {name for name, tensor in model.trained_tensors().items() if not torch.equal(tensor, start[name])}
    assert {name for name in start if "adapter_media" in name} <= changed
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompt = [Media("image", image), "is"]
    magma.save(model, tmp_path / "again", None)
    assert torch.equal(magma.load(tmp_path / "again").logits(prompt), model.logits(prompt))


def test_bf16_trains(adapter: str, tmp_path: Path) -> None:
    train(recipe(adapter, "train.precision=bf16"), tmp_path)
    found = losses(tmp_path)
    assert found[-1] < found[0]


def test_a_plan_counts_it(adapter: str) -> None:
    found, bare = plan(recipe(adapter)), plan(recipe(adapter, "adapters.media=false"))
    assert found.costs_problem is None
    assert found.flops_per_sample is not None
    assert bare.flops_per_sample is not None
    assert found.flops_per_sample > bare.flops_per_sample
