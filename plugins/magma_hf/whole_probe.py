"""Compares a model that was taken apart with the whole one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from magma import Input, InputError, Magma, PartError, error_summary

from . import whole_model
from .whole_encoder import Items, WholeFeatures
from .whole_frame import Frame

TOLERANCE = 1e-5
TEXT = "text"
NO_FRAME = Frame()
TOKEN_TYPES = {"image": 1, "video": 2, "audio": 3}
"""The library's numbers of the kinds of tokens; 0 is text."""


class LogitsDiffer(PartError):
    """The parts of a model do not give the logits of the whole, or there are none to compare with."""


def media_token(architecture: Any, modality: str) -> int:
    """The token that stands for one feature of a medium. Raises `PartError`."""
    for name in (f"{modality}_token_id", f"{modality}_token_index"):
        if isinstance(found := getattr(architecture, name, None), int):
            return found
    raise PartError(f"{architecture.model_type}: its configuration has no {modality}_token_id")


def random_medium(encoder: WholeFeatures, seed: int) -> Items:
    """A prepared medium with random values."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(x.shape, generator=generator, dtype=x.dtype) if x.is_floating_point() else x
        for x in encoder.dummy_item()
    )


def ordinary_tokens(architecture: Any, count: int, seed: int) -> Tensor:
    """Tokens [t] that the configuration does not mention."""
    special = {value for value in architecture.to_dict().values() if isinstance(value, int)}
    text = whole_model.text_config(architecture)
    special |= {value for value in text.to_dict().values() if isinstance(value, int)}
    allowed = torch.tensor([token for token in range(text.vocab_size) if token not in special])
    return allowed[torch.randint(len(allowed), (count,), generator=torch.Generator().manual_seed(seed))]


def library_arguments(whole: Any, module: Input, segments: Sequence[Any], frame: Frame = NO_FRAME) -> dict[str, Tensor]:
    """What the whole model is called with, for a prompt of token ids [t] and prepared media in their frames."""
    encoder: Any = module.encoder
    token = media_token(whole.config, encoder.modality)
    ids, media, is_medium = [], [], []
    for one in segments:
        if isinstance(one, Tensor):
            ids.append(one)
        else:
            count = module.prefix.num_embeddings(encoder.num_features(one)) - len(frame.before) - len(frame.after)
            marks = [token] * count
            ids.append(torch.tensor([*frame.before, *marks, *frame.after]))
            media.append(one)
        is_medium.append((ids[-1] == token).long())
    row = torch.cat(ids)[None]
    given = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    accepted = {name for part in (whole, whole.base_model) for name in inspect.signature(part.forward).parameters}
    kinds = torch.cat(is_medium)[None]
    if "token_type_ids" in accepted:
        given["token_type_ids"] = kinds
    if "mm_token_type_ids" in accepted:
        given["mm_token_type_ids"] = kinds * TOKEN_TYPES[encoder.modality]
    if media:
        *joined, _ = encoder.stack(media)
        given |= {
            name: tensor.to(whole.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in zip(encoder.keys, joined, strict=True)
        }
    return given


def compare(whole: Any, model: Magma, frame: Frame = NO_FRAME) -> list[str]:
    """Compare logits for text, for one medium and for two. Returns the differences, as lines.

    Raises:
        LogitsDiffer: They differ. The message says why, as far as the calls inside the whole model show it.
    """
    lines = []
    for name, module in model.input_modules().items():
        encoder = module.encoder
        assert isinstance(encoder, WholeFeatures)
        for what, prompt in prompts(whole.config, encoder, name).items():
            if what == TEXT and not reads_text_only(whole):
                continue
            difference, largest = _difference(whole, model, module, prompt, frame)
            lines.append(f"{what}: logits differ by {difference:.1e} (largest: {largest:.2g})")
            if not difference <= _tolerance(whole.dtype) * max(1.0, largest):
                reason = reason_of_difference(whole, module, prompt, frame)
                raise LogitsDiffer(
                    f"{whole.config.model_type}: the parts do not give the logits of the whole: {reason}"
                )
        _check_batches(whole.config.model_type, encoder)
    return lines


@torch.no_grad()
def _check_batches(model_type: str, encoder: WholeFeatures) -> None:
    """Raise `LogitsDiffer` if the features of a medium depend on the other one in its batch."""
    media = [random_medium(encoder, seed) for seed in (1, 2)]
    both = encoder(encoder.stack(media)).values
    single = encoder(encoder.stack(media[1:])).values[0]
    difference, largest = (both[1, : len(single)] - single).abs().max().item(), single.abs().max().item()
    if not difference <= 10 * _tolerance(single.dtype) * max(1.0, largest):
        raise LogitsDiffer(f"{model_type}: the features of a medium depend on the other media in its batch")


def prompts(architecture: Any, encoder: WholeFeatures, name: str) -> dict[str, list[Any]]:
    """A text, and texts with one medium and with two."""
    texts = [ordinary_tokens(architecture, 5, seed) for seed in range(3)]
    one, two = (random_medium(encoder, seed) for seed in (1, 2))
    mixed = {f"one {name}": [texts[0], one, texts[1]], f"two {name}": [texts[0], one, texts[1], two, texts[2]]}
    return {TEXT: [texts[0]], **mixed}


def reads_text_only(whole: Any) -> bool:
    """Whether the whole model can be called without media."""
    required = [
        name
        for name, parameter in inspect.signature(inspect.unwrap(whole.forward)).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        and name not in ("self", "input_ids")
    ]
    return not required


@torch.no_grad()
def _difference(whole: Any, model: Magma, module: Input, prompt: Sequence[Any], frame: Frame) -> tuple[float, float]:
    """The largest difference of logits, and the largest logit."""
    try:
        expected: Tensor = whole(**library_arguments(whole, module, prompt, frame)).logits[0].float()
    except Exception as error:  # whatever the library raises
        raise LogitsDiffer(
            f"{whole.config.model_type}: the whole model does not run on the tokens and media of a prompt: "
            f"{error_summary(error)}"
        ) from error
    try:
        with without_beginning(model):
            found = model.logits(prompt).float()
    except InputError as error:
        raise LogitsDiffer(f"{whole.config.model_type}: {error}") from error
    return (found - expected).abs().max().item(), expected.abs().max().item()


@contextmanager
def without_beginning(model: Magma) -> Iterator[None]:
    """The token ids of prompts are used as they are."""
    before = model.lm.beginning
    model.lm.beginning = ()
    try:
        yield
    finally:
        model.lm.beginning = before


def _tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE if dtype == torch.float32 else 8 * torch.finfo(dtype).eps


@torch.no_grad()
def reason_of_difference(whole: Any, module: Input, prompt: Sequence[Any], frame: Frame) -> str:
    """Why logits differ, as far as the call of the decoder inside the whole model shows it."""
    calls: list[Mapping[str, Any]] = []

    def keep(_module: nn.Module, _args: Any, given: Mapping[str, Any]) -> None:
        calls.append(given)

    hooks = [
        decoder.register_forward_pre_hook(keep, with_kwargs=True) for decoder in whole_model.language_models(whole)
    ]
    try:
        whole(**library_arguments(whole, module, prompt, frame))
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        return "its language model is not called as a module"
    given = {name: value for name, value in calls[0].items() if value is not None}
    return _odd_argument(given) or _randomness(module) or "the same embeddings give other logits"


def _randomness(module: Input) -> str | None:
    """Whether features are random."""
    encoder: Any = module.encoder
    item = encoder.stack([random_medium(encoder, seed=1)])
    same = torch.equal(encoder(item).values, encoder(item).values)
    return None if same else "its features are drawn at random"


def _odd_argument(given: Mapping[str, Any]) -> str | None:
    """What a causal language model is not called with."""
    positions = given.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim == 3:
        return f"its positions have {positions.shape[0]} coordinates"
    masks = given.get("attention_mask")
    for mask in masks.values() if isinstance(masks, Mapping) else (masks,):
        if isinstance(mask, Tensor) and mask.ndim == 4 and _looks_ahead(mask[0, 0]):
            return "positions of a medium attend to each other in both directions"
    usual = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache", "past_key_values", "use_cache"}
    others = [
        name
        for name, value in given.items()
        if name not in usual and (isinstance(value, Tensor) or (isinstance(value, list | tuple | dict) and value))
    ]
    return f"its language model also reads {', '.join(others)}" if others else None


def _looks_ahead(mask: Tensor) -> bool:
    """Whether a mask [t, t] lets a position see a later one. True or 0: it is seen."""
    seen = mask if mask.dtype == torch.bool else mask == 0
    return bool(seen[: seen.shape[1]].triu(1).any())
