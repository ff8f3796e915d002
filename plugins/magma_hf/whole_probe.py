"""Compares a model that was taken apart with the whole one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from magma import Magma, PartError, Tokens

from . import whole_model
from .whole_encoder import Items, WholeFeatures

TOLERANCE = 1e-5


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


@torch.no_grad()
def whole_logits(whole: Any, encoder: WholeFeatures, segments: list[Any]) -> Tensor:
    """Logits [t, v] of the library for tokens and prepared media."""
    token = media_token(whole.config, encoder.modality)
    ids, media = [], []
    for one in segments:
        if isinstance(one, Tensor):
            ids.append(one)
        else:
            ids.append(torch.full((encoder.num_features(one),), token))
            media.append(one)
    given = {}
    if media:
        *joined, _ = encoder.stack(media)
        given = dict(zip(encoder.keys, joined, strict=True))
    row = torch.cat(ids)[None]
    out: Tensor = whole(input_ids=row, attention_mask=torch.ones_like(row), **given).logits[0]
    return out


def compare(whole: Any, model: Magma) -> list[str]:
    """Compare logits for text, for one medium and for two. Raises `PartError` if they differ."""
    lines = []
    for name, module in model.input_modules().items():
        encoder = module.encoder
        assert isinstance(encoder, WholeFeatures)
        texts = [ordinary_tokens(whole.config, 5, seed) for seed in range(3)]
        one, two = (random_medium(encoder, seed) for seed in (1, 2))
        prompts = {
            "text": [texts[0]],
            f"one {name}": [texts[0], one, texts[1]],
            f"two {name}s": [texts[0], one, texts[1], two, texts[2]],
        }
        for what, prompt in prompts.items():
            expected = whole_logits(whole, encoder, prompt)
            found = model.logits(prompt)
            scale = expected.abs().max().item()
            difference = (found - expected).abs().max().item()
            lines.append(f"{what}: logits differ by {difference:.2g} (largest {scale:.2g})")
            if not difference <= TOLERANCE * max(1, scale):
                raise PartError("; ".join(lines))
    return lines
