"""Assembly of instances, the freeze contract, and what gradients reach."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from toys import RECIPE, ToyAdapter, ToyEncoder, ToyLM, ToyPrefix

import magma
from magma import Example, Input, InputError, Magma, Media, PartError, Text, TooLong

pytestmark = pytest.mark.usefixtures("toys")

EXAMPLES = [
    Example([Media("number", 2), Text("is"), Text(" two", target=True)]),
    Example([Text("or "), Media("number", 0), Media("number", 3), Text("?"), Text(" both", target=True)]),
]


def make(trainable: bool = True, adapters: bool = True) -> Magma:
    torch.manual_seed(0)
    lm, encoder = ToyLM(ToyLM.Config()), ToyEncoder(ToyEncoder.Config())
    prefix = ToyPrefix(ToyPrefix.Config(), encoder.dim, encoder.length, lm.dim)
    factory = {"mlp": lambda: ToyAdapter(ToyAdapter.Config(), lm.dim)} if adapters else {}
    return Magma(lm, {"number": Input(encoder, prefix, trainable)}, factory)  # type: ignore[arg-type]


def test_media_embeddings_land_in_their_slots() -> None:
    model = make().eval()
    batch = model.collator().batch(EXAMPLES)
    embedded = model.embed(batch)
    input_module = model.input_modules()["number"]
    alone = input_module(torch.eye(4)[[2, 0, 3]]).values
    assert torch.equal(embedded[0, :3], alone[0, :3])
    assert torch.equal(embedded[1, 3:4], alone[1, :1])
    assert torch.equal(embedded[1, 4:8], alone[2])
    assert torch.equal(embedded[0, 3:5], model.lm.embed(batch.tokens[:1, 3:5])[0])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model = make().eval()
    collator = model.collator()
    together = model(collator.batch(EXAMPLES))
    apart = sum(model(collator.batch([example])) for example in EXAMPLES)
    assert torch.allclose(together, apart, atol=1e-5)


def test_loss_is_the_mean_over_targets() -> None:
    model = make().eval()
    batch = model.collator().batch(EXAMPLES)
    logits = model.lm.lm_head(model.lm(model.embed(batch), batch.layout))
    by_hand = -logits.log_softmax(-1)[torch.arange(len(batch.labels)), batch.labels].mean()
    assert torch.allclose(model.loss(batch), by_hand)
    with pytest.raises(InputError, match="no target tokens"):
        model.loss(model.collator().batch([Example([Text("nothing")])]))


def test_gradients_reach_every_declared_parameter_and_no_other() -> None:
    model = make().train()
    model.loss(model.collator().batch(EXAMPLES)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad == (not name.startswith("lm.") or ".adapter." in name), name
        if parameter.grad is not None and name != "inputs.number.encoder.linear.bias":  # BatchNorm cancels it
            assert parameter.grad.abs().sum() > 0, name


def test_a_frozen_encoder_gets_no_gradient_and_its_prefix_does() -> None:
    model = make(trainable=False).train()
    model.loss(model.collator().batch(EXAMPLES)).backward()
    input_module = model.input_modules()["number"]
    assert all(p.grad is None and not p.requires_grad for p in input_module.encoder.parameters())
    assert all(p.grad is not None for p in input_module.prefix.parameters())


def test_train_never_moves_a_frozen_part_out_of_eval() -> None:
    model = make(trainable=False)
    for mode in (
        model.train,
        model.lm.train,
        model.input_modules()["number"].train,
        model.input_modules()["number"].encoder.train,
    ):
        mode(True)
        assert not model.lm.training
        assert not model.lm.dropout.training  # type: ignore[union-attr]
        assert not any(module.training for module in model.input_modules()["number"].encoder.modules())
    model.train()
    assert model.input_modules()["number"].prefix.training
    assert all(adapter.training for adapter in model.lm.all_adapters())
    model.eval()
    assert not any(adapter.training for adapter in model.lm.all_adapters())


def test_frozen_batchnorm_keeps_its_statistics_and_trained_does_not() -> None:
    for trainable in (False, True):
        model = make(trainable).train()
        before = model.input_modules()["number"].encoder.norm.running_mean.clone()  # type: ignore[union-attr]
        model(model.collator().batch(EXAMPLES))
        after = model.input_modules()["number"].encoder.norm.running_mean  # type: ignore[union-attr]
        assert torch.equal(before, after) == (not trainable)


def test_a_trained_encoders_batchnorm_may_be_frozen_alone() -> None:
    recipe = copy.deepcopy(RECIPE)
    recipe["inputs"]["number"]["batchnorm"] = "frozen"
    model = magma.assemble(recipe).train()
    norm = model.input_modules()["number"].encoder.get_submodule("norm")
    before = norm.get_buffer("running_mean").clone()
    model.loss(
        model.collator().batch([Example([Media("number", n), Text("a", target=True)]) for n in (1, 2)])
    ).backward()
    assert torch.equal(norm.get_buffer("running_mean"), before)
    assert norm.get_parameter("weight").grad is not None
    assert not norm.training
    assert model.input_modules()["number"].encoder.get_submodule("linear").training


def test_an_absent_modality_gets_zero_gradients_and_changes_no_buffer() -> None:
    model = make().train()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    model.loss(model.collator().batch([Example([Text("just"), Text(" text", target=True)])])).backward()
    for parameter in model.input_modules()["number"].parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert model.input_modules()["number"].encoder.training


def test_removing_adapters_gives_the_bare_language_model_back() -> None:
    bare, adapted = make(adapters=False).eval(), make().eval()
    with torch.no_grad():
        for adapter in adapted.lm.all_adapters():
            for parameter in adapter.parameters():
                parameter.normal_()
    prompt = ["a plain text"]
    assert not torch.allclose(adapted.logits(prompt), bare.logits(prompt))
    adapted.lm.remove_adapters()
    assert torch.equal(adapted.logits(prompt), bare.logits(prompt))


def test_widths_that_do_not_fit_are_found_at_once() -> None:
    lm, encoder = ToyLM(ToyLM.Config()), ToyEncoder(ToyEncoder.Config())
    wrong = ToyPrefix(ToyPrefix.Config(), encoder.dim, encoder.length, lm.dim + 1)
    with pytest.raises(PartError, match=r"inputs.number: the prefix gives \[1, 4, 17\].*\[1, 4, 16\]"):
        Magma(lm, {"number": Input(encoder, wrong)})
    narrow = ToyPrefix(ToyPrefix.Config(), encoder.dim - 1, encoder.length, lm.dim)
    with pytest.raises(PartError, match=r"inputs.number: the prefix cannot take the encoder's\s+\[b, 4, 6\]"):
        Magma(ToyLM(ToyLM.Config()), {"number": Input(encoder, narrow)})


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(PartError, match='not on "head"'):
        Magma(ToyLM(ToyLM.Config()), adapters={"head": lambda: None})  # type: ignore[dict-item,arg-type,return-value]


def test_summary_counts_every_parameter_once() -> None:
    model = make()
    rows = {row.path: row for row in model.summary()}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["lm"].trained == 0
    assert rows["adapters.mlp"].trained == rows["adapters.mlp"].parameters == 2 * 16 * 4 + 4 + 16


def test_trained_and_frozen_tensors_share_nothing_and_cover_all() -> None:
    model = make()
    trained, frozen = model.trained_tensors(), model.frozen_tensors()
    assert not trained.keys() & frozen.keys()
    assert trained.keys() | frozen.keys() == model.state_dict().keys()
    assert "inputs.number.encoder.norm.running_mean" in trained
    assert "inputs.number.encoder.norm.running_mean" in make(trainable=False).frozen_tensors()


def test_logits_score_every_position() -> None:
    model = magma.assemble(RECIPE).eval()
    logits = model.logits([2, "ab"])
    assert logits.shape == (5, 257)
    longer = model.logits([2, "abc"])
    assert torch.allclose(longer[:5], logits, atol=1e-5)


PROMPTS: list[list[Any]] = [[2, "is"], ["or ", 0, 3, "?"], ["what"], [1]]
TEXTS = [" two", " both of them", "", "!"]


def by_logits(model: Magma, prompt: list[Any], text: str) -> tuple[float, bool]:
    """A continuation's score, token by token."""
    ids = model.lm.encode(text)
    logits = model.logits([*prompt, text])[-len(ids) - 1 : -1].float()
    chances = [float(row.log_softmax(-1)[token]) for row, token in zip(logits, ids, strict=True)]
    return sum(chances), all(int(row.argmax()) == token for row, token in zip(logits, ids, strict=True))


