"""From a batch to what the language model reads: embeddings of words and media, and the layout with its context.

Axes: b batch, k prefix length, t tokens, n embeddings of all media of a row, d width of word embeddings, s media
positions of one input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .context import Context
from .data.sequence import Batch
from .inputs import Input
from .language_model import FrozenLM
from .values import BatchLayout, map_tensors


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
