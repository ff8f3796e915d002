"""The loss through a frozen head: torch's value and gradient, and no more memory than it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from magma_lms.fast import cross_entropy
from magma_lms.fused_head import FusedHead, is_linear
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

M, D, V = 13, 8, 50
DRAW = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(M, D, generator=DRAW)
LABELS = torch.randint(0, V, (M,), generator=DRAW)
PROJECTION = nn.Linear(D, V).requires_grad_(False)


def scaled(hidden: Tensor) -> Tensor:
    return PROJECTION(hidden) * 3


def soft_capped(hidden: Tensor) -> Tensor:
    return torch.tanh(PROJECTION(hidden) / 5) * 5


HEADS: dict[str, Callable[[Tensor], Tensor]] = {"linear": PROJECTION, "scaled": scaled, "soft_capped": soft_capped}


def value_and_gradient(loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    hidden = HIDDEN.clone().requires_grad_()
    value = loss(hidden)
    (2 * value).backward()
    assert hidden.grad is not None
    return value.detach(), hidden.grad


def check(loss: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor]) -> None:
    value, gradient = value_and_gradient(loss)
    expected, wanted = value_and_gradient(lambda h: F.cross_entropy(head(h), LABELS, reduction="sum"))
    assert value.dtype == torch.float32
    assert torch.allclose(value, expected, rtol=1e-6)
    assert torch.allclose(gradient, wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(loss(HIDDEN), expected, rtol=1e-6)


@pytest.mark.parametrize("limit", [1, 4 * V, 10**6])
@pytest.mark.parametrize("name", HEADS)
def test_any_head_in_chunks(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", limit)
    check(lambda h: cross_entropy.chunked_cross_entropy(HEADS[name], h, LABELS, V), HEADS[name])


@pytest.mark.parametrize("limit", [1, 4 * V, 10**6])
def test_a_linear_head(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", limit)
    weight, bias = PROJECTION.weight, PROJECTION.bias
    check(lambda h: cross_entropy.linear_cross_entropy(h, weight, bias, LABELS), PROJECTION)


class Largest(TorchDispatchMode):
    """The largest tensor that any operator returns, and the number of new ones of at least a certain size."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {one.data_ptr() for one in args if isinstance(one, Tensor)}
        if isinstance(out, Tensor) and out.data_ptr() not in given:
            self.sizes.append(out.numel())
        return out


def test_a_linear_head_allocates_all_logits_once() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    with Largest() as seen:
        cross_entropy.linear_cross_entropy(hidden, PROJECTION.weight, PROJECTION.bias, LABELS).backward()
    assert sum(size >= M * V for size in seen.sizes) == 1


def test_chunks_never_hold_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", M * V)
    hidden = HIDDEN.clone().requires_grad_()
    with Largest() as seen:
        cross_entropy.chunked_cross_entropy(soft_capped, hidden, LABELS, V).backward()
    assert max(seen.sizes) <= -(-M // cross_entropy.COPIES) * V


def test_half_precision_is_near() -> None:
    head = nn.Linear(D, V, dtype=torch.bfloat16).requires_grad_(False)
    hidden = HIDDEN.bfloat16().requires_grad_()
    for loss in (
        cross_entropy.linear_cross_entropy(hidden, head.weight, head.bias, LABELS),
        cross_entropy.chunked_cross_entropy(head, hidden, LABELS, V),
    ):
        (gradient,) = torch.autograd.grad(loss, hidden)
        assert loss.dtype == torch.float32
        assert gradient.dtype == torch.bfloat16
        assert torch.allclose(loss, F.cross_entropy(head(hidden).float(), LABELS, reduction="sum"), rtol=1e-2)


def test_a_head_with_more_than_a_projection_is_not_linear() -> None:
    assert is_linear(PROJECTION, PROJECTION, D)
    assert not is_linear(scaled, PROJECTION, D)
    assert not is_linear(lambda h: torch.tanh(PROJECTION(h) / 1e4) * 1e4, PROJECTION, D)
    assert not is_linear(PROJECTION, None, D)
    assert not is_linear(PROJECTION, nn.Linear(D, V, device="meta"), D)
    assert not is_linear(PROJECTION, nn.Linear(D + 1, V), D)


def test_a_fused_head_is_still_the_same_linear_module() -> None:
    head = nn.Linear(D, V).requires_grad_(False)
    state, expected = head.state_dict(), head(HIDDEN)
    FusedHead.replace(head)
    assert isinstance(head, nn.Linear)
    assert head.state_dict().keys() == state.keys()
    assert torch.equal(head(HIDDEN), expected)
    assert torch.allclose(head(HIDDEN, LABELS), F.cross_entropy(expected, LABELS, reduction="sum"))
