"""Prompts that begin alike: the same answers as one by one, with less to read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys import RECIPE, ToyLM

import magma
from magma import Decoding, InputError, Magma, Media, Text, TooLong
from magma.evaluation.prefix_sharing import PrefixCachedGenerator
from magma.values import Segment

pytestmark = pytest.mark.usefixtures("toys")
HOW = Decoding(max_tokens=4)


@pytest.fixture
def model() -> Magma:
    torch.manual_seed(3)
    return magma.assemble(RECIPE).eval()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many real positions each call of the language model reads."""
    seen: list[int] = []
    plain = ToyLM.forward

    def forward(self: ToyLM, embeddings: torch.Tensor, layout: magma.BatchLayout, cache: Any = None) -> torch.Tensor:
        seen.append(int(layout.lengths.sum()))
        return plain(self, embeddings, layout, cache)

    monkeypatch.setattr(ToyLM, "forward", forward)
    return seen


def number(value: int) -> Media:
    return Media("number", value)


SHOTS: list[Segment] = [number(1), Text("one. "), number(3), Text("three. ")]
KINDS: dict[str, list[list[Segment]]] = {
    "alone": [[number(2), Text("is")]],
    "different media": [[number(i), Text("is")] for i in range(4)],
    "one medium": [[number(2), Text(text)] for text in ("is", "is it?", "or not", "a")],
    "two media, unequal numbers of questions": [[number(i % 3 // 2), Text("?" * (i + 1))] for i in range(7)],
    "the same examples first": [[*SHOTS, number(i // 2), Text("is" * (1 + i % 2))] for i in range(6)],
    "the same examples first, one medium": [[*SHOTS, number(2), Text("is" * (1 + i))] for i in range(3)],
    "media at the end": [[Text("a"), number(1)], [Text("a"), number(2)], [Text("a"), number(1)]],
    "text alone": [[Text("abc")], [Text("ab")], [Text("abc")]],
    "of every kind": [[number(2), Text("is")], [Text("is")], [number(2)], [Text("a"), number(2), Text("is")]],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_are_those_of_one_by_one(model: Magma, kind: str, batch_size: int) -> None:
    prompts = KINDS[kind]
    expected = [model.generate(prompt, max_tokens=4) for prompt in prompts]
    found: dict[int, str] = {}
    for batch in PrefixCachedGenerator(model, HOW, batch_size).answers(prompts):
        assert not found.keys() & dict(batch).keys()
        found |= dict(batch)
    assert [found[i] for i in range(len(prompts))] == expected


def answered(model: Magma, prompts: list[list[Segment]], generator: PrefixCachedGenerator | None = None) -> None:
    for _ in (generator or PrefixCachedGenerator(model, HOW)).answers(prompts):
        pass


def test_what_prompts_share_is_read_once(model: Magma, read: list[int]) -> None:
    answered(model, KINDS["one medium"])
    assert read[:2] == [3, 2 + 6 + 6 + 1]  # the number two is three positions long
    read.clear()
    answered(model, KINDS["the same examples first"])
    shots = 2 + 5 + 4 + 7
    assert read[:3] == [shots, 1 + 2 + 3, 3 * (2 + 4)]


def test_a_common_beginning_is_kept_from_call_to_call(model: Magma, read: list[int]) -> None:
    generator = PrefixCachedGenerator(model, HOW)
    answered(model, KINDS["the same examples first"], generator)
    read.clear()
    answered(model, [[*SHOTS, number(0), Text("x")], [*SHOTS, number(1), Text("x")]], generator)
    assert read[0] == 1 + 2 + 2  # no examples
    read.clear()
    answered(model, [[number(0), Text("x")], [number(0), Text("y")]], generator)
    assert read[:2] == [1, 2]


def test_equal_prompts_are_answered_once(model: Magma, read: list[int]) -> None:
    answered(model, [[Text("abc")]] * 50)
    assert read[0] == 3


def test_what_does_not_fit_is_named(model: Magma) -> None:
    long: list[Segment] = [number(1), Text("a" * 40), number(0), Text("b" * 30)]
    with pytest.raises(TooLong, match="the second needs"):
        next(PrefixCachedGenerator(model, HOW).answers([[number(1), Text("a")], long], ["the first", "the second"]))
    together = [[*long[:3], Text(letter * 30)] for letter in "bc"]  # each part fits, and both do not
    with pytest.raises(TooLong, match="prompt 0 needs 73 positions, and 64 fit"):
        next(PrefixCachedGenerator(model, HOW).answers(together))


def test_a_model_that_classifies_is_refused() -> None:
    model = magma.assemble({**RECIPE, "head": {"use": "classes", "classes": ["a", "b"]}})
    with pytest.raises(InputError, match=r"use classify\(\)"):
        next(PrefixCachedGenerator(model, HOW).answers([[Text("a")]]))
