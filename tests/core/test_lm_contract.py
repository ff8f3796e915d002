"""A language model without a limit, with three widths, embeddings by id, and sublayers in some blocks only."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import RECIPE, HybridLM, ToyLM, by_recomputation

import magma
from magma import BatchLayout, Decoding, Example, Magma, Media, PartError, Text, testing
from magma.evaluation.prefix_sharing import PrefixCachedGenerator
from magma.plan import plan, plan_stages

pytestmark = pytest.mark.usefixtures("toys")

TRAINED = {**RECIPE["train"], "max_length": 40}
HYBRID = {**RECIPE, "lm": {"use": "hybrid"}, "train": TRAINED}
PROMPTS: list[list[Any]] = [[1, "a"], ["some longer text"], [3, "b", 0, "cd"], ["x"]]
EXAMPLES = [
    Example([Media("number", 2), Text("is"), Text(" two", target=True)]),
    Example([Text("or "), Media("number", 0), Text(" both", target=True)]),
    Example([Text("a"), Text("b", target=True)]),
]


def hybrid(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(HYBRID), **changes}


@pytest.fixture
def model() -> Magma:
    """Random weights, large enough that answers differ."""
    model = magma.assemble(hybrid(adapters={"attention": {"use": "add"}, "mlp": {"use": "add"}})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        model.lm.logits.bias[128:256] = -1e4  # type: ignore[union-attr,operator]
    return model


def test_the_kit_accepts_it() -> None:
    assert {one.check: one.problem for one in testing.run_checks(HybridLM) if one.problem} == {}


def test_each_part_is_built_with_its_width(model: Magma) -> None:
    prefix = model.input_modules()["number"].prefix
    assert prefix.get_parameter("linear.weight").shape == (12, 6)
    assert [adapter.get_parameter("down.weight").shape[1] for adapter in model.lm.all_adapters()] == [16] * 4
    classifier = magma.assemble(hybrid(head={"use": "classes", "classes": ["even", "odd"]}))
    assert classifier.head is not None
    assert classifier.head.get_parameter("linear.weight").shape == (2, 10)
    assert sum(classifier.classify([["a"]])[0].values()) == pytest.approx(1)


def test_a_language_model_of_one_width_has_it_everywhere() -> None:
    lm = ToyLM(ToyLM.Config(dim=24))
    assert (lm.dim, lm.embedding_dim, lm.output_dim) == (24, 24, 24)


def test_a_wrong_width_is_refused() -> None:
    lm = HybridLM(HybridLM.Config())
    whole = magma.assemble(RECIPE)  # its prefix gives 16
    with pytest.raises(PartError, match=r"width of word embeddings: \[1, 4, 12\]"):
        Magma(lm, whole.input_modules())


# Token ids


def test_a_layout_has_the_ids_of_its_batch(model: Magma) -> None:
    collator = model.collator(max_length=8)
    for batch in (collator.batch(EXAMPLES), collator.pack([collator.encode_example(one) for one in EXAMPLES], 16)):
        assert batch.layout.token_ids is batch.tokens
        for moved in (batch.to("cpu", torch.bfloat16), batch.to("meta"), pickle.loads(pickle.dumps(batch))):
            assert moved.layout.token_ids is moved.tokens  # it takes no memory
    assert batch.layout.sequence_ids is not None
    long = collator.batch([Example([Media("number", 1), Text("x" * 30)])])
    assert long.layout.token_ids is not None
    assert long.layout.token_ids.tolist() == [[0, 0, *b"xxxxxx"]]


def test_a_layout_of_an_older_plugin_has_none() -> None:
    zero = torch.zeros(1, 1, dtype=torch.long)
    assert BatchLayout(zero, zero[0], zero[0]).token_ids is None
    batch = magma.assemble(RECIPE).collator().batch(EXAMPLES[:1])
    batch.layout = BatchLayout(batch.layout.positions, batch.layout.lengths, batch.layout.scored)
    assert batch.to("cpu").layout.token_ids is None


def test_every_way_to_decode_has_the_ids(model: Magma) -> None:
    expected = [by_recomputation(model, prompt, 8) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    assert model.generate(PROMPTS, max_tokens=8) == expected
    shots = [Media("number", 1), Text("one. ")]
    prompts = [[*shots, Media("number", i // 2), Text("is" * (1 + i % 2))] for i in range(6)]
    alone = [model.generate(prompt, max_tokens=6) for prompt in prompts]
    found = dict(pair for batch in PrefixCachedGenerator(model, Decoding(6)).answers(prompts) for pair in batch)
    assert [found[i] for i in range(6)] == alone


def test_the_likelihood_of_what_it_generates_is_greedy(model: Magma) -> None:
    texts = [by_recomputation(model, prompt, 4) for prompt in PROMPTS]
    assert all(texts)
    assert [greedy for _, greedy in model.log_likelihood(PROMPTS, texts)] == [True] * 4


# No limit, no packing


def test_without_a_limit_any_length_is_read(model: Magma) -> None:
    assert model.lm.context is None
    assert model.logits(["x" * 300]).shape == (300, 257)
    assert len(model.generate_tokens(["x" * 100], max_tokens=70)) == 70
    assert len(model.collator().encode_example(Example([Text("x" * 300)]))) == 300
    assert len(model.collator(max_length=20).encode_example(Example([Text("x" * 300)]))) == 20
    prompts = [[Media("number", 1), Text("x" * 100)], [Media("number", 1), Text("y" * 90)]]
    assert sum(len(batch) for batch in PrefixCachedGenerator(model, Decoding(2)).answers(prompts)) == 2


def test_training_needs_a_maximum_length(tmp_path: Path) -> None:
    recipe = magma.Recipe.load(hybrid(train=RECIPE["train"]))
    message = "train.max_length: not given; required for this language model, which has no limit"
    with pytest.raises(PartError, match=message):
        plan(recipe)
    with pytest.raises(PartError, match=message):
        magma.run(recipe, tmp_path)
    stages = {**hybrid(train=RECIPE["train"]), "stages": [{}, {}]}
    with pytest.raises(PartError, match=r"stages\[0\]: train.max_length"):
        plan_stages(magma.Recipe.load(stages))


def test_packing_is_refused_with_the_reason(tmp_path: Path) -> None:
    recipe = magma.Recipe.load(hybrid(train={**TRAINED, "packing": 32}))
    message = "train.packing: given 32; allowed for this language model: no packing, because it counts from the start"
    with pytest.raises(PartError, match=message):
        plan(recipe)
    with pytest.raises(PartError, match=message):
        magma.run(recipe, tmp_path)


def test_it_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    recipe = magma.Recipe.load(hybrid(adapters={"mlp": {"use": "add"}}))
    magma.run(recipe, tmp_path)
    trained = magma.load(tmp_path)
    new = magma.assemble(recipe).eval()
    for name, tensor in new.frozen_tensors().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name
    moved = {name.partition("number.")[0] for name, t in new.trained_tensors().items() if "norm" not in name}
    assert moved
    assert all(
        not torch.equal(tensor, trained.state_dict()[name])
        for name, tensor in new.trained_tensors().items()
        if ".up." in name
    )


# Sites


def test_the_plan_says_in_how_many_blocks_a_sublayer_is() -> None:
    recipe = magma.Recipe.load(hybrid(adapters={"attention": {"use": "add"}, "mlp": {"use": "add"}}))
    parts = {part.path: part for part in plan(recipe).parts}
    one = 2 * 16 * 4 + 4 + 16
    assert (parts["adapters.attention"].copies, parts["adapters.attention"].blocks) == (1, (1, 2))
    assert (parts["adapters.mlp"].copies, parts["adapters.mlp"].blocks) == (3, (2, 2))
    assert parts["adapters.attention"].parameters == one
    assert parts["adapters.mlp"].parameters == 3 * one


def test_the_plan_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    from magma.cli.console import print_plan

    print_plan(plan(magma.Recipe.load(hybrid(adapters={"attention": {"use": "add"}, "mlp": {"use": "add"}}))))
    text = capsys.readouterr().out
    assert "adapters.attention: 1 adapter, in 1 of 2 blocks" in text
    assert "adapters.mlp: 3 adapters, in 2 of 2 blocks" in text


def test_a_sublayer_that_no_block_has_is_refused() -> None:
    class NoFeedForward(ToyLM):
        def add_adapters(self, place: Any, make: Any) -> None:
            self.adapters[place] = []

    with pytest.raises(PartError, match=r"adapters.mlp: no block of this language model has such a sublayer"):
        Magma(NoFeedForward(ToyLM.Config()), adapters={"mlp": lambda: None})  # type: ignore[dict-item,arg-type,return-value]
