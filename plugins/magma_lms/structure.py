"""What there is to know about a model of transformers to use it as a frozen language model; found without any name.

Axes: b batch, t tokens, e width of the word embeddings, d width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from magma import PartError, error_summary

from .decoder import Decoder, Head
from .decoding import DecodingMode
from .probes import (
    Probe,
    find_linear_mode,
    find_mode,
    find_offset,
    gradient_problem,
    gradient_reaches,
    is_causal,
    packs,
    same,
)
from .sites import Place, find_block_places, find_blocks, find_linear_places, find_sublayers
from .tracing import Call, first_tensor, trace


@dataclass(frozen=True)
class Structure:
    """Paths of modules, and how the model behaves."""

    decoder: str
    by_ids: bool
    """Whether the decoder needs token ids besides the embeddings."""
    blocks: tuple[str, ...]
    sublayers: tuple[Place, ...]
    block_places: tuple[Place, ...]
    """The blocks around which an adapter can act."""
    linears: tuple[Place, ...]
    """The linear layers of the blocks."""
    embedding_dim: int
    """Width of the word embeddings."""
    dim: int
    """Width of the sublayers."""
    block_dim: int
    """Width of the hidden states between blocks."""
    output_dim: int
    """Width of the decoder's output."""
    packs: bool
    """Whether positions that start again separate packed sequences."""
    mode: DecodingMode
    linear_mode: DecodingMode
    """As `mode`, with adapters at linear layers."""
    output: Any
    """An output of the decoder of the small model, for its form."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Every place of an adapter."""
        return (*self.sublayers, *self.block_places, *self.linears)


def find_structure(model: Any) -> Structure:
    """The structure of a small model with random weights, in float32. Raises `PartError` with the reason."""
    ids = probe_ids(model, rows=3, columns=13)
    with torch.no_grad():
        options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        rows, columns = 2, 7
        root = trace(model, lambda: model(input_ids=ids[:rows, :columns], **options))
        decoder_call = find_decoder(model, root)
        logits = model(input_ids=ids).logits
        decoder = _choose_decoder(model, decoder_call, ids, logits)
        probe = Probe(decoder, ids)
        if not is_causal(probe):
            raise PartError("lm: it is not causal: positions depend on later ones, or on other rows of a batch")
        output = first_tensor(decoder_call.output)
        assert output is not None
        blocks = find_blocks(model, decoder_call)
        sublayers = find_sublayers(blocks, output.shape[-1], rows)
        block_output = first_tensor(blocks[0].output) if blocks else None
        if problem := gradient_problem(probe):
            raise PartError(f"lm: it cannot be trained with: no gradient reaches its input: {problem}")
        pad = getattr(model.config, "pad_token_id", None)
        offset = find_offset(probe, (0, 1, 2) if pad is None else (0, pad + 1))
        linears = find_linear_places(blocks, rows, columns)
        reached = gradient_reaches(probe, [model.get_submodule(place.entry) for place in linears])
        linears = [place for place, flag in zip(linears, reached, strict=True) if flag]
        packed, mode = packs(probe, offset), find_mode(probe, offset)
        linear_mode = mode
        if not packed:  # otherwise there is only attention, which does not read padding
            linear_mode = find_linear_mode(probe, mode, [model.get_submodule(place.entry) for place in linears])
        return Structure(
            decoder_call.path,
            decoder.by_ids,
            tuple(dict.fromkeys(block.path for block in blocks)),
            tuple(sublayers),
            tuple(find_block_places(blocks, rows)),
            tuple(linears),
            probe.embeddings.shape[-1],
            _dim(blocks, sublayers) or output.shape[-1],
            output.shape[-1] if block_output is None else block_output.shape[-1],
            output.shape[-1],
            packed,
            mode,
            linear_mode,
            decoder_call.output,
        )


def probe_ids(model: Any, rows: int, columns: int) -> Tensor:
    """Random token ids [rows, columns], all different if possible, without special tokens."""
    config = model.config.get_text_config()
    values = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep", "cls", "mask")]
    special = {token for value in values for token in (value if isinstance(value, list) else [value])}
    count = model.get_input_embeddings().weight.shape[0]
    allowed = [i for i in range(min(count, 4096)) if i not in special] or list(range(count))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(allowed), generator=generator).repeat(1 + rows * columns // len(allowed))
    return torch.tensor(allowed)[order[: rows * columns]].view(rows, columns)


def find_decoder(model: Any, root: Call) -> Call:
    """The call of the decoder: the first one of the model itself that is not its word table."""
    table = model.get_input_embeddings()
    calls = [call for call in root.inner if call.module is not table]
    if not calls:
        raise PartError("lm: it has no decoder: its forward pass calls no module")
    return calls[0]


def _choose_decoder(model: Any, call: Call, ids: Tensor, logits: Tensor) -> Decoder:
    """The decoder, with token ids if it needs them besides the embeddings."""
    head = Head(model, call.path, call.output)
    found: list[Decoder] = []
    reasons = []
    for by_ids in (False, True):
        decoder = Decoder(model, call.path, by_ids)
        try:
            hidden = decoder(decoder.table(ids), ids)
            same_logits = same(torch.stack([head(row) for row in hidden]), logits)
        except Exception as error:  # libraries raise errors of many types
            reasons.append(error_summary(error))
            continue
        if same_logits:
            found.append(decoder)
        reasons.append("its logits differ from those with token ids")
    if not found:
        raise PartError(f"lm: it cannot be used with embeddings as input: {reasons[0]}")
    if len(found) == 2 and _agree(found, ids):
        found.pop()
    return found[-1]


def _agree(decoders: Sequence[Decoder], ids: Tensor) -> bool:
    """Whether decoders give the same for embeddings that are no words; some look for the ids of the embeddings."""
    words = decoders[0].table(ids)
    embeddings = torch.cat([words[:, :2], words[:, :3].roll(1, -1) * 0.9, words[:, 5:]], dim=1)
    try:
        first, second = (decoder(embeddings, ids) for decoder in decoders)
    except Exception:  # as above
        return False
    return same(first, second)


def _dim(blocks: Sequence[Call], sublayers: Sequence[Place]) -> int | None:
    """The width of the sublayers."""
    exits = {place.exit for place in sublayers}
    calls = (call for block in blocks for call in (block, *block.everything_inside()) if call.path in exits)
    widths = [output.shape[-1] for call in calls if (output := first_tensor(call.output)) is not None]
    return widths[0] if widths else None
