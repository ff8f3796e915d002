"""From a batch to what the language model reads: embeddings of words and media, and the layout with its context.

Axes: b batch, k prefix length, t tokens, n embeddings of all media of a row (of the functions for media: number of
media), d width of word embeddings, s media positions of one input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .context import Context
from .data.collator import Collator
from .data.sequence import Batch, to_device
from .errors import InputError
from .inputs import Input
from .language_model import FrozenLM
from .values import BatchLayout, Features, Media, map_tensors


def embed_batch(
    lm: FrozenLM, inputs: Mapping[str, Input], batch: Batch, run_all_inputs: bool
) -> tuple[Tensor, BatchLayout]:
    """Word embeddings with those of the media in their positions [b, t, d], and the layout with the media's context.

    Each input runs exactly once. With gradients or `run_all_inputs`, an input that the batch lacks runs on a dummy
    item, with weight zero in the result, and adapters that the batch does not need run without effect.
    """
    words = lm.embed(batch.tokens)
    flat = words.flatten(0, 1)
    context = batch.layout.context
    media = None if context is None else flat.new_zeros(context.media_index.numel(), flat.shape[-1])
    for name, input_module in inputs.items():
        if name in batch.media:
            values = input_module(batch.media[name]).values
            slots = batch.slots[name]
            rows = slots.media_index * values.shape[1] + slots.embedding_index
            filled = values.flatten(0, 1).index_select(0, rows).to(flat.dtype)
            flat = flat.index_copy(0, slots.positions, filled)
            if media is not None and slots.context_index is not None:
                media = media.index_copy(0, slots.context_index, filled)
        elif run_all_inputs or torch.is_grad_enabled():
            zero = zero_contribution(input_module, words)
            flat = flat + zero
            media = None if media is None else media + zero  # its gradient reaches the same modules as with media
    layout = _with_media(batch.layout, context, media)
    return flat.view_as(words), _run_all_adapters(layout) if run_all_inputs or torch.is_grad_enabled() else layout


def _with_media(layout: BatchLayout, context: Context | None, media: Tensor | None) -> BatchLayout:
    if context is None or media is None:
        return layout
    return replace(layout, context=replace(context, media=media.view(*context.media_index.shape, media.shape[-1])))


def _run_all_adapters(layout: BatchLayout) -> BatchLayout:
    """The layout for adapters that run for every batch, as every input does."""
    if layout.context is None or layout.context.presence is None:
        return layout
    presence = replace(layout.context.presence, runs_all=True)
    return replace(layout, context=replace(layout.context, presence=presence))


def zero_contribution(input_module: Input, like: Tensor) -> Tensor:
    """0, as a result of running an input on its dummy item, with the device and dtype of `like`."""
    encoder, dtype = input_module.encoder, next((p.dtype for p in input_module.parameters()), like.dtype)
    item = map_tensors(
        lambda x: x.to(like.device, dtype if x.is_floating_point() else None), encoder.stack([encoder.dummy_item()])
    )
    was_training = input_module.training
    input_module.eval()  # BatchNorm's statistics do not change
    zero: Tensor = 0 * input_module(item).values.sum().to(like.dtype)
    input_module.train(was_training)
    return zero


# Media only


class EmbeddedMedia(NamedTuple):
    """Some media of one input."""

    features: Features
    """[b, n, e]"""
    embeddings: Features
    """[b, k, d]"""


def media_of_one_input(collator: Collator, values: Sequence[Any], name: str | None = None) -> list[Media]:
    """Values as media of the input `name`; by default, of the one that accepts all of them. Raises `InputError`."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InputError(f"media: given a {type(values).__name__}; allowed: a list of media of one input")
    segments = [collator.segment(value) if name is None else Media(name, value) for value in values]
    media = [one for one in segments if isinstance(one, Media)]
    if not media or len(media) < len(segments) or len({one.name for one in media}) > 1:
        kinds = sorted({one.name if isinstance(one, Media) else "text" for one in segments}) or ["nothing"]
        raise InputError(f"media: given {', '.join(kinds)}; allowed: a list of media of one input")
    return media


def embed_each_batch(
    collator: Collator,
    inputs: Mapping[str, Input],
    media: Sequence[Media],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    leave_out: Callable[[int, InputError], None] | None = None,
) -> Iterator[EmbeddedMedia]:
    """Features and embeddings of media of one input, some at a time.

    `leave_out` is called with the index of a medium that cannot be read, and the error. Default: `InputError` is
    raised.
    """
    for first in range(0, len(media), batch_size):
        items = []
        for i, medium in enumerate(media[first : first + batch_size], first):
            try:
                items.append(collator.prepare(medium, f"medium {i}")[0])
            except InputError as error:
                if leave_out is None:
                    raise
                leave_out(i, error)
        if items:
            one = inputs[media[first].name]
            features = one.features(to_device(collator.stack(media[first].name, items), device, dtype))
            yield EmbeddedMedia(features, one.prefix(features))


def embed_media(
    collator: Collator,
    inputs: Mapping[str, Input],
    media: Sequence[Any],
    name: str | None,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Embeddings of media of one input [n, k, d], as `Magma.embed_media` gives them."""
    if batch_size < 1:
        raise InputError(f"batch_size: given {batch_size}; allowed: at least 1")
    segments = media_of_one_input(collator, media, name)
    found = [one.embeddings for one in embed_each_batch(collator, inputs, segments, batch_size, device, dtype)]
    longest = max(values.shape[1] for values, _ in found)
    return torch.cat([_pad(without_padding(one), longest) for one in found])


def without_padding(embeddings: Features) -> Tensor:
    """Values [b, k, d] with zeros in place of padding."""
    values, lengths = embeddings
    if lengths is None:
        return values
    real = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
    return torch.where(real[..., None], values, 0)


def _pad(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, 0, 0, length - values.shape[1]))
