"""Checks of a part with weights. Moving to a device is checked with `meta`, which every machine has."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...interfaces import FrozenLM
from ...meta import RunOnMeta
from ...values import map_tensors, tensors_in
from ..part_of import check_nested_parts, construct
from .losses import auxiliary_losses
from .subject import Check, PartUnderTest, require, same


def built_on_meta(subject: PartUnderTest) -> None:
    """`__init__` and `forward` work under `torch.device("meta")`, where no weight takes memory."""
    with torch.device("meta"):
        module: Any = construct(subject.part, subject.config(), *subject.context)
    held = [name for name, p in module.named_parameters() if not p.is_meta]
    require(not held, f"these take memory under torch.device('meta'): {', '.join(held[:3])}")
    (given,) = subject.inputs(subject.make())
    with RunOnMeta():
        found = subject.call(module.eval(), map_tensors(lambda x: x.to("meta"), given))
    require(found.is_meta, f"forward on meta gave a tensor on {found.device}")


def finite(subject: PartUnderTest) -> None:
    """Values are finite."""
    module = subject.make()
    (given,) = subject.inputs(module)
    require(bool(subject.call(module, given).isfinite().all()), "`forward` gave values that are not finite")


def deterministic_in_eval(subject: PartUnderTest) -> None:
    """In eval mode, the same input gives the same bits twice."""
    module = subject.make()
    (given,) = subject.inputs(module)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(subject.call(module, map_tensors(Tensor.clone, given)).detach().clone())
    same(found[0], found[1], "two passes in eval mode over one input")


def input_unchanged(subject: PartUnderTest) -> None:
    """`forward` does not modify its input."""
    module = subject.make()
    (given,) = subject.inputs(module)
    before = map_tensors(Tensor.clone, given)
    with torch.no_grad():
        subject.call(module, given)
    unchanged = all(map(torch.equal, tensors_in(given), tensors_in(before)))
    require(unchanged, "`forward` changed its input in place")


def rows_do_not_mix(subject: PartUnderTest) -> None:
    """The output of a row does not depend on the other rows of a batch."""
    module = subject.make()
    (given,) = subject.inputs(module)
    together = subject.call(module, given)
    for row in range(len(together)):
        single = subject.call(module, map_tensors(partial(_row, row), given), first_row=row)
        same(single[0], together[row], f"row {row} by itself and in a batch", 1e-4)


def _row(row: int, x: Tensor) -> Tensor:
    return x[row : row + 1]


def any_dtype(subject: PartUnderTest) -> None:
    """After `.to(torch.bfloat16)`, a bfloat16 input gives bfloat16 values."""
    module = subject.make()
    (given,) = subject.inputs(module)
    module.to(torch.bfloat16)
    found = subject.call(module, map_tensors(lambda x: x.bfloat16() if x.is_floating_point() else x, given))
    require(found.dtype == torch.bfloat16, f"in bfloat16, `forward` gave {found.dtype}")
    require(bool(found.isfinite().all()), "in bfloat16, `forward` gave values that are not finite")


def any_device(subject: PartUnderTest) -> None:
    """`.to(device)` moves everything that `forward` needs: tensors have to be parameters or buffers."""
    module = subject.make()
    (given,) = subject.inputs(module)
    try:
        module.to("meta")
        with RunOnMeta():
            found = subject.call(module, map_tensors(lambda x: x.to("meta"), given))
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"moved to another device, `forward` fails: {error}") from error
    require(found.is_meta, f"moved to another device, `forward` gave a tensor on {found.device}")


def gradient_flows(subject: PartUnderTest) -> None:
    """In training, every trainable parameter gets a finite gradient; a language model passes gradients to its input."""
    module = subject.make()
    (given,) = subject.inputs(module)
    if isinstance(module, FrozenLM):
        module.freeze()
        given.requires_grad_()
    elif not any(p.requires_grad for p in module.parameters()):
        return
    module.train()
    total = subject.call(module, given).float().square().mean()
    sum(auxiliary_losses(subject, module, given).values(), total).backward()  # type: ignore[no-untyped-call]  # torch's
    if isinstance(module, FrozenLM):
        require(given.grad is not None and bool(given.grad.abs().sum() > 0), "no gradient reaches the embeddings")
        return
    for name, p in module.named_parameters():
        if p.requires_grad:
            require(p.grad is not None, f"{name} gets no gradient: neither output nor losses depend on it")
            assert p.grad is not None
            require(bool(p.grad.isfinite().all()), f"the gradient of {name} is not finite")


def frozen_for_good(subject: PartUnderTest) -> None:
    """After `freeze`, `train()` enables neither gradients nor dropout nor running averages."""
    module = subject.make()
    (given,) = subject.inputs(module)
    module.freeze()
    module.train()
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    require(not trainable, f"after freeze, these still require gradients: {', '.join(trainable[:3])}")
    training = [name or "itself" for name, m in module.named_modules() if m.training]
    require(not training, f"after freeze, these are in training mode after train(): {', '.join(training[:3])}")
    before = {name: t.clone() for name, t in module.state_dict().items()}
    found = subject.call(module, given)
    require(not found.requires_grad, "after freeze, the output requires a gradient")
    for name, t in module.state_dict().items():
        require(torch.equal(t, before[name]), f"after freeze, a forward pass changed {name}")


def state_is_saved(subject: PartUnderTest) -> None:
    """A second instance with the same `state_dict` gives the same values, also after a training step."""
    module, other = subject.make(0), subject.make(1)
    (given,) = subject.inputs(module)
    if not isinstance(module, FrozenLM):
        module.train()
        wanted = [p for p in module.parameters() if p.requires_grad]
        if wanted:
            subject.call(module, given).float().square().mean().backward()  # type: ignore[no-untyped-call]  # torch's
            with torch.no_grad():
                for p in wanted:
                    p -= 0.01 * (p.grad if p.grad is not None else 1)
        module.eval()
    with torch.no_grad():
        expected = subject.call(module, given)
        other.load_state_dict({name: t.clone() for name, t in module.state_dict().items()})
        same(subject.call(other, given), expected, "an instance with the same state_dict", 1e-6)


def nested_parts_found(subject: PartUnderTest) -> None:
    """Each part in the config is the submodule with the name of its field, made with `build`."""
    check_nested_parts(subject.make())


def nested_parts_freeze(subject: PartUnderTest) -> None:
    """A frozen part inside a trained one stays frozen: `train()` and `forward` change nothing in it."""
    for name in subject.make().nested_parts():
        module = subject.make()
        part = module.nested_parts()[name]
        (given,) = subject.inputs(module)
        part.freeze()
        module.train()
        training = [inner or "itself" for inner, m in part.named_modules() if m.training]
        require(not training, f"{name} is frozen, and these are in training mode: {', '.join(training[:3])}")
        before = {key: t.clone() for key, t in part.state_dict().items()}
        found = subject.call(module, given)
        if found.requires_grad:
            found.float().square().mean().backward()  # type: ignore[no-untyped-call]  # torch's
        learning = [key for key, p in part.named_parameters() if p.grad is not None]
        require(not learning, f"{name} is frozen, and these get a gradient: {', '.join(learning[:3])}")
        for key, t in part.state_dict().items():
            require(torch.equal(t, before[key]), f"{name} is frozen, and a forward pass changed {key}")


CHECKS: tuple[Check, ...] = (
    built_on_meta,
    finite,
    deterministic_in_eval,
    input_unchanged,
    rows_do_not_mix,
    any_dtype,
    any_device,
    gradient_flows,
    frozen_for_good,
    state_is_saved,
    nested_parts_found,
    nested_parts_freeze,
)
