"""Language models of transformers: the library's own numbers, with adapters, padding, packing and caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, OURS, architecture, build, library
from lm_logits import TOKENS, layout, run
from magma_lms import preallocated
from magma_lms.causal import Causal
from magma_lms.gptj import GPTJ
from magma_lms.rotary import rope_table
from magma_lms.transformers_lm import TransformersLM
from torch import Tensor, nn

from magma import Adapter, BatchLayout, Cache, Magma, PartConfig, PartError, Tokens
from magma.evaluation.prefix_sharing import PrefixCachedGenerator
from magma.generation.decoding import Decoding


class Sum(Adapter):
    """Nudges the sublayer's input and output, and remembers what it saw."""

    name = "sum"

    def __init__(self, dim: int) -> None:
        super().__init__(PartConfig(), dim)
        self.linear = nn.Linear(dim, dim)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        h = sublayer(x + 0.1 * self.linear(x))
        self.seen.append((*x.shape, *h.shape))
        return h + self.linear(h)


class Beside(Sum):
    """Leaves the sublayer's input alone, and uses it too."""

    passes_input_through = True

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        h = sublayer(x)
        self.seen.append((*x.shape, *h.shape))
        return h + self.linear(h) + self.linear(x).relu()


def test_logits_match_transformers(lm: TransformersLM) -> None:
    expected = library(lm)(input_ids=TOKENS).logits
    assert torch.allclose(run(lm, TOKENS), expected, atol=1e-5)


def test_scored_positions_alone_come_back(lm: TransformersLM) -> None:
    scored = torch.tensor([3, 20, 35])
    found = lm.lm_head(lm(lm.embed(TOKENS), layout([12] * 3, 12, scored)))
    assert torch.allclose(found, run(lm, TOKENS).flatten(0, 1)[scored], atol=1e-5)


def test_padding_changes_nothing_and_is_no_nan(lm: TransformersLM) -> None:
    lengths = [12, 5, 8]
    together = run(lm, TOKENS, lengths)
    assert together.isfinite().all()
    for row, length in enumerate(lengths):
        alone = run(lm, TOKENS[row : row + 1, :length])[0]
        assert torch.allclose(together[row, :length], alone, atol=1e-5)


def test_packed_examples_do_not_see_each_other(lm: TransformersLM) -> None:
    lengths = [5, 7]
    packed = BatchLayout(
        positions=torch.cat([torch.arange(n) for n in lengths])[None],
        lengths=torch.tensor([12]),
        scored=torch.arange(12),
        sequence_ids=torch.repeat_interleave(torch.arange(2), torch.tensor(lengths))[None],
    )
    found = lm.lm_head(lm(lm.embed(TOKENS[:1]), packed))
    apart = torch.cat([run(lm, TOKENS[:1, :5])[0], run(lm, TOKENS[:1, 5:])[0]])
    assert torch.allclose(found, apart, atol=1e-5)


def test_cached_steps_equal_the_whole_for_unequal_prompts(lm: TransformersLM) -> None:
    prompts, steps = [4, 7, 2], 4
    cache = lm.new_cache()
    last = torch.tensor(prompts) - 1 + 7 * torch.arange(3)
    ids = torch.stack([torch.cat([TOKENS[i, :n], torch.ones(7 - n, dtype=torch.long)]) for i, n in enumerate(prompts)])
    found = [lm.lm_head(lm(lm.embed(ids), layout(prompts, 7, last), cache))]
    for step in range(steps):
        ids = torch.stack([TOKENS[i, n + step] for i, n in enumerate(prompts)])[:, None]
        found.append(lm.lm_head(lm(lm.embed(ids), layout([1] * 3, 1, start=torch.tensor(prompts) + step), cache)))
    for i, n in enumerate(prompts):
        whole = run(lm, TOKENS[i : i + 1, : n + steps])[0, n - 1 :]
        assert torch.allclose(torch.stack([step[i] for step in found]), whole, atol=1e-4)


