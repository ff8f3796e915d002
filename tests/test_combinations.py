"""Every pair of shipped parts: assembles, trains two steps, is saved, loaded, and gives the same logits."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor
from torch.nn import functional as F

import magma
from magma import Example, Features, Magma, Media, Text
from magma.plugins.registry import installed

ENCODERS: dict[str, dict[str, Any]] = {
    "clip resnet": {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "clip vit": {"use": "clip", "layers": 1, "width": 16, "image_size": 32, "patch_size": 16, "head_width": 8},
    "timm": {"use": "timm", "model": "test_vit", "image_size": 64},
    "spectrogram": {"use": "spectrogram", "rate": 8000, "seconds": 0.3, "bands": 16, "width": 16, "heads": 2},
    "nfresnet": {"use": "nfresnet", "layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "whisper": {"use": "whisper", "seconds": 1, "bands": 16, "width": 16, "layers": 1, "heads": 2},
    "wav2vec2": {"use": "wav2vec2", "seconds": 0.3, "channels": 16, "width": 32, "layers": 1, "heads": 2},
    "ast": {"use": "ast", "frames": 64, "bands": 32, "width": 16, "layers": 1, "heads": 2},
    "clap": {"use": "clap", "seconds": 1, "side": 128, "width": 8, "layers": [1] * 4, "heads": [1] * 4, "window": 4},
}
PREFIXES: dict[str, dict[str, Any]] = {
    "linear": {"use": "linear", "dropout": 0.1, "layernorm": True},
    "pooled": {"use": "pooled", "length": 2, "layernorm": True},
    "mlp": {"use": "mlp", "hidden": 24, "dropout": 0.1, "layernorm": True},
    "stack": {"use": "stack", "factor": 2},
    "resampler": {"use": "resampler", "length": 3, "layers": 1, "heads": 2, "head_width": 8},
    "transformer": {"use": "transformer", "width": 16, "heads": 2, "layers": 1, "dropout": 0.1, "layernorm": True},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "sequential": {"use": "sequential", "downsample": 2},  # of fewer units all may be dead, by chance
    "parallel": {"use": "parallel", "downsample": 4, "scale": "learned", "layernorm": True},
    "cross attention": {"use": "gated_cross_attention", "at": "block", "heads": 2, "head_dim": 8, "ff_mult": 1},
    "lora": {"use": "lora", "at": "linears", "rank": 2},
    "ia3": {"use": "ia3", "at": "linears"},
    "prefix": {"use": "prefix_tuning", "at": "attention", "length": 2},
    "expert": {"use": "visual_expert", "at": "linears", "blocks": "first 1"},  # no loss reads media after the last one
}
OTHERS = {
    # Their items are tuples, or they are towers of transformers.
    "encoder": (
        *("fused", "frames", "tiles", "audio_windows"),
        *("hf", "hf_vision", "hf_audio", "hf_video", "hf_image_features", "hf_audio_features"),
    ),
    # They need a grid, a width or other parts, or are like one that is combined.
    "prefix": ("pixel_shuffle", "identity", "framed", "hf_projector", "pool", "qformer"),
}
"""Parts that have their own tests of training and checkpoints."""
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
TOKENS = {"vocab_size": 768, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def causal(family: str, **sizes: Any) -> dict[str, Any]:
    return {
        "use": "causal",
        "architecture": {"model_type": family, **TOKENS, **sizes},
        "tokenizer": "bundled:tiny",
    }


LMS: dict[str, dict[str, Any]] = {
    "gptj": {"use": "gptj", "weights": "bundled:tiny"},
    "gpt2": causal("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": causal("gpt_neox", **TINY, intermediate_size=64),
    "llama": causal("llama", **TINY, intermediate_size=64),
    "opt": causal("opt", **TINY, ffn_dim=64, word_embed_proj_dim=32),
    "phi": causal("phi", **TINY, intermediate_size=64),
    "qwen2": causal("qwen2", **TINY, num_key_value_heads=2, intermediate_size=64),
    "qwen3": causal("qwen3", **TINY, num_key_value_heads=2, head_dim=8, intermediate_size=64),
}
PLACES = {"attention": ["attention"], "mlp": ["mlp"], "both": ["attention", "mlp"]}
AXES: dict[str, list[str]] = {
    "encoder": list(ENCODERS),
    "prefix": list(PREFIXES),
    "adapter": list(ADAPTERS),
    "place": list(PLACES),
    "lm": list(LMS),
}
PAIRS = [
    ("encoder", "prefix"),
    ("encoder", "lm"),
    ("adapter", "place"),
    ("adapter", "lm"),
    ("prefix", "lm"),
]


def combinations() -> list[dict[str, str]]:
    """As few combinations as a greedy choice needs to hold every pair of every two axes in PAIRS."""
    wanted = {(a, x, b, y) for a, b in PAIRS for x in AXES[a] for y in AXES[b]}
    every = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
    chosen = []
    while wanted:
        best = max(every, key=lambda c: len(wanted & pairs_of(c)))
        chosen.append(best)
        wanted -= pairs_of(best)
    return chosen


def pairs_of(combination: dict[str, str]) -> set[tuple[str, str, str, str]]:
    return {(a, combination[a], b, combination[b]) for a, b in PAIRS}


def test_every_shipped_model_part_is_among_them() -> None:
    ours = [e for e in installed().entries() if e.plugin.distribution == "magma-multimodal"]
    shipped = {(e.kind, e.name) for e in ours if e.kind not in ("data", "head", "task")}
    tables = [("encoder", ENCODERS), ("prefix", PREFIXES), ("adapter", ADAPTERS), ("lm", LMS)]
    combined = {(kind, table["use"]) for kind, tables_ in tables for table in tables_.values()}
    assert shipped == combined | {(kind, name) for kind, names in OTHERS.items() for name in names}


@pytest.mark.parametrize("combination", combinations(), ids=lambda c: "-".join(c.values()).replace(" ", "_"))
def test_any_combination(combination: dict[str, str], tmp_path: Path) -> None:
    adapter = ADAPTERS[combination["adapter"]]
    tables = ["media"] if "at" in adapter else PLACES[combination["place"]]
    recipe = {
        "name": "any",
        "lm": LMS[combination["lm"]],
        "inputs": {"medium": {"encoder": ENCODERS[combination["encoder"]], "prefix": PREFIXES[combination["prefix"]]}},
        "adapters": dict.fromkeys(tables, adapter),
    }
    model = magma.assemble(recipe).train()
    check_shapes(model)
    draw = np.random.default_rng(0)
    raw: list[Any] = [draw.integers(0, 256, (16, 16), dtype=np.uint8) for _ in range(3)]
    if model.input_modules()["medium"].encoder.modality == "audio":
        raw = [(draw.standard_normal(length), 8000) for length in (2400, 300, 1111)]
    # Words before the medium: the query of a position that only sees itself has no gradient.
    words, target = Text("A picture of"), Text(" a seven.", target=True)
    examples = [Example([Text("See:"), Media("medium", one), words, target]) for one in raw]
    batch = model.collator().batch(examples)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3, eps=1e-15)  # a step that is seen for the smallest gradient
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(np.isfinite(losses))
    still = [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert not still
    model.eval()
    magma.save(model, tmp_path / "model", None)
    loaded = magma.load(tmp_path / "model")
    prompt = [raw[0], "A picture of"]
    assert torch.equal(loaded.logits(prompt), model.logits(prompt))


def check_shapes(model: Magma) -> None:
    """One set of axes through encoder, prefix, adapter and language model."""

    @jaxtyped(typechecker=beartype)
    def widths_and_lengths(
        x: Float[Tensor, "b ..."],
        features: Float[Tensor, "b n e"],
        embeddings: Float[Tensor, "b k d"],
        adapted: Float[Tensor, "b k o"],
        logits: Float[Tensor, "b v"],
    ) -> list[int]:
        assert x.shape[0] == adapted.shape[0]
        return [features.shape[1], features.shape[2], embeddings.shape[1], embeddings.shape[2], logits.shape[1]]

    input_module = model.input_modules()["medium"]
    x = input_module.encoder.stack([input_module.encoder.max_size_item()] * 2)
    features = input_module.encoder(x)
    embeddings = input_module.prefix(Features(features.values)).values
    adapter = model.lm.all_adapters()[0]
    site = adapter.site
    adapted = adapter(embeddings, torch.sin if site.linear is None else lambda h: F.linear(h, site.weight, site.bias))
    assert adapted.shape[2] == site.out_features
    found = widths_and_lengths(x, features.values, embeddings, adapted, model.lm.lm_head(embeddings[:, 0]))
    assert found == [
        input_module.encoder.length,
        input_module.encoder.dim,
        input_module.prefix.length,
        model.lm.dim,
        model.lm.vocab,
    ]
