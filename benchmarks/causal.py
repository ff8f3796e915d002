"""Any language model of transformers, through `causal`, against the library used directly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from magma import Decoding, Magma, Sublayer
from magma.evaluation.prefix_sharing import PrefixCachedGenerator
from magma.interfaces import SUBLAYERS
from magma.values import Segment

from . import peers
from .rows import Row, faster, rounds, training_step

FAMILIES = ("llama", "qwen3", "gemma3_text")
SMALL = {"dim": 384, "layers": 4, "heads": 6, "key_heads": 2, "inner": 1024}
SMOLLM2 = {"dim": 576, "layers": 30, "heads": 9, "key_heads": 3, "inner": 1536}
"""SmolLM2-135M; the small model has its proportions."""


def build(family: str, vocab: int, sizes: dict[str, int], sublayers: Sequence[Sublayer] = SUBLAYERS) -> Magma:
    """A model of one of the families with random weights, and adapters around these sublayers."""
    from magma_lms.causal import Causal

    torch.manual_seed(0)
    architecture = {
        "model_type": family,
        "vocab_size": vocab,
        "hidden_size": sizes["dim"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["key_heads"],
        "head_dim": sizes["dim"] // sizes["heads"],
        "intermediate_size": sizes["inner"],
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": vocab - 2,
        "tie_word_embeddings": True,
    }
    return peers.with_grid(Causal.build(architecture=architecture), sublayers)


def train_causal(count: int) -> list[Row]:
    """As train_vs_transformers, for families of today: the library's attention is `sdpa`."""
    rows = []
    for vocab, target in ((512, 1.2), (50_258, 2.7)):
        for family in FAMILIES:
            model = build(family, vocab, SMALL).train()
            data = peers.examples(4, vocab)
            media, captions = peers.tensors(data)
            by_hand = peers.ByHand(model, attention="self_attn")
            losses = {
                "transformers": lambda by_hand=by_hand, media=media, captions=captions: by_hand(media, captions),
                "ours": lambda model=model, data=data: peers.ours(model, data),
            }
            theirs, ours = (loss().item() for loss in losses.values())
            if abs(ours - theirs) > 1e-5 * theirs:
                raise AssertionError(f"{family}: the losses differ, {ours} and {theirs}")
            trained = [p for p in model.parameters() if p.requires_grad]
            steps = {name: training_step(loss, trained, name == "ours") for name, loss in losses.items()}
            times = rounds(steps, count)
            rows.append(faster(f"train_causal, {family}, {vocab:,} words", times, "transformers", "ours", target))
    return rows


def generate_causal(count: int) -> list[Row]:
    """Answers of 16 tokens, with the sizes of SmolLM2-135M: to one text, and to 16 questions about one image."""
    model = build("llama", 49_152, SMOLLM2, sublayers=()).eval()
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> peers.Tokens:
        return peers.Tokens(torch.randint(0, 49_150, (length,), generator=draw))

    image = peers.Media("grid", torch.randn(144, 288, generator=draw))
    questions: list[list[Segment]] = [[image, text(6 + i % 8)] for i in range(16)]
    return [
        _generation("generate_causal, one row", model, [[text(10)]], 1.2, count),
        _generation("generate_causal, 16 questions, one image", model, questions, 1.5, count),
    ]


def _generation(name: str, model: Magma, prompts: list[list[Segment]], target: float, count: int, new: int = 16) -> Row:
    """The library's `generate`, rows padded on the left, against ours."""
    library: Any = peers.ByHand(model, attention="self_attn").lm
    eos = model.lm.eos
    found: dict[str, list[list[int]]] = {}

    def theirs() -> None:
        embeddings, mask = _left_padded(model, prompts)
        out = library.generate(inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=new, do_sample=False)
        found["transformers"] = [row[: row.index(eos)] if eos in row else row for row in out.tolist()]

    def ours() -> None:
        caching = PrefixCachedGenerator(model, Decoding(max_tokens=new), len(prompts))
        answers = {i: list(tokens) for some in caching.tokens(prompts) for i, tokens in some}
        found["ours"] = [answers[i] for i in range(len(prompts))]

    times = rounds({"transformers": theirs, "ours": ours}, count)
    if found["transformers"] != found["ours"]:
        raise AssertionError(f"{name}: the answers differ")
    return faster(name, times, "transformers", "ours", target)


@torch.no_grad()
def _left_padded(model: Magma, prompts: list[list[Segment]]) -> tuple[Tensor, Tensor]:
    """Embeddings [b, t, d] of the prompts and their mask [b, t]."""
    collator = model.collator()
    batch = collator.pad([collator.encode_example(peers.Example(prompt)) for prompt in prompts], score_last=True)
    embeddings, lengths = model.embed(batch), batch.layout.lengths
    t = int(lengths.max())
    mask = torch.arange(t) >= (t - lengths)[:, None]
    rows = [
        torch.cat([row.new_zeros(t - n, row.shape[1]), row[:n]])
        for row, n in zip(embeddings, lengths.tolist(), strict=True)
    ]
    return torch.stack(rows), mask.long()
