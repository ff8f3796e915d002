"""The last block computes only scored columns: the same loss and gradients, in any kind of block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from magma_adapters.bottleneck import Parallel, Sequential
from magma_lms.causal import Causal
from magma_lms.fast.scored_columns import ScoredColumns, find_column_wise
from torch import Tensor, nn

from magma import Adapter, BatchLayout, PartConfig, Sublayer
from magma.activation_checkpointing import checkpoint_activations
from magma.model import Magma

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 1}
HEADS = {"num_attention_heads": 4, "intermediate_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**HEADS, "num_key_value_heads": 2},
    "gemma3_text": {**HEADS, "num_key_value_heads": 2, "head_dim": 8},
    "cohere": {**HEADS, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_head": 4},
    "mamba": {"state_size": 4},
    "qwen3_moe": {
        **HEADS,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}
T, FIRST = 12, 7
SCORED = torch.tensor([7, 9, 11, T + 8, T + 11])
LABELS = torch.tensor([3, 4, 5, 6, 7])
LENGTHS = torch.tensor([T, T])
X = torch.randn(2, T, 32, generator=torch.Generator().manual_seed(0))


class Halving(Adapter):
    """Changes the input of its sublayer."""

    name = "halving"

    def __init__(self, config: PartConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.weight = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return sublayer(self.weight * x)


def build(family: str, adapter: type[Adapter], sublayers: tuple[Sublayer, ...] = ("attention", "mlp")) -> Causal:
    torch.manual_seed(0)
    fields = {
        name: value for name, value in SIZES.items() if not (family == "gpt2" and name.startswith(("hid", "num")))
    }
    lm = Causal.build(architecture={"model_type": family, **fields, **FAMILIES[family]})
    for sublayer in sublayers:
        if lm.site_blocks(sublayer):
            lm.add_adapters(sublayer, lambda: adapter.build(lm.dim))
    lm.freeze()
    for made in lm.all_adapters():
        for parameter in made.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return lm


def loss_and_gradients(lm: Causal, first: int) -> list[Tensor]:
    x = X.clone().requires_grad_()
    hidden = lm(x, BatchLayout(torch.arange(T).expand(2, T), LENGTHS, SCORED, first))
    loss = lm.cross_entropy(hidden, LABELS)
    trained = [p for p in lm.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, [x, *trained])]


def check(lm: Causal) -> None:
    for one, other in zip(loss_and_gradients(lm, FIRST), loss_and_gradients(lm, 0), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def seen_columns(lm: Causal, first: int) -> dict[str, int]:
    """Number of columns that each matrix of the last block computes."""
    found: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], __: Any) -> None:
            found[name] = args[0].shape[-2]

        return hook

    inside = {n: m for n, m in lm.blocks[-1].named_modules() if isinstance(m, nn.Linear)}
    handles = [module.register_forward_hook(note(name)) for name, module in inside.items()]
    loss_and_gradients(lm, first)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("adapter", [Sequential, Parallel])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_all_columns(family: str, adapter: type[Adapter]) -> None:
    check(build(family, adapter))


@pytest.mark.parametrize("family", ["llama", "cohere", "gpt2", "mamba"])
def test_with_adapters_that_change_the_input(family: str) -> None:
    check(build(family, Halving))


def test_only_keys_and_values_are_computed_in_all_columns() -> None:
    lm = build("llama", Sequential)
    columns = seen_columns(lm, FIRST)
    whole = {name for name, t in columns.items() if t == T}
    assert whole == {"self_attn.k_proj", "self_attn.v_proj"}
    assert all(t == T - FIRST for name, t in columns.items() if name not in whole)
    assert set(seen_columns(lm, 0).values()) == {T}
    lm.remove_adapters()
    check(lm)


def test_a_mixer_that_is_not_known_computes_all_columns_but_in_its_last_projection() -> None:
    """A few tokens do not show what it reads. Nothing mixes after its last projection, or in a feed-forward."""
    columns = seen_columns(build("mamba", Sequential), FIRST)
    assert {name for name, t in columns.items() if t != T} == {"mixer.out_proj"}
    columns = seen_columns(build("cohere", Sequential), FIRST)
    assert {name.split(".")[0] for name, t in columns.items() if t == T} == {"self_attn"}
    assert columns["self_attn.o_proj"] == columns["mlp.down_proj"] == T - FIRST


def test_with_activation_checkpointing() -> None:
    lm = build("llama", Sequential)
    expected = loss_and_gradients(lm, 0)
    checkpoint_activations(Magma(lm), "lm")
    for one, other in zip(loss_and_gradients(lm, FIRST), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


class Shift(nn.Module):
    """A block whose second matrix reads the column before."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        return x + self.after(torch.cat([y[:, :1], y[:, :-1]], dim=1))


class Sum(nn.Module):
    """A module with a matrix that mixes columns."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).cumsum(1)


def test_what_mixes_columns_is_not_cut() -> None:
    x = torch.randn(2, 6, 8)
    block = Shift()
    assert find_column_wise(block, lambda: block(x), 3) == [block.after]
    summing = nn.Sequential(Sum())
    assert find_column_wise(summing, lambda: summing(x), 3) == []


def test_nothing_is_cut_if_columns_are_mixed_after_the_block() -> None:
    x, block, mixing = torch.randn(2, 6, 8), nn.Sequential(nn.Linear(8, 8)), Sum()
    assert find_column_wise(block, lambda: block(x), 3) == [block[0]]
    assert find_column_wise(block, lambda: mixing(block(x)), 3) == []


def test_a_module_that_is_called_twice_is_not_cut() -> None:
    x, block = torch.randn(2, 6, 8), nn.Sequential(nn.Linear(8, 8))
    assert find_column_wise(block, lambda: block(block[0](x)), 3) == []


def test_the_number_of_columns_may_change() -> None:
    block = nn.Sequential(nn.Linear(8, 8))
    columns = ScoredColumns(find_column_wise(block, lambda: block(torch.ones(1, 6, 8)), 3))
    x = torch.randn(2, 6, 8)
    expected = block(x)
    columns.first = 4
    out = block(x)
    assert torch.equal(out[:, :4], torch.zeros(2, 4, 8))
    assert torch.allclose(out[:, 4:], expected[:, 4:])
    columns.first = 0
    assert torch.equal(block(x), expected)
