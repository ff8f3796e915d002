"""The context of adapters: which media a position may attend to, however its row is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import RECIPE

import magma
from magma import BatchLayout, Context, Decoding, Example, Magma, Media, PartError, Text
from magma.activation_checkpointing import checkpoint_activations
from magma.evaluation.prefix_sharing import PrefixCachedGenerator
from magma.plan import plan

pytestmark = pytest.mark.usefixtures("toys_at_sites")

BYTES = {"vocab_size": 257, "bos_token_id": 0, "eos_token_id": 256}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, **BYTES}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 64}
GPTJ = {"use": "gptj", "layers": 2, "dim": 16, "heads": 2, "rotary_dim": 4, "context": 64, "vocab": 257, "eos": 256}
LMS: dict[str, dict[str, Any]] = {
    "toy": {"use": "toy"},
    "gptj": GPTJ,
    "llama": {"use": "causal", "architecture": {"model_type": "llama", **SIZES, **HEADS}},
    "mamba": {"use": "causal", "architecture": {"model_type": "mamba", "state_size": 4, **SIZES}},
}
LOOK = {"use": "look"}
PROMPTS: list[list[Any]] = [[1, "a"], ["some longer text"], [3, "b", 0, "cd"], ["x", 2], ["b", 0, "c", 1, "d", 3, "e"]]
EXAMPLES = [
    Example([Media("number", 2), Text("is"), Text(" two", target=True)]),
    Example([Text("or "), Media("number", 0), Text(" both", target=True), Media("number", 1), Text("!", target=True)]),
    Example([Text("a"), Text("b", target=True)]),
]


@pytest.fixture(autouse=True)
def _bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of transformers with random weights read bytes, as the toy does."""
    from magma_lms.transformers_lm import TransformersLM

    for lm in (TransformersLM, magma.FrozenLM):
        monkeypatch.setattr(lm, "ends", ())
    monkeypatch.setattr(TransformersLM, "control_tokens", {})
    monkeypatch.setattr(TransformersLM, "beginning", ())
    monkeypatch.setattr(TransformersLM, "encode", lambda _, text: list(text.encode()))
    monkeypatch.setattr(TransformersLM, "encode_with_offsets", lambda _, text: (list(text.encode()), None))
    monkeypatch.setattr(
        TransformersLM, "decode", lambda _, ids: bytes(i for i in ids if i < 128).decode(errors="replace")
    )


def recomputed(model: Magma, prompt: list[Any], count: int) -> list[int]:
    """Greedy tokens without a cache: all positions again for each token."""
    found: list[int] = []
    for _ in range(count):
        segments = [*prompt, torch.tensor(found)] if found else prompt
        found.append(int(model.logits(segments)[-1].argmax()))
    return found


def build(lm: str, **tables: Any) -> Magma:
    tables = tables or {"mlp" if lm != "mamba" else "attention": LOOK}
    model = magma.assemble({**RECIPE, "lm": LMS[lm], "adapters": tables}).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapter" in name or ".number." in name:
                parameter.normal_(std=0.7, generator=draw)
    return model


# By hand


def three_images() -> Context:
    """Text, an image of two embeddings, text, one of one, one of two right after it, text."""
    inputs = torch.tensor([[-1, 0, 0, -1, 1, 0, 0, -1]])
    last = torch.tensor([[-1, 0, 0, 0, 1, 2, 2, 2]])
    media = torch.arange(5.0)[None, :, None].repeat(1, 1, 3)
    index = torch.tensor([[0, 0, 1, 2, 2]])
    return Context(("image", "scan"), inputs, torch.zeros_like(inputs), last, media, index, index % 2)


def test_the_masks_of_an_interleaved_prompt() -> None:
    context = three_images()
    before = [[0, 0, 0, 0, 0], *[[1, 1, 0, 0, 0]] * 3, [1, 1, 1, 0, 0], *[[1, 1, 1, 1, 1]] * 3]
    last = [[0, 0, 0, 0, 0], *[[1, 1, 0, 0, 0]] * 3, [0, 0, 1, 0, 0], *[[0, 0, 0, 1, 1]] * 3]
    assert context.media_mask()[0].int().tolist() == before
    assert context.media_mask(last_only=True)[0].int().tolist() == last
    assert context.seen("image")[0].tolist() == [False] + [True] * 7
    assert context.seen("scan")[0].tolist() == [False] * 4 + [True] * 4
    assert not context.seen("sound").any()


