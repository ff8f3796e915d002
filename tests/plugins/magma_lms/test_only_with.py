"""Adapters with `only_with`: text is bit by bit that of the bare language model, in every kind of batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import neutral_models
import pytest
import torch
from neutral_models import ARCHITECTURES, check, logits, words
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from magma import Adapter, AdapterTable, Example, Magma, Media, PartConfig, PartError, Site, Tokens
from magma.evaluation.prefix_sharing import PrefixCachedGenerator
from magma.generation.decoding import Decoding
from magma.text_neutral import compare_with_bare_lm, random_prompts

FAMILIES = ("gptj", *ARCHITECTURES)


class Around(Adapter):
    """Changes the input of its sublayer and its output."""

    name = "around"

    def __init__(self, config: PartConfig, site: Site) -> None:
        super().__init__(config, site)
        self.before = nn.Linear(site.in_features, site.in_features)
        self.after = nn.Linear(site.out_features, site.out_features)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        h = sublayer(x + self.before(x))
        return h + self.after(h)


class Beside(Adapter):
    """Adds something to the output, and counts its calls."""

    name = "beside"
    passes_input_through = True
    calls = 0

    def __init__(self, config: PartConfig, site: Site) -> None:
        super().__init__(config, site)
        self.map = nn.Linear(site.in_features, site.out_features)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        Beside.calls += 1
        return sublayer(x) + self.map(x)


def table(part: type[Adapter], at: str, *only_with: str) -> AdapterTable:
    return AdapterTable(lambda site: part(PartConfig(), site), at, only_with=only_with)


TABLES = {
    "attention": table(Beside, "attention", "number"),
    "mlp": table(Around, "mlp", "number"),
    "linear": table(Beside, "linears", "number", "other"),
    "other": table(Around, "block", "other"),
    "second": table(Around, "linears", "other"),
}
BESIDE = {"attention": TABLES["attention"], "mlp": table(Beside, "mlp", "number")}


def build(family: str, tables: dict[str, AdapterTable] = TABLES) -> Magma:
    return neutral_models.build(family, tables)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Magma:
    return build(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_bit_differs(family: str, dtype: torch.dtype) -> None:
    assert len(check(build(family).to(dtype), 40)) == 9


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_bit_of_a_thousand_prompts_differs(family: str, dtype: torch.dtype) -> None:
    check(build(family).to(dtype), 1000)


def test_an_adapter_that_acts_on_text_is_found() -> None:
    model = build("llama")
    for adapter in model.lm.adapters["mlp"]:
        adapter.only_with = ()
    results = compare_with_bare_lm(model, random_prompts(model, 40))
    assert all(one.differing == one.positions and one.first for one in results), results
    assert results[0].first.startswith("prompt 0, position 0: the logit of token 0 is ")


def test_rows_with_media_are_as_without_the_key(model: Magma, monkeypatch: pytest.MonkeyPatch) -> None:
    """At all positions, also before the medium; and only the tables of their own input act."""
    number, other = [words(5, 6), Media("number", 2), words(7)], [words(5, 6), Media("other", 2), words(7)]
    mixed = logits(model, [number, other, [words(*range(8, 14))]])
    for row, prompt, absent in ((0, number, ("other", "second")), (1, other, ("attention", "mlp"))):
        with monkeypatch.context() as patch, model.adapters_disabled(*absent):
            for adapter in model.lm.all_adapters():
                patch.setattr(adapter, "only_with", ())
            expected = logits(model, [prompt])[0]
        torch.testing.assert_close(mixed[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
        with model.adapters_disabled():
            bare = logits(model, [prompt])[0]
        assert ((mixed[row, : len(bare)] - bare).abs().amax(-1) > 1e-3).all(), "a position without an effect"


def test_packed_sequences_are_as_rows(model: Magma) -> None:
    if model.lm.packing_problem is not None:
        pytest.skip("its rows cannot be packed")
    prompts = [[words(5, 6), Media("number", 3), words(7, 8)], [words(*range(9, 15))], [Media("other", 1), words(8, 9)]]
    packed = logits(model, prompts, packed=True)[0]
    start = 0
    for prompt in sorted(prompts, key=lambda one: -sum(4 if isinstance(s, Media) else len(s.ids) for s in one)):
        expected = logits(model, [prompt])[0]
        torch.testing.assert_close(packed[start : start + len(expected)], expected, rtol=1e-4, atol=1e-5)
        start += len(expected)


def test_a_batch_without_the_input_does_not_run_the_adapter(model: Magma) -> None:
    Beside.calls = 0
    logits(model, [[words(5, 6)], [words(7, 8, 9)]])
    model.generate_tokens([[words(5, 6)], [words(7)]], max_tokens=3)
    assert Beside.calls == 0
    logits(model, [[words(5, 6)], [Media("number", 1), words(7)]])
    assert Beside.calls > 0


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_it_costs_nothing_if_all_rows_have_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """The language model runs the same operators, in training and without gradients."""
    model = build("gptj", BESIDE)
    rows = [Example([Media("number", 2), Tokens(torch.tensor([7, 8]), target=True)])] * 2
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            given = model.lm_inputs(model.collator().batch(rows))
            with Operators() as ours:
                model.lm(*given)
            with monkeypatch.context() as patch, Operators() as plain:
                for adapter in model.lm.all_adapters():
                    patch.setattr(adapter, "only_with", ())
                model.lm(*given)
        assert ours.count == plain.count


def test_generated_tokens_remember_the_input(model: Magma) -> None:
    """With a cache, beside rows that end earlier: as all positions computed again for each token."""
    prompts: list[list[Any]] = [[words(5, 6), Media("number", 2), words(7)], [words(8, 9, 10)], [Media("other", 1)]]
    found = model.generate_tokens(prompts, max_tokens=5)
    for prompt, tokens in zip(prompts, found, strict=True):
        text: list[int] = []
        while len(text) < 5:
            last = logits(model, [[*prompt, words(*text)] if text else prompt])[0, -1]
            if int(last.argmax()) in model.lm.ends:
                break
            text.append(int(last.argmax()))
        assert tokens == text
    with model.adapters_disabled():
        assert model.generate_tokens(prompts[1:2], max_tokens=5)[0] == found[1]


def test_a_shared_prefix_is_computed_for_the_inputs_of_the_whole_prompt(model: Magma) -> None:
    """Words before a medium are computed with the adapters of this medium, and once more for text."""
    prompts = [
        [words(5, 6), Media("number", 1), words(7)],
        [words(5, 6), Media("number", 2), words(7)],
        [words(5, 6), Media("number", 2), words(9)],
        [words(5, 6), Media("other", 2), words(9)],
        [words(5, 6), words(7)],
    ]
    generator = PrefixCachedGenerator(model, Decoding(max_tokens=4), batch_size=4)
    for _ in range(2):
        found = dict(one for batch in generator.tokens(prompts) for one in batch)
        assert [found[i] for i in range(5)] == [model.generate_tokens(prompt, max_tokens=4) for prompt in prompts]


def test_gradients_are_those_of_the_rows_with_media(model: Magma) -> None:
    """Rows of text contribute none, and a batch of text gives zeros: all processes compute the same modules."""
    weights = [p for name in ("attention", "mlp") for a in model.lm.adapters.get(name, ()) for p in a.parameters()]

    def gradients(*prompts: list[Any]) -> list[Tensor]:
        collator = model.collator()
        batch = collator.batch([Example(prompt) for prompt in prompts])
        return list(torch.autograd.grad(model(batch), weights))

    image = [Media("number", 2), Tokens(torch.tensor([7, 8]), target=True)]
    text = [words(5), Tokens(torch.tensor([9, 10]), target=True)]
    for one, other in zip(gradients(image, text), gradients(image), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert all(bool((one == 0).all()) for one in gradients(text))


def test_only_inputs_of_the_model_are_allowed() -> None:
    with pytest.raises(PartError, match="adapters.mlp.only_with: given 'picture'; allowed: the inputs, number, other"):
        build("gptj", {"mlp": table(Beside, "mlp", "picture")})
