"""Auxiliary losses: what the trained parts of a model add to its language-model loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from .data.sequence import Batch
from .errors import PartError
from .inputs import Input
from .interfaces import Module
from .losses import LossContext
from .values import Features


class Losses(NamedTuple):
    """The losses of one batch. It is a tuple because ZeRO-3 finds tensors only in tuples."""

    lm: Tensor
    """The cross-entropy, summed over the targets."""
    auxiliary: dict[str, Tensor]
    """The auxiliary losses, without weights, in float32, by `PATH.NAME`."""


class Outputs(NamedTuple):
    """What the encoder and the prefix of an input gave in a forward pass."""

    features: Features
    embeddings: Features


def parts_with_losses(parts: Mapping[str, Sequence[Module]]) -> dict[str, Sequence[Module]]:
    """The trained parts that declare auxiliary losses, by path."""
    trained = {path: modules for path, modules in parts.items() if modules and not modules[0].frozen}
    return {path: modules for path, modules in trained.items() if modules[0].auxiliary_losses}


def input_of(path: str) -> str:
    """The input that the part at a path belongs to; empty for an adapter or a head."""
    table, _, rest = path.partition(".")
    return rest.partition(".")[0] if table == "inputs" else ""


@contextmanager
def recorded_outputs(inputs: Mapping[str, Input]) -> Iterator[dict[str, Outputs]]:
    """A dictionary that is filled when the block ends: the outputs of each input that ran in it."""
    found: dict[str, Outputs] = {}
    last: dict[Any, Outputs] = {}
    hooks = [
        one.prefix.register_forward_hook(lambda module, given, out: last.update({module: Outputs(given[0], out)}))
        for one in inputs.values()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    found |= {name: last[one.prefix] for name, one in inputs.items() if one.prefix in last}


def auxiliary_losses(
    parts: Mapping[str, Sequence[Module]],
    batch: Batch,
    outputs: Mapping[str, Outputs],
    hidden: Tensor,
    target_embeddings: Tensor | None,
) -> dict[str, Tensor]:
    """The losses of all trained parts, by `PATH.NAME`. Those of several adapters of one part are added up.

    Args:
        parts: Every part of the model, by path.
        batch: The batch of the forward pass.
        outputs: What each input gave in it.
        hidden: Hidden states [m, d] of the scored positions.
        target_embeddings: Word embeddings [m, d] of the labels; None if these are classes.

    Raises:
        PartError: A part returns something else than it declares.
    """
    found: dict[str, Tensor] = {}
    media = {
        name: _sequences(batch, _first_positions(batch, name)) if name in batch.media else batch.labels.new_zeros(1)
        for name in outputs
    }
    for path, modules in parts_with_losses(parts).items():
        if input_of(path) not in ("", *outputs):  # without gradients, no dummy item runs
            continue
        context = LossContext(
            input=input_of(path),
            features={name: one.features for name, one in outputs.items()},
            embeddings={name: one.embeddings for name, one in outputs.items()},
            media_sequences=media,
            hidden=hidden,
            labels=batch.labels,
            target_sequences=_sequences(batch, batch.layout.scored),
            target_embeddings=target_embeddings,
        )
        is_dummy = context.input != "" and context.input not in batch.media
        for module in modules:
            for name, value in _losses_of(path, module, context, is_dummy).items():
                key = f"{path}.{name}"
                found[key] = found[key] + value.float() if key in found else value.float()
    return found


def _losses_of(path: str, module: Module, context: LossContext, is_dummy: bool) -> dict[str, Tensor]:
    """What `auxiliary_loss` returns. It runs as a forward pass of the module, so that ZeRO-3 gathers its weights."""
    attributes = vars(module)
    forward = attributes.get("forward")  # activation checkpointing sets it
    modes = {one: one.training for one in module.modules()} if is_dummy else {}
    attributes["forward"] = module.auxiliary_loss
    for one in modes:
        one.training = False  # no buffer changes
    try:
        losses: dict[str, Tensor] = nn.Module.__call__(module, context)  # adapters have their own `__call__`
    finally:
        del attributes["forward"]
        attributes |= {"forward": forward} if forward else {}
        for one, mode in modes.items():
            one.training = mode
    if problem := losses_problem(module, losses):
        raise PartError(f"{path} ({module.name}): {problem}")
    return losses


def losses_problem(module: Module, losses: Any) -> str:
    """How the result of `auxiliary_loss` differs from what it has to be; empty if it does not."""
    declared = ", ".join(module.auxiliary_losses)
    if not isinstance(losses, Mapping) or losses.keys() != set(module.auxiliary_losses):
        given = ", ".join(map(str, losses)) or "nothing" if isinstance(losses, Mapping) else type(losses).__name__
        return f"`auxiliary_loss` gave {given}; allowed: the names in `auxiliary_losses`: {declared}"
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            given = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            return f"`auxiliary_loss` gave {given} for {name}; allowed: a scalar tensor of floating point"
    return ""


def _first_positions(batch: Batch, name: str) -> Tensor:
    """[b] flat index of the first position of each medium of an input."""
    slots = batch.slots[name]
    return slots.positions[slots.embedding_index == 0]


def _sequences(batch: Batch, positions: Tensor) -> Tensor:
    """Number of the sequence at each flat position. Packed rows have at most as many sequences as columns."""
    width = batch.tokens.shape[1]
    rows, ids = positions // width, batch.layout.sequence_ids
    return rows if ids is None else rows * width + ids.flatten()[positions]
