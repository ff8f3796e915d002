"""Finds out how a tower is called, and how many features of which width it gives.

A tower is run on meta. If it reads values of its input, which tensors on meta do not have, a copy with random weights
and one layer of each list is run instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from magma_media.waveform import PADDING
from torch import Tensor, nn

from magma import PartError, error_summary

from .calling import call
from .samples import Sample
from .towers import Tower

MANY = 4000
"""A recording with more positions is a waveform."""
PROBE_SAMPLES, PROBE_FRAMES = 16_000, 320
"""Maximum length of a recording with which padding is tried."""
LARGE = 500_000_000
"""A model with more parameters is not copied with all its layers."""
SMALL = 3_000_000
"""A model with up to this number of parameters is its own small copy."""


@dataclass(frozen=True)
class Found:
    """How a tower is called, and what it gives for the sample."""

    sample: Sample
    length: int
    """n of the sample, special tokens included."""
    dim: int
    """e of each layer."""
    runs_on_meta: bool


def discover(trial: Trial, tries: Iterator[Sample]) -> Found:
    """How a tower is called: the first of some samples that it accepts.

    Raises `PartError` with the reason against each sample.
    """
    reasons: list[str] = []
    for sample in tries:
        try:
            found = trial.run(sample)
            trial.verify(sample)
            if sample.mask is None or trial.hides_padding(sample):
                return found
        except IndexError as error:
            if str(error).startswith("layer: "):
                raise PartError(str(error)) from None
            reasons.append(_reason(sample, error))
        except Exception as error:  # libraries raise errors of many types
            reasons.append(_reason(sample, error))
    shown = "; ".join(dict.fromkeys(reasons)) or "nothing that it could read is known"
    raise PartError(f'a tower of type "{trial.tower.architecture.model_type}" cannot be used: {shown}')


def _reason(sample: Sample, error: Exception) -> str:
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in sample.values.items())
    return f"with {shapes}: {error_summary(error) or type(error).__name__}"


class Trial:
    """Runs a tower on samples."""

    def __init__(self, tower: Tower, layers: Sequence[int] | None) -> None:
        self.tower, self.layers = tower, layers
        with torch.device("meta"):
            self.on_meta = tower.build().eval()
        self._small: Any = None

    def run(self, sample: Sample) -> Found:
        """Sizes of the features of a sample. Raises what the library raises."""
        try:
            return self._sizes(self.on_meta, sample, "meta")
        except Exception:  # perhaps it reads values
            try:
                return self._sizes(self.small, sample, "cpu")
            except Exception:  # perhaps its layers differ
                if not self._grow():
                    raise
            return self._sizes(self.small, sample, "cpu")

    def _grow(self) -> bool:
        """Replace the small copy by one with all layers, if it has fewer and that is not too large."""
        count = sum(parameter.numel() for parameter in self.on_meta.parameters())
        if len(list(self.small.parameters())) == len(list(self.on_meta.parameters())) or count > LARGE:
            return False
        self._small = small_copy(self.tower, cut=False)
        return True

    @property
    def small(self) -> Any:
        """A copy on the CPU with random weights, which has one layer of each list if it is large."""
        if self._small is None:
            self._small = small_copy(self.tower, self.layers is None)
        return self._small

    @torch.no_grad()
    def _sizes(self, model: Any, sample: Sample, device: str) -> Found:
        batch = [x[None].to(device) for x in sample.values.values()]
        with torch.device(device):
            found = call(model, sample, batch, self.layers)
        (values, _), *_ = found
        if len({len(x) for x, _ in found}) > 1 or len({x.shape[1] for x, _ in found}) > 1:
            raise ValueError("its layers have different numbers of features")
        return Found(sample, values.shape[1], sum(x.shape[2] for x, _ in found), device == "meta")

    def length(self, sample: Sample, item: Sequence[Tensor]) -> int:
        """Number of features of an item, special tokens included."""
        return self.run(replace(sample, values=dict(zip(sample.values, item, strict=True)))).length

    @torch.no_grad()
    def verify(self, sample: Sample) -> None:
        """Raise `ValueError` unless features depend on their input, and only on it."""
        draw = torch.Generator().manual_seed(0)
        others = [torch.stack([x, x]) for x in list(sample.values.values())[1:]]
        main = torch.randn(2, *sample.main.shape, generator=draw)
        if sample.mask and sample.axis is not None:  # a part is enough
            main = main.narrow(sample.axis + 1, 0, _probe_length(sample))
        try:
            runs = [call(self.small, sample, [main, *others], self.layers)[0][0] for _ in range(2)]
            single = call(self.small, sample, [x[1:] for x in (main, *others)], self.layers)[0][0]
        except Exception:  # random numbers are no input of it, or the copy lacks a layer
            return
        if not torch.allclose(runs[0], runs[1], rtol=1e-3, atol=1e-4):
            raise ValueError("its features are not repeatable")
        if not torch.allclose(runs[0][1:], single, rtol=1e-2, atol=1e-3 * float(single.abs().max())):
            raise ValueError("its features depend on the other rows of a batch")
        if torch.equal(runs[0][0], runs[0][1]):
            raise ValueError("its features do not depend on its input")

    @torch.no_grad()
    def hides_padding(self, sample: Sample) -> bool:
        """Whether the features of a recording are the same beside a longer one. Raises what the library raises."""
        axis = sample.axis
        assert axis is not None
        length = _probe_length(sample)
        shape = list(sample.main.shape)
        shape[axis] = length
        long = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        short = long.narrow(axis, 0, length * 5 // 8)
        padded = torch.full_like(long, PADDING)
        padded.narrow(axis, 0, length * 5 // 8).copy_(short)
        others = list(sample.values.values())[1:]
        (single, _), *_ = call(self.small, sample, [short[None], *(x[None] for x in others)], self.layers)
        rows = [torch.stack([padded, long]), *(torch.stack([x, x]) for x in others)]
        (both, _), *_ = call(self.small, sample, rows, self.layers)
        n = single.shape[1]
        return both.shape[1] >= n and bool(torch.allclose(both[0, :n], single[0], rtol=1e-3, atol=1e-4))

    def unused(self, sample: Sample, select: Callable[[Tensor], Tensor]) -> frozenset[str]:
        """Names of parameters that no gradient of the features reaches.

        Args:
            sample: An item.
            select: Takes the features that are used.
        """
        for model, device in ((self.on_meta, "meta"), (self.small, "cpu")):
            batch = [x[None].to(device) for x in sample.values.values()]
            try:
                with torch.enable_grad(), torch.device(device):
                    found = call(model, sample, batch, self.layers)
                    total = sum(select(values).float().sum() for values, _ in found)
                    names, tensors = zip(*model.named_parameters(), strict=True)
                    gradients = torch.autograd.grad(total, tensors, allow_unused=True)
            except Exception:  # perhaps it reads values
                continue
            return (
                frozenset(_general(n) for n, g in zip(names, gradients, strict=True) if g is None)
                - {_general(n) for n, g in zip(names, gradients, strict=True) if g is not None}
                if model is not self.on_meta
                else frozenset(n for n, g in zip(names, gradients, strict=True) if g is None)
            )
        return frozenset()

    @staticmethod
    def is_unused(name: str, unused: frozenset[str]) -> bool:
        """Whether a parameter is one of `unused`."""
        return name in unused or _general(name) in unused


def _probe_length(sample: Sample) -> int:
    """Length of a recording with which a tower is tried."""
    assert sample.axis is not None
    length = sample.main.shape[sample.axis]
    return min(length, PROBE_SAMPLES if length > MANY else PROBE_FRAMES)


def _general(name: str) -> str:
    """The name of a parameter without the number of its layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


def small_copy(tower: Tower, cut: bool) -> Any:
    """The tower with random weights on the CPU in eval mode.

    Args:
        tower: The tower.
        cut: Whether a large one has only the last layer of each list.
    """
    from transformers.initialization import no_init_weights

    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with no_init_weights():
            model = tower.build()
        if cut and sum(parameter.numel() for parameter in model.parameters()) > SMALL:
            for module in list(model.modules()):
                if isinstance(module, nn.ModuleList) and len({type(one) for one in module}) == 1:
                    del module[:-1]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
    return model.eval()