def test_cache_expand_and_select(lm: TransformersLM) -> None:
    cache = lm.new_cache()
    lm(lm.embed(TOKENS[:2, :6]), layout([6, 4], 6), cache)
    many = cache.expand(2).select(torch.tensor([2, 1]))  # of rows 0, 0, 1, 1
    more = TOKENS[:2, 6:9]
    found = lm.lm_head(lm(lm.embed(more), layout([3, 3], 3, start=torch.tensor([4, 6])), many)).view(2, 3, -1)
    expected = [torch.cat([TOKENS[1, :4], more[0]]), torch.cat([TOKENS[0, :6], more[1]])]
    for row, ids in enumerate(expected):
        assert torch.allclose(found[row], run(lm, ids[None])[0, -3:], atol=1e-4)
    # the first cache is what it was
    again = lm.lm_head(lm(lm.embed(TOKENS[:2, 6:7]), layout([1, 1], 1, start=torch.tensor([6, 4])), cache))
    assert torch.allclose(again[0], run(lm, TOKENS[:1, :7])[0, -1], atol=1e-4)


@pytest.mark.parametrize("place", ["attention", "mlp"])
def test_adapters_are_in_every_block_and_leave_without_a_trace(lm: TransformersLM, place: Any) -> None:
    before = run(lm, TOKENS)
    names = set(lm.state_dict())
    lm.add_adapters(place, lambda: Sum(lm.dim))
    lm.freeze()
    after = run(lm, TOKENS)
    assert len(lm.adapters[place]) == 2
    assert not torch.allclose(after, before, atol=1e-3)
    for adapter in lm.adapters[place]:
        assert isinstance(adapter, Sum)
        assert adapter.seen in ([(3, 12, 32, 3, 12, 32)], [(1, 36, 32, 1, 36, 32)])  # OPT's rows are one
    assert {n for n, p in lm.named_parameters() if p.requires_grad} == {n for n in lm.state_dict() if ".adapter." in n}
    with pytest.raises(PartError, match=f"adapters.{place}"):
        lm.add_adapters(place, lambda: Sum(lm.dim))
    lm.remove_adapters()
    assert set(lm.state_dict()) == names
    assert torch.equal(run(lm, TOKENS), before)


def test_adapted_decoding_with_a_cache_equals_the_whole(lm: TransformersLM) -> None:
    lm.add_adapters("attention", lambda: Sum(lm.dim))
    lm.add_adapters("mlp", lambda: Sum(lm.dim))
    cache = lm.new_cache()
    lm(lm.embed(TOKENS[:, :11]), layout([11] * 3, 11), cache)
    last = lm.lm_head(lm(lm.embed(TOKENS[:, 11:]), layout([1] * 3, 1, start=torch.tensor([11] * 3)), cache))
    assert torch.allclose(last, run(lm, TOKENS)[:, -1], atol=1e-4)


def test_a_saved_folder_loads_with_the_same_logits(lm: TransformersLM, tmp_path: Path) -> None:
    lm.export(tmp_path)
    again = Causal.build(weights=str(tmp_path))
    again.freeze()
    assert torch.allclose(run(again, TOKENS), run(lm, TOKENS), atol=1e-5)


def test_half_precision_stays_and_tables_of_positions_do_not(tmp_path: Path) -> None:
    lm = build("gptj")
    assert isinstance(lm, Causal)
    table = rope_table(lm.context, lm.model.config.rotary_dim, torch.device("cpu"))
    lm.model.half().save_pretrained(tmp_path)
    again = GPTJ.build(weights=str(tmp_path))
    assert next(again.parameters()).dtype == torch.float16
    again.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(again.model.transformer.rope_table, table)


def test_gptj_6b_on_meta_has_the_papers_parameters() -> None:
    lm = GPTJ(GPTJ.Config())
    assert sum(p.numel() for p in lm.parameters()) == 6_050_882_784
    assert (lm.dim, lm.context, lm.vocab, lm.eos) == (4096, 2048, 50400, 50256)


