"""Decoding against the library's own: every family greedy, sampling's distribution, images among text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build, library
from magma_lms.transformers_lm import TransformersLM
from PIL import Image
from torch import Tensor

import magma
from magma import Decoding, FrozenLM, Magma
from magma.generation.decoding import choose

LENGTH = 12


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Magma:
    return Magma(build(request.param))


def prompts() -> list[list[Tensor]]:
    draw = torch.Generator().manual_seed(3)
    return [[torch.randint(2, 96, (length,), generator=draw)] for length in (5, 1, 9, 3)]


def by_recomputation(model: Magma, prompt: list[Any], count: int) -> list[int]:
    """Without a cache: the whole sequence again for every token."""
    tokens: list[int] = []
    for _ in range(count):
        token = int(model.logits([*prompt, torch.tensor(tokens, dtype=torch.long)])[-1].argmax())
        if token == model.lm.eos:
            break
        tokens.append(token)
    return tokens


def by_transformers(lm: FrozenLM, prompt: Tensor, count: int) -> list[int]:
    assert isinstance(lm, TransformersLM)
    whole = library(lm).generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt)[None],
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=lm.eos,
        pad_token_id=lm.eos,
    )
    tokens: list[int] = whole[0, len(prompt) :].tolist()
    return tokens[: tokens.index(lm.eos)] if lm.eos in tokens else tokens


def test_greedy_is_the_same_cached_batched_and_in_transformers(model: Magma) -> None:
    expected = [by_transformers(model.lm, prompt[0], LENGTH) for prompt in prompts()]
    assert len({tuple(tokens) for tokens in expected}) == 4
    assert [by_recomputation(model, prompt, LENGTH) for prompt in prompts()] == expected
    assert [model.generate_tokens(prompt, max_tokens=LENGTH) for prompt in prompts()] == expected
    assert model.generate_tokens(prompts(), max_tokens=LENGTH) == expected


def test_greedy_ends_where_transformers_does(model: Magma) -> None:
    """End-of-text in the middle of one row, while the others go on."""
    free = model.generate_tokens(prompts(), max_tokens=LENGTH)
    row = max(range(4), key=lambda i: len(free[i]))
    model.lm.eos = free[row][len(free[row]) // 2]
    expected = [by_transformers(model.lm, prompt[0], LENGTH) for prompt in prompts()]
    assert len(expected[row]) <= len(free[row]) // 2
    assert model.generate_tokens(prompts(), max_tokens=LENGTH) == expected


# Sampling


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 500])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_sampling_draws_from_the_librarys_distribution(
    temperature: float, top_k: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    seen: list[Tensor] = []
    real = torch.multinomial

    def watched(probabilities: Tensor, *args: Any, **how: Any) -> Tensor:
        seen.append(probabilities)
        return real(probabilities, *args, **how)

    monkeypatch.setattr(torch, "multinomial", watched)
    drawn = choose(logits, Decoding(temperature=temperature, top_k=top_k, top_p=top_p))
    (found,) = seen
    assert torch.allclose(found, expected.softmax(-1), atol=1e-6)
    assert bool((found.gather(1, drawn[:, None]) > 0).all())


def test_tokens_come_as_often_as_they_are_likely() -> None:
    logits = 2 * torch.randn(1, 12, generator=torch.Generator().manual_seed(4))
    how = Decoding(temperature=0.8, top_k=6, top_p=0.95)
    drawn = choose(logits.expand(40_000, -1), how, torch.Generator().manual_seed(0))
    often = torch.bincount(drawn, minlength=12) / len(drawn)
    kept = (logits[0] / 0.8).topk(6)
    likely = torch.zeros(12).scatter(0, kept.indices, kept.values.softmax(-1))
    rest = likely.sort(descending=True)
    before = rest.values.cumsum(-1) - rest.values
    likely[rest.indices[before >= 0.95]] = 0
    assert (often - likely / likely.sum()).abs().max() < 0.01


# Images


@pytest.fixture(scope="module")
def seeing() -> Magma:
    model = magma.assemble(
        {
            "name": "seeing",
            "seed": 1,
            "lm": {"use": "gptj", "weights": "bundled:tiny"},
            "inputs": {
                "image": {
                    "encoder": {"use": "clip", "layers": [1, 1, 1, 1], "width": 16, "image_size": 64},
                    "prefix": {"use": "linear", "layernorm": True},
                }
            },
            "adapters": {"mlp": {"use": "sequential", "downsample": 8}},
        }
    ).eval()
    with torch.no_grad():
        for adapter in model.lm.all_adapters():
            for parameter in adapter.parameters():
                parameter.mul_(200)  # so that it says something else each time
    return model


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mixed() -> list[list[Any]]:
    a, b, c = (picture(i) for i in range(3))
    return [
        [a, "A picture of"],
        ["Q: Which number is this?", b, " A:"],
        [a, "first", b, "second", c],
        ["only text"],
        [c, b],
        ["A picture", a, torch.tensor([5, 6, 7]), c, " and"],
    ]


def test_images_anywhere_and_in_any_number(seeing: Magma) -> None:
    expected = [by_recomputation(seeing, prompt, 8) for prompt in mixed()]
    assert len({tuple(tokens) for tokens in expected}) > 3
    assert [seeing.generate_tokens(prompt, max_tokens=8) for prompt in mixed()] == expected
    assert seeing.generate_tokens(mixed(), max_tokens=8) == expected
    assert seeing.generate(mixed(), max_tokens=8) == [seeing.lm.decode(tokens) for tokens in expected]


def test_every_image_counts_and_so_does_their_order(seeing: Magma) -> None:
    a, b = picture(0), picture(1)
    one, other = (seeing.logits([x, " and", y, " are"])[-1] for x, y in ((a, b), (b, a)))
    same = seeing.logits([a, " and", a, " are"])[-1]
    assert (one - other).abs().max() > 1e-4
    assert (one - same).abs().max() > 1e-4


def test_stops_and_streams_among_images(seeing: Magma) -> None:
    prompt = mixed()[2]
    whole = seeing.generate(prompt, max_tokens=16)
    stop = whole[len(whole) // 2 :][:2]
    assert seeing.generate(prompt, max_tokens=16, stop=stop) == whole[: whole.index(stop)]
    pieces = list(seeing.stream(prompt, max_tokens=16))
    assert len(pieces) > 1
    assert "".join(pieces) == whole
    assert "".join(seeing.stream(prompt, max_tokens=16, stop=stop)) == whole[: whole.index(stop)]


def test_seeded_sampling_repeats_with_images(seeing: Magma) -> None:
    how: dict[str, Any] = {"max_tokens": 12, "temperature": 1.5, "top_p": 0.95, "top_k": 50}
    first = seeing.generate(mixed(), **how, seed=1)
    assert seeing.generate(mixed(), **how, seed=1) == first
    assert seeing.generate(mixed(), **how, seed=2) != first


# Scores


def test_logits_of_any_segments(seeing: Magma) -> None:
    image, text = picture(7), "A picture of"
    ids = torch.tensor(seeing.lm.encode(text))
    prepared = seeing.input_modules()["image"].encoder.prepare(image)
    assert prepared.shape == (3, 64, 64)
    whole = seeing.logits([image, text])
    positions = seeing.input_modules()["image"].prefix.length
    assert whole.shape == (positions + len(ids), seeing.lm.vocab)
    for same in ([prepared, ids], [image, ids.int()], [prepared, text], [prepared, ids[:1], ids[1:]]):
        assert torch.equal(seeing.logits(same), whole)
    assert torch.allclose(seeing.logits([image]), whole[:positions], atol=1e-5)  # what follows is not seen
    twice = seeing.logits([text, image, text, image])
    assert twice.shape[0] == 2 * len(whole)
    assert torch.allclose(twice[: len(ids)], seeing.logits([ids]), atol=1e-5)