def test_the_masks_of_packed_sequences_and_of_rows_one_after_another() -> None:
    one = three_images()
    whole = one.map(lambda x: torch.cat([x, x])).as_one_row()
    assert whole.inputs.shape == (1, 16)
    for last_only in (False, True):
        mask, expected = whole.media_mask(last_only)[0], one.media_mask(last_only)[0]
        assert torch.equal(mask[:8, :5], expected)
        assert torch.equal(mask[8:, 5:], expected)
        assert not mask[:8, 5:].any()
        assert not mask[8:, :5].any()
    again = whole.of_sequences(torch.arange(16).view(2, 8))
    assert torch.equal(again.media_mask().any(-1), one.media_mask().any(-1).repeat(2, 1))


def test_later_positions_know_the_media_before_them() -> None:
    context = three_images()
    start, end = (context.map_positions(lambda x, part=part: x[:, part]) for part in (slice(0, 4), slice(4, 8)))
    first = start.map_media(lambda x: x[:, :2])
    second = end.map_media(lambda x: x[:, 2:])  # its numbers count from its own start
    second = replace(second, last_medium=second.last_medium - 1, media_index=second.media_index - 1)
    joined = first.followed_by(second)
    assert torch.equal(joined.media_mask(), end.media_mask())
    assert torch.equal(joined.media, context.media)
    text = context.followed_by_text()
    assert text.media_mask().tolist() == [[[True] * 5]]
    assert text.media_mask(last_only=True).int().tolist() == [[[0, 0, 0, 1, 1]]]
    assert not Context.of_text(torch.zeros(2, 3, 4), 4).followed_by_text().media_mask().any()


# In a model


def test_a_batch_has_the_embeddings_of_its_media() -> None:
    model = build("toy")
    collator = model.collator()
    batch = collator.batch(EXAMPLES)
    embeddings, layout = model.lm_inputs(batch)
    context = layout.context
    assert context is not None
    assert context.names == ("number",)
    for row in range(3):
        filled = embeddings[row][context.inputs[row] == 0]
        assert torch.equal(context.media[row, : len(filled)], filled)
        assert (context.media_index[row] >= 0).sum() == len(filled)
    assert context.media_index[1].tolist() == [0, 1, 1]
    assert torch.equal(embeddings, model.embed(batch))
    packed = collator.pack([collator.encode_example(one) for one in EXAMPLES], 32)
    found = packed.layout.context
    assert found is not None
    assert packed.layout.sequence_ids is not None
    for number in packed.layout.sequence_ids.unique().tolist():
        here = packed.layout.sequence_ids == number
        assert len(found.first_medium[here].unique()) == 1 or number < 0


def test_without_an_adapter_that_uses_it_there_is_none() -> None:
    model = build("toy", mlp={"use": "add"})
    batch = model.collator().batch(EXAMPLES)
    assert batch.layout.context is None
    assert model.lm_inputs(batch)[1] is batch.layout