@pytest.mark.parametrize(("family", "window"), [("gpt_neo", "window_size"), ("mistral", "sliding_window")])
def test_the_context_does_not_end_with_a_window(family: str, window: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    lm = Causal.build(architecture={**architecture(family), window: 4})
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**architecture(family), window: 4})).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    theirs.load_state_dict(lm.model.state_dict())
    lm.freeze()
    assert lm.context == 64
    assert torch.allclose(run(lm, TOKENS[:, :10]), theirs(input_ids=TOKENS[:, :10]).logits, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt_neo", "mistral"])
def test_padding_in_a_cache_does_not_push_tokens_out_of_the_window(family: str) -> None:
    lm = build(family, **{"gpt_neo": {"window_size": 9}, "mistral": {"sliding_window": 9}}[family])
    cache = lm.new_cache()
    lm(lm.embed(TOKENS[:2, :8]), layout([8, 2], 8), cache)
    short = cache.select(torch.tensor([1]))
    for position in range(2, 9):  # column 14 in the end
        token = TOKENS[1:2, position : position + 1]
        last = lm.lm_head(lm(lm.embed(token), layout([1], 1, start=torch.tensor([position])), short))
    assert torch.allclose(last[0], run(lm, TOKENS[1:2, :9])[0, -1], atol=1e-4)


def test_only_the_adapters_learn_and_only_they_leave_eval_mode(lm: TransformersLM) -> None:
    lm.add_adapters("attention", lambda: Sum(lm.dim))
    lm.add_adapters("mlp", lambda: Sum(lm.dim))
    lm.freeze()
    lm.train()
    adapters = {id(module) for adapter in lm.all_adapters() for module in adapter.modules()}
    assert {id(module) for module in lm.modules() if module.training} == adapters
    embeddings = lm.embed(TOKENS).requires_grad_()
    lm.lm_head(lm(embeddings, layout([12, 5, 8], 12))).square().mean().backward()
    assert embeddings.grad is not None
    assert embeddings.grad[:, 0].abs().sum() > 0
    for name, parameter in lm.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (".adapter." in name), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_padding_is_finite_in_half_precision(lm: TransformersLM, dtype: torch.dtype) -> None:
    whole = run(lm, TOKENS)
    found = run(lm.to(dtype), TOKENS, [12, 5, 8])
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert torch.allclose(found[0].float(), whole[0], atol=0.15)


WHOLE = {"gpt_neo": {"window_size": 64}, "mistral": {"sliding_window": 64}}
"""Windows as long as the context, which `build` makes 64."""


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_up_to_the_context_are_what_they_are_one_by_one(family: str) -> None:
    """A batch has more columns than the context as soon as a short row stands beside a full one."""
    lm = build(family, **WHOLE.get(family, {}))
    tokens = torch.randint(2, 96, (2, 64), generator=torch.Generator().manual_seed(3))
    singles = [run(lm, row[None])[0] for row in tokens]
    cache, start, columns = lm.new_cache(), torch.zeros(2, dtype=torch.long), 0
    for lengths in ([60, 5], [2, 57], [1, 1], [1, 1]):  # 64 positions each in the end
        width = max(lengths)
        ids = torch.ones(2, width, dtype=torch.long)
        for row, length in enumerate(lengths):
            ids[row, :length] = tokens[row, start[row] : start[row] + length]
        found = lm.lm_head(lm(lm.embed(ids), layout(lengths, width, start=start), cache)).view(2, width, -1)
        for row, length in enumerate(lengths):
            expected = singles[row][start[row] : start[row] + length]
            assert torch.allclose(found[row, :length], expected, atol=1e-4)
        start, columns = start + torch.tensor(lengths), columns + width
    assert columns == 119
    # Padding may lie beyond the context: on a GPU a batch is a multiple of 8 wide.
    padded = torch.nn.functional.pad(tokens, (0, 3), value=1)
    for row, single in zip(run(lm, padded, [64, 64]), singles, strict=True):
        assert torch.allclose(row[:64], single, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_up_to_the_context_are_those_of_single_prompts(family: str) -> None:
    lm = build(family, **WHOLE.get(family, {}))
    lm.eos = -1
    model = Magma(lm)
    tokens = torch.randint(2, 96, (64,), generator=torch.Generator().manual_seed(3))
    prompts = [tokens[:length] for length in (64, 63, 50, 40)]
    reader = PrefixCachedGenerator(model, Decoding(max_tokens=100))
    together = dict(one for batch in reader.tokens([[Tokens(prompt)] for prompt in prompts]) for one in batch)
    assert [len(together[row]) for row in range(4)] == [1, 2, 15, 25]  # the last one is chosen, and never read
    assert [together[row] for row in range(4)] == [model.generate_tokens([p], max_tokens=100) for p in prompts]


def test_gpt_neo_keeps_its_windows_in_files(tmp_path: Path) -> None:
    """Exported, it is the library's model, which looks no further back than its window."""
    from transformers import AutoModelForCausalLM

    lm = build("gpt_neo", window_size=9)
    lm.export(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert theirs.config.attention_layers == ["global", "local"]
    again = Causal.build(weights=str(tmp_path))
    again.freeze()
    assert torch.allclose(run(again, TOKENS[:, :9]), theirs(input_ids=TOKENS[:, :9]).logits, atol=1e-5)
    assert run(again, TOKENS, [9, 5, 7]).isfinite().all()  # 12 columns for 9 positions


@pytest.mark.parametrize("adapter", [None, Sum, Beside])
def test_the_same_modules_run_whatever_a_batch_holds(adapter: type[Sum] | None) -> None:
    """Where each process has a part of every weight, all of them have to ask for the same one at the same time."""
    lm = build(OURS)
    if adapter:
        for place in ("attention", "mlp"):
            lm.add_adapters(place, lambda: adapter(32))
    ran: list[str] = []
    for name, module in lm.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    orders = []
    everything = layout([12, 9, 12], 12, torch.tensor([7, 9, 12 + 8, 24 + 11]))
    for first in (0, 7):
        ran.clear()
        lm(lm.embed(TOKENS), replace(everything, first_scored=first))
        orders.append(list(ran))
    assert orders[0] == orders[1]
    assert len(orders[0]) > 20


@pytest.mark.parametrize("adapter", [Sum, Beside])
@pytest.mark.parametrize("place", ["attention", "mlp", "neither"])
def test_the_last_block_computes_what_is_scored_alone_and_loses_nothing(place: Any, adapter: type[Sum]) -> None:
    """The same hidden states and gradients as with all columns, whatever an adapter does to what it is given."""
    lm = build(OURS)
    if place != "neither":
        torch.manual_seed(1)
        lm.add_adapters(place, lambda: adapter(32))
    embeddings = lm.embed(TOKENS).detach().requires_grad_()
    scored = torch.tensor([7, 9, 12 + 8, 24 + 11])
    found = []
    for first in (0, 7):
        slow = layout([12, 9, 12], 12, scored)
        hidden = lm(embeddings, BatchLayout(slow.positions, slow.lengths, slow.scored, first))
        wanted = [embeddings, *(p for adapter in lm.all_adapters() for p in adapter.parameters())]
        found.append([hidden, *torch.autograd.grad(hidden.square().sum(), wanted)])
    for slow_one, fast_one in zip(*found, strict=True):
        assert torch.allclose(slow_one, fast_one, atol=1e-5)
    if place == "mlp" or (place == "attention" and adapter is Beside):
        assert [seen[1] for seen in lm.adapters[place][-1].seen] == [12, 5]  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", [OURS, "gpt2", "qwen2"])
def test_selected_cache_rows_are_independent(family: str) -> None:
    """Decoding writes in place: into a row's own memory, whoever else began with the same."""
    lm = build(family)
    cache = lm.new_cache()
    tokens = torch.arange(2, 7)[None]

    def read(tokens: Tensor, cache: Cache, start: int) -> Tensor:
        b, t = tokens.shape
        positions = torch.arange(start, start + t).repeat(b, 1)
        layout = BatchLayout(positions, torch.full((b,), t), torch.arange(b * t))
        with torch.no_grad():
            return lm.lm_head(lm(lm.embed(tokens), layout, cache)).view(b, t, -1)

    read(tokens, cache, 0)
    twins = cache.expand(2)
    read(torch.tensor([[11], [12]]), twins, 5)
    later = twins.select(torch.tensor([1, 0, 1]))
    for step, token in enumerate((21, 22), 6):  # each in its own way
        read(torch.tensor([[token + 1], [token + 2]]), twins, step)
        found = read(torch.tensor([[token], [token], [token + 5]]), later, step)
        read(torch.tensor([[token + 9]]), cache, step - 1)
    expected = [[12, 21, 22], [11, 21, 22], [12, 26, 27]]
    for row, behind in zip(found, expected, strict=True):
        whole = read(torch.tensor([[*range(2, 7), *behind]]), lm.new_cache(), 0)
        torch.testing.assert_close(row[-1], whole[0, -1], atol=1e-5, rtol=1e-5)


def test_a_cache_has_room_for_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tokens, so that it has to be made larger on the way."""
    model = Magma(build(OURS))
    prompt = [torch.arange(2, 12)]
    model.lm.eos = -1
    found = model.generate_tokens(prompt, max_tokens=30)
    monkeypatch.setattr(preallocated, "SPARE_COLUMNS", 3)
    assert model.generate_tokens(prompt, max_tokens=30) == found
    assert len(found) == 30
