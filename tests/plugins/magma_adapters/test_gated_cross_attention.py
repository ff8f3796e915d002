"""Gated cross-attention: Flamingo's equations, numbers of another implementation, and its mask by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from magma_adapters.gated_cross_attention import GatedCrossAttention
from media_models import LMS, build_model, causal
from torch import Tensor
from torch.nn import functional as F

from magma import Context, Example, Magma, Media, PartError, Site, Text

D, E, HEADS, WIDTH = 6, 6, 2, 4
SITE = Site("block", 0, D, D, media_features=E)


def make(**options: Any) -> GatedCrossAttention:
    """With weights that are no special numbers."""
    adapter = GatedCrossAttention.build(SITE, heads=HEADS, head_dim=WIDTH, ff_mult=2, **options)
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters()):
            parameter.copy_(0.5 * torch.sin(0.7 * torch.arange(parameter.numel()) + i + 1).view(parameter.shape))
    return adapter


def interleaved() -> tuple[Tensor, Context]:
    """Two rows of eight positions with three media of two embeddings, at positions 1, 4, 6 and 2, 4, 7."""
    x = torch.sin(0.3 * torch.arange(2 * 8 * D)).view(2, 8, D)
    media = torch.cos(0.9 * torch.arange(2 * 3 * 2 * E)).view(2, 6, E)
    places = torch.tensor([[0, 1, 0, 0, 1, 0, 1, 0], [0, 0, 1, 0, 1, 0, 0, 1]])
    last = places.cumsum(1) - 1
    index = torch.arange(3).repeat_interleave(2).expand(2, -1)
    inputs = torch.where(places > 0, 0, -1)
    return x, Context(("image",), inputs, torch.zeros_like(last), last, media, index, torch.zeros_like(index))


def norm(x: Tensor, layer: Any) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * layer.weight + layer.bias


def by_hand(a: GatedCrossAttention, x: Tensor, media: list[Tensor]) -> Tensor:
    """One position [d] with the embeddings that it attends to: figure 4 of the paper."""
    read = torch.zeros(HEADS * WIDTH)
    if media:
        q, kv = a.attn.to_q.weight @ norm(x, a.attn.norm), torch.stack([a.attn.to_kv.weight @ one for one in media])
        for h in range(HEADS):
            part = slice(h * WIDTH, (h + 1) * WIDTH)
            keys, values = kv[:, part], kv[:, HEADS * WIDTH :][:, part]
            read[part] = (keys @ q[part] / math.sqrt(WIDTH)).softmax(0) @ values
    y = x + a.attn_gate.tanh() * (a.attn.to_out.weight @ read)
    hidden = F.gelu(a.ff[1].weight @ norm(y, a.ff[0]))
    return y + a.ff_gate.tanh() * (a.ff[3].weight @ hidden)


@pytest.mark.parametrize("all_media", [False, True])
def test_it_is_the_papers_layer(all_media: bool) -> None:
    adapter = make(all_media=all_media)
    x, context = interleaved()
    found = adapter(x, lambda h: 3 * h, context)
    for row in range(2):
        for t in range(8):
            last = int(context.last_medium[row, t])
            numbers = range(last + 1) if all_media else ([last] if last >= 0 else [])
            read = [one for m in numbers for one in context.media[row, 2 * m : 2 * m + 2]]
            assert torch.allclose(found[row, t], 3 * by_hand(adapter, x[row, t], read), atol=1e-5)


GOLDEN = {
    False: {
        0: [-0.085183, 0.338271, 0.605426, 0.698220, 0.979646, 1.033158],
        1: [0.929030, 0.721944, 0.430752, 0.138562, 0.060697, -0.070772],
        3: [-0.849898, -0.659400, -0.521461, -0.299363, 0.265058, 0.662268],
        7: [-0.061994, 0.543192, 0.934807, 0.969644, 1.101558, 0.975652],
    },
    True: {
        1: [0.929030, 0.721944, 0.430752, 0.138562, 0.060697, -0.070772],
        3: [-0.849898, -0.659400, -0.521461, -0.299363, 0.265058, 0.662268],
        7: [-0.048617, 0.454551, 0.774193, 0.830218, 1.033767, 1.001463],
    },
}
"""The first row from `GatedCrossAttentionBlock` of flamingo-pytorch 0.1.2 with the same weights, by position."""


@pytest.mark.parametrize("all_media", [False, True])
def test_it_gives_the_numbers_of_flamingo_pytorch(all_media: bool) -> None:
    x, context = interleaved()
    found = make(all_media=all_media)(x, lambda h: h, context)[0]
    for position, values in GOLDEN[all_media].items():
        assert found[position].tolist() == pytest.approx(values, abs=2e-6)


def test_its_weights_have_the_names_of_open_flamingo() -> None:
    shapes = {name: list(tensor.shape) for name, tensor in make().state_dict().items()}
    assert shapes == {
        "attn_gate": [1],
        "ff_gate": [1],
        "attn.norm.weight": [6],
        "attn.norm.bias": [6],
        "attn.to_q.weight": [8, 6],
        "attn.to_kv.weight": [16, 6],
        "attn.to_out.weight": [6, 8],
        "ff.0.weight": [6],
        "ff.0.bias": [6],
        "ff.1.weight": [12, 6],
        "ff.3.weight": [6, 12],
    }


# The mask, by hand


def readers(model: Magma, segments: list[list[Any]], packed: bool = False) -> list[str]:
    """For each position the media of its row that its output depends on, such as "02"; "-" for none."""
    collator = model.collator()
    examples = [
        Example([*(Text(s) if isinstance(s, str) else Media("number", s) for s in one), Text(".", target=True)])
        for one in segments
    ]
    encoded = [collator.encode_example(one) for one in examples]
    batch = collator.pack(encoded, 64) if packed else collator.pad(encoded)
    embeddings, layout = model.lm_inputs(batch)
    context = layout.context
    assert context is not None
    adapter = model.lm.all_adapters()[0]

    def run(media: Tensor) -> Tensor:
        return adapter(embeddings, lambda h: h, replace(context, media=media))[0]

    before = run(context.media)
    found = ["" for _ in before]
    for number in range(int(context.media_index.max()) + 1):
        other = torch.where((context.media_index == number)[..., None], context.media + 1, context.media)
        for t, changed in enumerate((run(other) != before).any(-1).tolist()):
            found[t] += str(number) if changed else ""
    return [one or "-" for one in found[: int(layout.lengths[0])]]


PROMPT = ["a", 0, "b", 1, "c", 2, "d"]
"""Three media of one, two and three embeddings in a text of four tokens, and a target of two (with end-of-text)."""


@pytest.mark.parametrize("family", LMS)
def test_the_mask_of_three_media_by_hand(family: str) -> None:
    last, every = (build_model(family, "gated_cross_attention", all_media=flag) for flag in (False, True))
    assert [len(last.lm.encode(text)) for text in ("a", "b", "c", "d", ".")] == [1] * 5
    assert readers(last, [PROMPT]) == ["-", "0", "0", "1", "1", "1", "2", "2", "2", "2", "2", "2"]
    assert readers(every, [PROMPT]) == ["-", "0", "0", "01", "01", "01", *["012"] * 6]


@pytest.mark.parametrize("family", LMS)
def test_the_mask_of_packed_sequences_by_hand(family: str) -> None:
    """The second sequence has one medium, the fourth of the row, after a word."""
    last, every = (build_model(family, "gated_cross_attention", all_media=flag) for flag in (False, True))
    second = ["-", "3", "3", "3", "3"]
    first = ["-", "0", "0", "1", "1", "1", "2", "2", "2", "2", "2", "2"]
    assert readers(last, [PROMPT, ["a", 1, "b"]], packed=True)[:17] == first + second
    first = ["-", "0", "0", "01", "01", "01", *["012"] * 6]
    assert readers(every, [PROMPT, ["a", 1, "b"]], packed=True)[:17] == first + second


@pytest.mark.parametrize("family", LMS)
@pytest.mark.parametrize("all_media", [False, True])
def test_after_a_cache_the_mask_is_the_same(family: str, all_media: bool) -> None:
    """Generated words may attend to the last medium, or to all."""
    model = build_model(family, "gated_cross_attention", all_media=all_media)
    adapter = model.lm.all_adapters()[-1]
    read: list[list[int]] = []

    def note(_: Any, args: tuple[Any, ...]) -> None:
        *_, context = args
        rows = context.media_mask(not all_media)[0]  # [t, n]
        read.append(sorted(set(context.media_index[0][rows[-1]].tolist())))

    adapter.register_forward_pre_hook(note)
    model.generate_tokens(PROMPT, max_tokens=3)
    assert read == [[0, 1, 2] if all_media else [2]] * len(read)
    assert len(read) >= 3


def test_generation_projects_media_once_and_sees_new_weights() -> None:
    model = build_model("llama", "gated_cross_attention")
    attention: Any = model.lm.all_adapters()[0]
    calls: list[int] = []
    attention.attn.to_kv.register_forward_hook(lambda *_: calls.append(1))
    assert len(model.generate_tokens(PROMPT, max_tokens=4)) > 1
    assert len(calls) == 1
    x, context = interleaved()
    adapter = make()
    with torch.no_grad():
        before = adapter(x, lambda h: h, context)
        assert torch.equal(adapter(x, lambda h: h, context), before)
        adapter.attn.to_kv.weight.mul_(2)
        after = adapter(x, lambda h: h, context)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.allclose(after, adapter(x, lambda h: h, context), atol=1e-6)


def test_it_needs_a_block_and_the_width_of_media() -> None:
    with pytest.raises(PartError, match=r"acts before blocks: given mlp; allowed: block"):
        GatedCrossAttention.build(Site("mlp", 0, D, D, media_features=E))
    with pytest.raises(PartError, match="does not state the width of media"):
        GatedCrossAttention(GatedCrossAttention.Config(), Site("block", 0, D, D))


def test_media_may_have_another_width_than_blocks() -> None:
    """As in OPT-350m, whose word embeddings are narrower."""
    lm = causal("opt", hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=32, word_embed_proj_dim=16)
    lm.add_adapters("block", lambda site: GatedCrossAttention.build(site))
    adapter: Any = lm.all_adapters()[0]
    assert adapter.attn.to_kv.in_features == 16
    assert adapter.attn.to_q.in_features == 32