def test_log_likelihood_is_that_of_the_logits_in_a_batch_and_alone() -> None:
    model = magma.assemble(RECIPE)
    together = model.log_likelihood(PROMPTS, TEXTS)
    assert model.training
    model.eval()
    for prompt, text, (total, greedy) in zip(PROMPTS, TEXTS, together, strict=True):
        expected = by_logits(model, prompt, text) if text else (0.0, True)
        assert total == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]
        ((alone, _),) = model.log_likelihood([prompt], [text])
        assert alone == pytest.approx(total, abs=1e-4)
    assert model.log_likelihood(PROMPTS[:1], [""]) == [(0.0, True)]


def test_what_greedy_decoding_writes_is_greedy() -> None:
    model = magma.assemble(RECIPE).eval()
    with torch.no_grad():
        model.lm.words.weight[128:256] = 0  # type: ignore[union-attr]  # no byte that breaks UTF-8
    ids = model.generate_tokens(PROMPTS, max_tokens=3)
    texts = [model.lm.decode(tokens) for tokens in ids]
    assert [model.lm.encode(text) for text in texts] == ids
    assert all(texts)
    assert [greedy for _, greedy in model.log_likelihood(PROMPTS, texts)] == [True] * 4
    others = [chr(ord(text[0]) ^ 1) + text[1:] for text in texts]
    assert [greedy for _, greedy in model.log_likelihood(PROMPTS, others)] == [False] * 4


def test_log_likelihood_refuses_what_it_cannot_score_whole() -> None:
    model = magma.assemble(RECIPE)
    with pytest.raises(TooLong, match="prompt 1 with ' two' behind it needs 66 positions"):
        model.log_likelihood([["a"], ["x" * 62]], [" two", " two"])
    with pytest.raises(InputError, match="the prompt is empty: nothing stands before 'a'"):
        model.log_likelihood([[]], ["a"])
    with pytest.raises(InputError, match="given 1 prompts and 2 texts"):
        model.log_likelihood([["a"]], ["b", "c"])
    head = {"use": "classes", "classes": ["even", "odd"]}
    with pytest.raises(InputError, match="it classifies"):
        magma.assemble({**RECIPE, "head": head}).log_likelihood([["a"]], ["b"])
