"""What a plan does with parts that depend on values: conditions, routing to experts, copies to other libraries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toys import RECIPE, ToyLM

import magma
from magma import PartError
from magma.cli.console import print_memory, print_plan
from magma.plan import Plan, plan
from magma.training.microbatch import choose_micro_batch

pytestmark = pytest.mark.usefixtures("toys")


def planned(monkeypatch: pytest.MonkeyPatch, leave: Callable[[ToyLM, Tensor], Tensor], dtype: str = "fp32") -> Plan:
    """The plan of a language model that calls `leave` with its last hidden states [b, t, d]."""
    monkeypatch.setattr(ToyLM, "leave", leave)
    return plan(magma.Recipe.load(RECIPE, (f"train.precision='{dtype}'",)))


def masked(h: Tensor) -> Tensor:
    """Does nothing where no position is masked, as libraries do."""
    attended = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
    if attended.all() and attended.sum() == attended.numel():
        return h
    return h @ torch.ones(h.shape[-1], 1000, device=h.device) @ torch.ones(1000, h.shape[-1], device=h.device)


def test_a_condition_about_all_positions_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = planned(monkeypatch, lambda _, h: h)
    found = planned(monkeypatch, lambda _, h: masked(h))
    assert plain.flops_per_sample
    assert found.flops_per_sample == plain.flops_per_sample
    assert found.costs_problem is None


def counted(h: Tensor) -> Tensor:
    """Takes numbers of tensors that have values, as libraries do for sizes."""
    for size in (1, 2, 3):
        h = h.repeat(1, int(torch.tensor(size) * 1), 1)[:, : h.shape[1]]
        assert int(torch.tensor(size) * 1) == size
    return h


def test_real_numbers_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = planned(monkeypatch, lambda _, h: h)
    assert planned(monkeypatch, lambda _, h: counted(h)).flops_per_sample == plain.flops_per_sample


@pytest.mark.parametrize(
    ("leave", "reason"),
    [
        (lambda h: h + 0 * h[h > 0].sum(), "aten.index"),
        (lambda h: h * float(h.detach().sum()), "Tensor.item() cannot be called on meta tensors"),
        (lambda h: h + h.detach().cpu(), "aten._to_copy"),
        (lambda h: h + torch.from_numpy(h.detach().numpy()), "can't convert meta device type tensor to numpy"),
    ],
    ids=["routing", "number", "another device", "numpy"],
)
def test_without_values_the_costs_are_unknown_and_the_parameters_are_not(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    leave: Callable[[Tensor], Tensor],
    reason: str,
) -> None:
    plain = planned(monkeypatch, lambda _, h: h)
    found = planned(monkeypatch, lambda _, h: leave(h))
    assert found.parts == plain.parts
    assert found.totals == plain.totals
    assert found.costs_problem is not None
    assert found.flops_per_sample is found.costs is found.activation_bytes_per_sample is None
    for one, other in zip(found.memory, plain.memory, strict=True):
        assert (one.weights, one.gradients, one.optimizer) == (other.weights, other.gradients, other.optimizer)
        assert one.total is None
    assert found.costs_problem.startswith(f"a part needs values, which only a real run has ({reason}")
    train = magma.Recipe.load(RECIPE, ("train.micro_batch_size='auto'",)).train
    assert train is not None
    assert choose_micro_batch(train, 1, found, 10**9).reason == "the memory cannot be estimated"
    print_plan(found)
    print_memory(found)
    text = capsys.readouterr().out
    assert f"FLOPs and activations are unknown: {found.costs_problem}" in text
    assert "unknown" in text.splitlines()[-1]


def test_shapes_that_do_not_match_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PartError, match="the parts of this recipe do not fit together: .*reduction dim"):
        planned(monkeypatch, lambda _, h: h @ torch.ones(3, 3, device=h.device))


def test_a_mistake_in_the_code_of_a_part_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        planned(monkeypatch, lambda _, h: h + None)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_products_of_experts_count_each_position_once(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """As many FLOPs as one product of all positions with the weights of one expert, forward and backward."""

    def one(_: ToyLM, h: Tensor) -> Tensor:
        return h @ torch.ones(16, 16, device=h.device, dtype=h.dtype)

    def experts(_: ToyLM, h: Tensor) -> Tensor:
        weights = torch.ones(8, 16, 16, device=h.device, dtype=h.dtype)
        ends = torch.arange(1, 9, device=h.device, dtype=torch.int32)
        return F.grouped_mm(h.flatten(0, 1), weights, offs=ends).view_as(h)

    expected = planned(monkeypatch, one, dtype)
    found = planned(monkeypatch, experts, dtype)
    assert found.costs_problem is None
    assert found.flops_per_sample == expected.flops_per_sample
    assert found.activation_bytes_per_sample
