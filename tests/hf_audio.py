"""Small audio encoders of transformers, and their saved models."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from magma_audio.ast import Ast
from magma_audio.clap import Clap
from magma_audio.hf_encoder import HFAudioEncoder
from magma_audio.wav2vec2 import Wav2Vec2
from magma_audio.whisper import Whisper

PARTS: list[type[HFAudioEncoder]] = [Whisper, Wav2Vec2, Ast, Clap]

every = pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)

DRAW = np.random.default_rng(0)


def noise(samples: int, loud: float = 0.3) -> np.ndarray:
    return (loud * DRAW.standard_normal(samples)).astype(np.float32)


def tower(part: type[HFAudioEncoder], **fields: Any) -> Any:
    torch.manual_seed(0)
    return part.build(**fields).eval()


def small(part: type[HFAudioEncoder], **fields: Any) -> Any:
    return tower(part, **{**part.check_config, **fields})


@cache
def on_meta(part: type[HFAudioEncoder]) -> Any:
    """Of the published sizes."""
    with torch.device("meta"):
        return part(part.Config())  # type: ignore[call-arg]


# What the tower makes of it

HEARING: dict[str, dict[str, Any]] = {
    "whisper": {"feature_size": 16, "chunk_length": 1},
    "wav2vec2": {},
    "ast": {"num_mel_bins": 32, "max_length": 64},
    "clap": {"max_length_s": 1, "truncation": "rand_trunc"},
}
"""Of the small whole models' feature extractors."""


def whole(kind: str) -> Any:
    """A small whole model of the library, of which the tower is a part."""
    import transformers as library

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(3)
    if kind.startswith("whisper"):
        encoder = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 40}
        decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "max_target_positions": 8}
        tokens = {
            "vocab_size": 50,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        }
        config = library.WhisperConfig(**encoder, **decoder, **tokens, num_mel_bins=16, max_source_positions=50)
        model = library.WhisperModel if kind == "whisper" else library.WhisperForConditionalGeneration
    elif kind.startswith("wav2vec2"):
        more = (
            {}
            if kind == "wav2vec2"
            else {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
        )
        config = library.Wav2Vec2Config(**sizes, hidden_size=32, conv_dim=[16] * 7, **more)
        model = library.Wav2Vec2Model if kind == "wav2vec2" else library.Wav2Vec2ForCTC
    elif kind == "ast":
        config = library.ASTConfig(**sizes, hidden_size=16, num_mel_bins=32, max_length=64)
        model = library.ASTForAudioClassification
    else:
        sound = {"patch_embeds_hidden_size": 8, "hidden_size": 32, "spec_size": 128, "depths": [1, 2, 1]}
        text = {**sizes, "hidden_size": 16, "vocab_size": 50, "projection_dim": 8}
        config = library.ClapConfig(audio_config={**sound, "num_attention_heads": [1, 2, 2]}, text_config=text)
        model = library.ClapModel
    made = model(config).eval()
    with torch.no_grad():  # what begins as zeros or ones would hide a mistake
        for p in made.parameters():
            p += 0.1 * torch.randn_like(p)
        for name, buffer in made.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += torch.rand_like(buffer)
    return made


def saved(kind: str, folder: Path) -> tuple[Any, Path]:
    model = whole(kind)
    model.save_pretrained(folder / kind)
    if kind == "clap":
        preprocessor(kind, folder / kind)  # its window is nowhere else
    return model, folder / kind


def preprocessor(kind: str, folder: Path) -> None:
    of(kind).transformers_classes()[2](**HEARING[kind]).save_pretrained(folder)


def of(kind: str) -> type[HFAudioEncoder]:
    return next(part for part in PARTS if kind.startswith(part.name))
