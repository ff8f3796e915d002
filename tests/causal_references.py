"""What transformers itself computes for a causal language model, one row at a time: nothing of ours is used here.

Axes: t tokens, d width of the word embeddings, v vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_POSITIONS = "its generate counts positions from 0, its forward from the id of padding plus 1"
BROKEN_GENERATE: dict[str, str] = {
    "camembert": _POSITIONS,
    "data2vec-text": _POSITIONS,
    "moshi": "with a window that is shorter than the text, its mask does not fit its cache",
    "roberta": _POSITIONS,
    "roberta-prelayernorm": _POSITIONS,
    "xlm": "its generate appends a mask token, and predicts at its position",
    "xlm-roberta": _POSITIONS,
    "xlm-roberta-xl": _POSITIONS,
    "xmod": _POSITIONS,
}
"""Families whose `generate` does not give the tokens of the same model's logits, and why."""

NEUTRAL = 0
"""The id where media stand: not that of padding, by which some models count positions."""


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    """Logits [t, v] of token ids [t]."""
    return _run(model, input_ids=ids)


def _run(model: Any, **inputs: Tensor) -> Tensor:
    given = {name: value[None] for name, value in inputs.items()}
    out: Tensor = model(**given, use_cache=False).logits[0]
    return out


def words(model: Any, ids: Tensor) -> Tensor:
    """Word embeddings [t, d] of token ids [t], as the library's `inputs_embeds` expects them."""
    out: Tensor = model.get_input_embeddings()(ids[None])[0]
    return out


def embedded_logits(model: Any, embeddings: Tensor, ids: Tensor) -> Tensor:
    """Logits [t, v] of embeddings [t, d]; gradients flow to the embeddings.

    Args:
        model: The library's model.
        embeddings: Word embeddings, and any vectors where media stand.
        ids: Token ids [t], `NEUTRAL` at media. Only models that look up more than word embeddings see them.
    """
    if _takes_embeddings(model, embeddings, ids):
        return _run(model, inputs_embeds=embeddings.clone())
    with _replaced(model.get_input_embeddings(), embeddings[None]):
        return _run(model, input_ids=ids)


@torch.no_grad()
def _takes_embeddings(model: Any, embeddings: Tensor, ids: Tensor) -> bool:
    """Whether embeddings are enough: the library computes the same from words, and accepts these embeddings."""
    expected = logits(model, ids)
    try:
        _run(model, inputs_embeds=embeddings.clone())
        found = _run(model, inputs_embeds=words(model, ids).clone())
    except (AttributeError, RuntimeError, TypeError, ValueError):  # it looks for the ids
        return False
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@contextlib.contextmanager
def _replaced(table: nn.Module, output: Tensor) -> Iterator[None]:
    handle = table.register_forward_hook(lambda *_: output.clone())
    try:
        yield
    finally:
        handle.remove()


def greedy(name: str, model: Any, prompt: Tensor, count: int, eos: int) -> list[int]:
    """At most `count` greedy tokens after token ids [t], up to `eos`: by the library's `generate`, if that is right."""
    if name in BROKEN_GENERATE:
        return greedy_without_cache(model, prompt, count, eos)
    return generated(model, prompt, count, eos)


@torch.no_grad()
def generated(model: Any, prompt: Tensor, count: int, eos: int) -> list[int]:
    """Greedy tokens by the library's `generate` for one row."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(max_new_tokens=count, eos_token_id=eos, pad_token_id=eos)
    whole = model.generate(prompt[None], attention_mask=torch.ones_like(prompt)[None])
    return _until(eos, whole[0, len(prompt) :].tolist())


def greedy_without_cache(model: Any, prompt: Tensor, count: int, eos: int) -> list[int]:
    """Greedy tokens of one row, with everything computed again for each token."""
    ids = prompt
    for _ in range(count):
        ids = torch.cat([ids, logits(model, ids)[-1].argmax()[None]])
    return _until(eos, ids[len(prompt) :].tolist())


def _until(eos: int, tokens: Sequence[int]) -> list[int]:
    return list(tokens[: tokens.index(eos)] if eos in tokens else tokens)