@pytest.mark.parametrize("lm", LMS)
def test_every_way_to_compute_gives_the_same(lm: str) -> None:
    model = build(lm)
    expected = [recomputed(model, prompt, 6) for prompt in PROMPTS]
    assert len(set(map(tuple, expected))) > 2
    assert model.generate_tokens(PROMPTS, max_tokens=6) == expected
    with model.adapters_disabled():
        assert model.generate_tokens(PROMPTS, max_tokens=6) != expected
    shots = [Media("number", 1), Text("one. ")]
    prompts = [[*shots, Media("number", i // 2), Text("is" * (1 + i % 2))] for i in range(6)]
    found = dict(pair for batch in PrefixCachedGenerator(model, Decoding(6)).tokens(prompts) for pair in batch)
    assert [found[i] for i in range(6)] == [recomputed(model, prompt, 6) for prompt in prompts]
    collator = model.collator()
    encoded = [collator.encode_example(one) for one in EXAMPLES]
    with torch.no_grad():
        losses = [float(model(collator.pad([one]))) for one in encoded]
        assert float(model(collator.pad(encoded))) == pytest.approx(sum(losses), rel=1e-5)
        if lm != "toy":  # it reads packed examples as one
            assert float(model(collator.pack(encoded, 40))) == pytest.approx(sum(losses), rel=1e-5)


@pytest.mark.parametrize("lm", ["gptj", "llama"])
@pytest.mark.parametrize("at", ["block", "linears"])
def test_at_other_sites(lm: str, at: str) -> None:
    model = build(lm, see={**LOOK, "at": at, "last_only": True})
    expected = [recomputed(model, prompt, 4) for prompt in PROMPTS]
    assert model.generate_tokens(PROMPTS, max_tokens=4) == expected
    collator = model.collator()
    encoded = [collator.encode_example(one) for one in EXAMPLES]
    with torch.no_grad():
        losses = [float(model(collator.pad([one]))) for one in encoded]
        assert float(model(collator.pack(encoded, 40))) == pytest.approx(sum(losses), rel=1e-5)


def gradients(model: Magma, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lm", ["gptj", "llama"])
def test_with_activation_checkpointing_and_another_batch_in_between(lm: str) -> None:
    model = build(lm, see={**LOOK, "at": "block"}).eval()
    first, second = (model.collator().batch(EXAMPLES[i : i + 2]) for i in (0, 1))
    expected = gradients(model, model.loss(first))
    reached = {name for name, gradient in expected.items() if gradient.abs().sum() > 0}
    assert any(name.startswith("inputs.number.prefix") for name in reached)
    assert sum("adapter_see" in name for name in reached) == 2 * 4
    checkpoint_activations(model, "lm")
    loss = model.loss(first)
    between = second if lm == "gptj" else first  # `causal` computes other columns for another batch
    with model.adapters_disabled():
        model.loss(between)
    model.loss(between)
    for name, gradient in gradients(model, loss).items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


def test_media_reach_the_output_only_through_the_context() -> None:
    """With embeddings of other media in the context, only positions after them change."""
    model = build("gptj", see={**LOOK, "at": "block"})
    batch = model._prompts(model.collator().examples([["ab", 3, "cd", 1, "ef"]]))
    embeddings, layout = model.lm_inputs(batch)
    assert layout.context is not None
    scored = torch.arange(embeddings.shape[1])

    def run(context: Context) -> Tensor:
        out: Tensor = model.lm(
            embeddings, BatchLayout(layout.positions, layout.lengths, scored, token_ids=batch.tokens, context=context)
        )
        return out

    with torch.no_grad():
        before = run(layout.context)
        second = (layout.context.media_index == 1)[..., None]
        after = run(layout.context.map_media(lambda x: torch.where(second, -x, x) if x.is_floating_point() else x))
    starts = int((layout.context.last_medium[0] < 1).sum())
    assert torch.equal(after[:starts], before[:starts])
    assert not torch.allclose(after[starts:], before[starts:])


def test_a_plan_needs_no_data() -> None:
    found = plan(magma.Recipe.load({**RECIPE, "lm": GPTJ, "adapters": {"see": {**LOOK, "at": "block"}}}))
    assert found.costs_problem is None
    assert found.flops_per_sample


def test_a_site_that_computes_a_choice_of_positions_is_refused() -> None:
    model = build("toy")
    adapter = model.lm.all_adapters()[0]
    with (
        model.lm.adapter_state.use(three_images(), ()),
        pytest.raises(PartError, match=r"given positions \[3, 4\] of a batch \[1, 8\]"),
    ):
        adapter(torch.zeros(3, 4, 16), lambda x: x)


def test_it_is_trained_in_packed_rows_saved_and_loaded(tmp_path: Path) -> None:
    train = {**RECIPE["train"], "steps": 2, "packing": 40}
    tables = {"see": {**LOOK, "at": "block", "blocks": "last 1"}}
    recipe = magma.Recipe.load({**RECIPE, "lm": GPTJ, "adapters": tables, "train": train, "tasks": []})
    before = magma.assemble(recipe)
    magma.run(recipe, tmp_path)
    after = magma.load(tmp_path).eval()
    names = [name for name in before.trained_tensors() if "adapter_see" in name]
    assert len(names) == 4
    assert all(not torch.equal(after.state_dict()[name], before.state_dict()[name]) for name in names)
    assert after.generate_tokens([1, "a"], max_tokens=4) == recomputed(after, [1, "a"], 4)


@pytest.mark.filterwarnings("ignore")  # dynamo looks at what it should not
@pytest.mark.slow
def test_compiled_blocks_give_the_same() -> None:
    """Each block is traced once, and gets the context of every batch."""
    model = build("gptj", see={**LOOK, "at": "block"}, mlp={"use": "sequential"})
    batches = [model.collator().batch(EXAMPLES[i : i + 2]) for i in (0, 1)]
    expected = [gradients(model, model.loss(batch)) for batch in batches]
    for block in model.lm.blocks:
        block.compile(dynamic=True, backend="aot_eager")
    for batch, wanted in zip(batches, expected, strict=True):
        for name, gradient in gradients(model, model.loss(batch)).items():
            assert torch.allclose(gradient, wanted[name], rtol=1e-4, atol=1e-5), name
    with model.adapters_disabled():
        compiled = model.loss(batches[0])
    model.lm.remove_adapters()
    assert torch.allclose(compiled, model.loss(batches[0]), rtol=1e-5)
