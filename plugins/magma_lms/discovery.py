"""The structure of a model from its configuration only, and the proof at load time that it holds.

Axes: b batch, t tokens, d width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from magma import PartError, error_summary

from .attaching import attach
from .decoder import Decoder, Head
from .linear import is_linear
from .loading import build_model
from .reduced import reductions
from .structure import Structure, find_structure, probe_ids
from .weights import Source

MAX_PARAMETERS = 400_000_000
"""A reduced copy with more parameters is not built."""
SMALL = 10_000_000
"""A model with up to this number of parameters is its own small copy, but for its windows."""
_known: dict[str, Structure] = {}


def discover(source: Source, architecture: Any, model: Any) -> Structure:
    """The structure of a model, which may be on meta.

    What needs values is found out on a small copy of the configuration with random weights.

    Args:
        source: Where the model comes from; its own code may be needed to build it.
        architecture: Its configuration.
        model: The model.

    Raises:
        PartError: The model cannot be used, for the reason that the message gives.
    """
    key = json.dumps(architecture.to_dict(), sort_keys=True, default=str)
    if key not in _known:
        # A plan runs on meta. The random numbers of the caller do not depend on whether the structure is known already.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            found = _find(source, architecture, model)
        _known[key] = _scaled(found, architecture, model)
    return _known[key]


def _find(source: Source, architecture: Any, model: Any) -> tuple[Structure, Any]:
    first: PartError | None = None
    small_enough = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
    for reduced in reductions(architecture, only_windows=small_enough):
        try:
            small = _build(source, reduced)
        except Exception as error:  # a reduction that the library does not accept
            first = first or PartError(f"lm: no small copy of it can be built: {error_summary(error)}")
            continue
        if small is None:
            continue
        try:
            with torch.device("cpu"):  # the model itself may be built on meta
                structure = find_structure(small)
            _check_paths(structure, small, model)
            structure = _with_linears_of(structure, model)
        except PartError as error:
            first = first or error
        except Exception as error:  # libraries raise errors of many types
            first = first or PartError(f"lm: transformers cannot run a small copy of it: {error_summary(error)}")
        else:
            return structure, reduced
    raise first or PartError("lm: no small copy of it can be built, on which its structure is found out")


def _build(source: Source, reduced: Any) -> Any:
    """The model in eval mode with random weights, biases and norms included; None if it is too large."""
    with torch.device("meta"):
        if sum(p.numel() for p in build_model(source, reduced).parameters()) > MAX_PARAMETERS:
            return None
    torch.manual_seed(0)
    small = build_model(source, reduced).eval()
    with torch.no_grad():
        for parameter in small.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=min(0.2, 2 * parameter.shape[-1] ** -0.5))
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return small


def _check_paths(structure: Structure, small: nn.Module, model: nn.Module) -> None:
    """Raise `PartError` unless the model has the same modules as the small copy."""
    paths = {structure.decoder, *structure.blocks}
    paths |= {path for place in structure.sublayers for path in (place.entry, place.exit)}
    theirs, ours = dict(model.named_modules()), dict(small.named_modules())
    for path in sorted(paths):
        if path not in theirs or type(theirs[path]) is not type(ours[path]):
            raise PartError(f"lm: a small copy of it has another structure: {path}")


def _with_linears_of(structure: Structure, model: nn.Module) -> Structure:
    """The structure with only those linear layers that the model has too."""
    theirs = dict(model.named_modules())
    kept = [place for place in structure.linears if place.entry in theirs and is_linear(theirs[place.entry])]
    return replace(structure, linears=tuple(kept))


def _scaled(found: tuple[Structure, Any], architecture: Any, model: Any) -> Structure:
    """The structure with the widths of the model."""
    structure, reduced = found
    width, small = (getattr(config.get_text_config(), "hidden_size", None) for config in (architecture, reduced))
    embedding = int(model.get_input_embeddings().weight.shape[1])

    def scale(size: int) -> int:
        if size == structure.embedding_dim and size != small:
            return embedding
        return int(size // small * width) if small and size % small == 0 else size

    return replace(
        structure,
        embedding_dim=embedding,
        dim=scale(structure.dim),
        block_dim=scale(structure.block_dim),
        output_dim=scale(structure.output_dim),
    )


class _Identity(nn.Module):
    """An adapter that changes nothing."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, d] to [b, t, d]."""
        return sublayer(x)


@torch.no_grad()
def prove(model: Any, structure: Structure) -> None:
    """Show on a few tokens that a model computes what transformers computes.

    Args:
        model: The model with its weights.
        structure: How it is used.

    Raises:
        PartError: Logits are not finite or differ from those of transformers, or adapters that change nothing change a
            bit.
    """
    was_training = model.training
    model.eval()
    proof = _Proof(model, structure)
    try:
        proof.compare_logits()
        proof.compare_adapters()
    finally:
        model.train(was_training)


class _Proof:
    def __init__(self, model: Any, structure: Structure) -> None:
        self.model, self.structure = model, structure
        self.ids = probe_ids(model, rows=2, columns=7).to(model.get_input_embeddings().weight.device)

    @cached_property
    def hidden(self) -> Tensor:
        """[2, 7, d]."""
        return self._hidden()

    def _hidden(self) -> Tensor:
        decoder = Decoder(self.model, self.structure.decoder, self.structure.by_ids)
        return decoder(self.model.get_input_embeddings()(self.ids), self.ids)

    def compare_logits(self) -> None:
        head = Head(self.model, self.structure.decoder, self.structure.output)
        ours = torch.stack([head(row) for row in self.hidden]).float()
        theirs = self.model(input_ids=self.ids).logits.float()
        if not bool(theirs.isfinite().all()):
            raise PartError("lm: its logits are not finite: the weights are damaged, or their precision is too low")
        scale = float(theirs.abs().max())
        allowed = max(1e-4, 8 * torch.finfo(self.hidden.dtype).eps) * scale
        if ours.shape != theirs.shape or float((ours - theirs).abs().max()) > allowed:
            raise PartError(
                f"lm: its logits differ from those of transformers by {float((ours - theirs).abs().max()):.2g}; "
                f"allowed: {allowed:.2g}. Please report this model type: {self.model.config.model_type}"
            )

    def compare_adapters(self) -> None:
        places = enumerate(self.structure.places)
        undo = [attach(self.model, place, _Identity(), f"identity_{i}") for i, place in places]  # type: ignore[arg-type]
        try:
            same = torch.equal(self._hidden(), self.hidden)
        finally:
            for remove in reversed(undo):
                remove()
        if not same:
            raise PartError(
                "lm: adapters that change nothing change its hidden states. "
                f"Please report this model type: {self.model.config.model_type}"
            )
