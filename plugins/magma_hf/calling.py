"""Calls a tower on a batch and reads its features.

Axes: b batch, n features, e width, p patches.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from magma_media.waveform import PADDING
from torch import Tensor, nn

from .outputs import as_sequence, hidden_states, last_hidden_state
from .padding import keeps_padding
from .samples import INVERTED, SIZES, Sample
from .sizes import patch_size


def call(
    tower: Any, sample: Sample, batch: Sequence[Tensor], layers: Sequence[int] | None
) -> list[tuple[Tensor, Tensor | None]]:
    """Features of a batch, for each layer.

    Args:
        tower: The model of transformers.
        sample: An item, which says how the tower is called.
        batch: The arguments of the sample with an axis for rows: [b, ...].
        layers: Indices of hidden states. None: the output.

    Returns:
        Features [b, n, e] and their numbers [b], or None if there is no padding.

    Raises:
        ValueError: The output has no features.
    """
    architecture = getattr(tower, "config", None)
    given = dict(zip(sample.values, batch, strict=True))
    rows = len(batch[0])
    if sample.mask:
        given = _masked(given, sample, keeps_padding(tower))
    counts = None
    if sample.packed:
        counts = _patch_counts(given[sample.packed], sample)
        given = _packed(given, counts, sample)
    options: dict[str, Any] = {name: _option(value, rows) for name, value in sample.options.items()}
    found = [_output(tower, given, options)] if layers is None else _layers(tower, given, options, layers)
    if any(one is None for one in found):
        raise ValueError("its output has no features")
    if counts is None and found[0] is not None and found[0].shape[0] != max(rows, 2):
        counts = _valid_patches(given, sample, architecture)
    if counts is not None:
        return [_unpacked(one, counts) for one in found if one is not None]
    return [(as_sequence(one, architecture, rows), None) for one in found if one is not None]


def valid_positions(x: Tensor, axis: int) -> Tensor:
    """Where a batch of recordings [b, ...] has no `PADDING` along an axis of its items: [b, s or f], boolean."""
    others = tuple(0 for _ in range(x.ndim - 2))
    return x.movedim(axis + 1, 1)[(slice(None), slice(None), *others)] != PADDING


def _masked(given: dict[str, Tensor], sample: Sample, keeps: bool) -> dict[str, Tensor]:
    """The arguments with zeros in place of `PADDING`, and with the mask."""
    main = next(iter(given))
    x = given[main]
    if x.is_meta:  # the library reads the values of a mask
        return given
    assert sample.axis is not None
    assert sample.mask is not None
    valid = valid_positions(x, sample.axis)
    mask = ~valid if sample.mask in INVERTED else valid
    return {**given, main: x if keeps else x.masked_fill(x == PADDING, 0), sample.mask: mask.to(sample.mask_dtype)}


def _option(value: Any, rows: int) -> Any:
    return value.expand(rows, *value.shape[1:]) if isinstance(value, Tensor) else value


def _output(tower: Any, given: dict[str, Tensor], options: dict[str, Any]) -> Tensor | None:
    """The features of the output; if it has only results of a head, the last hidden state."""
    output = tower(**given, **options)
    found = last_hidden_state(output)
    if found is None and "output_hidden_states" in inspect.signature(type(tower).forward).parameters:
        states = hidden_states(tower(**given, **options, output_hidden_states=True))
        found = states[-1] if states else None
    return found


def _layers(
    tower: Any, given: dict[str, Tensor], options: dict[str, Any], layers: Sequence[int]
) -> list[Tensor | None]:
    """Hidden states, from the library where it returns them, and otherwise from the layers themselves."""
    with recorded_layers(tower) as recorded:
        try:
            output = tower(**given, **options, output_hidden_states=True)
        except TypeError:
            output = tower(**given, **options)
    states = hidden_states(output) or tuple(recorded)
    if not states:
        raise ValueError("it has no list of layers")
    lowest, highest = -len(states), len(states) - 1
    if wrong := [layer for layer in layers if not lowest <= layer <= highest]:
        raise IndexError(f"layer: given {wrong[0]}; allowed: {lowest} to {highest}")
    return [states[layer] for layer in layers]


@contextmanager
def recorded_layers(tower: nn.Module) -> Iterator[list[Tensor]]:
    """A context manager: the input of the first layer and the outputs of all layers of each forward pass inside it."""
    found: list[Tensor] = []
    blocks = layers_of(tower)

    def before(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = given[0] if given else named.get("hidden_states")
        if isinstance(first, Tensor):
            found.append(first)

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            found.append(first)

    handles = [block.register_forward_hook(after) for block in blocks]
    if blocks:
        handles.append(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def layers_of(tower: nn.Module) -> list[nn.Module]:
    """The layers of a tower: the longest list of modules of one type."""
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and len({type(one) for one in m}) == 1]
    return list(max(lists, key=len, default=nn.ModuleList()))


def _patch_counts(grid: Tensor, sample: Sample) -> list[int]:
    """The number of patches of each row; on meta, that of the sample."""
    if grid.is_meta:
        assert sample.packed is not None
        return [int(sample.values[sample.packed].prod())] * len(grid)
    counts: list[int] = grid.prod(-1).tolist()
    return counts


def _valid_patches(given: dict[str, Tensor], sample: Sample, architecture: Any) -> list[int] | None:
    """The number of patches of each row, for a tower whose output has the patches of all rows one after the other.

    It is known from the sizes of images, or from positions, which are negative at padding. None: from neither.
    """
    name = next((name for name in given if name in SIZES or name.endswith("position_ids")), None)
    patch = patch_size(architecture)
    if name is None or patch is None:
        return None
    x = given[name]
    x = sample.values[name][None].expand(len(x), *sample.values[name].shape) if x.is_meta else x
    counts = (x // torch.tensor(patch, device=x.device)).prod(-1) if name in SIZES else (x >= 0).all(-1).sum(-1)
    found: list[int] = counts.tolist()
    return found


def _packed(given: dict[str, Tensor], counts: Sequence[int], sample: Sample) -> dict[str, Tensor]:
    """The patches of all rows as one sequence: [b, p, ...] to [sum of p, ...]."""
    main = next(iter(given))
    axis = sample.pack_axis
    assert sample.packed is not None
    unit = sample.main.shape[axis] // int(sample.values[sample.packed].prod())
    rows = (row.narrow(axis, 0, unit * count) for row, count in zip(given[main], counts, strict=True))
    patches = torch.cat(list(rows), dim=axis)
    return {**given, main: patches[None] if sample.row_axis else patches}


def _unpacked(found: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Features [sum of n, e] to [b, n, e] and n of each row. Each row has a constant share of its patches."""
    flat = found.flatten(0, -2)
    if len(flat) * max(1, sum(counts) // max(1, len(flat))) != sum(counts):
        raise ValueError(f"{sum(counts)} patches give {len(flat)} features")
    share = sum(counts) // len(flat)
    sizes = [count // share for count in counts]
    rows = nn.utils.rnn.pad_sequence(list(flat.split(sizes)), batch_first=True)
    return rows, torch.tensor(sizes, device=flat.device)
