"""From a user's values to a batch: order, slots, labels, truncation."""

from __future__ import annotations

import pytest
import torch
from toys import ToyEncoder, ToyLM, ToyPrefix

from magma import Example, InputError, Media, Text, Tokens, TooLong
from magma.data.collator import Collator


@pytest.fixture
def collator() -> Collator:
    lm, encoder = ToyLM(ToyLM.Config()), ToyEncoder(ToyEncoder.Config())
    prefix = ToyPrefix(ToyPrefix.Config(), encoder.dim, encoder.length, lm.dim)
    return Collator(lm, {"number": (encoder, prefix)})


def test_media_and_text_keep_their_order(collator: Collator) -> None:
    example = Example([Text("ab"), Media("number", 1), Text("c"), Media("number", 3)])
    found = collator.encode_example(example)
    # a number n fills n + 1 positions
    assert found.tokens == [*b"ab", 0, 0, *b"c", 0, 0, 0, 0]
    assert [(name, start, size) for name, _, start, size in found.media] == [("number", 2, 2), ("number", 5, 4)]


def test_labels_are_the_targets_and_one_end(collator: Collator) -> None:
    batch = collator.batch(
        [
            Example([Media("number", 0), Text("is"), Text(" x", target=True)]),
            Example([Text("longer prompt"), Text("yz", target=True)]),
        ]
    )
    assert batch.labels.tolist() == [*b" x", 256, *b"yz", 256]
    width = batch.tokens.shape[1]
    # each scored position stands just before the token that it predicts
    flat = batch.tokens.flatten()
    assert flat[batch.layout.scored + 1].tolist() == batch.labels.tolist()
    assert batch.layout.lengths.tolist() == [6, 16]
    assert width == 16


def test_text_after_the_last_target_gets_no_end(collator: Collator) -> None:
    found = collator.encode_example(Example([Text("a", target=True), Text("b")]))
    assert found.tokens == [*b"ab"]
    assert found.targets == [True, False]


def test_first_position_is_never_scored(collator: Collator) -> None:
    batch = collator.batch([Example([Text("ab", target=True)])])
    assert batch.labels.tolist() == [*b"b", 256]
    assert batch.layout.scored.tolist() == [0, 1]


def test_media_slots_exclude_padding(collator: Collator) -> None:
    batch = collator.batch([Example([Media("number", 1), Text("a")]), Example([Text("b"), Media("number", 0)])])
    slots = batch.slots["number"]
    width = batch.tokens.shape[1]
    assert slots.positions.tolist() == [0, 1, width + 1]
    assert slots.media_index.tolist() == [0, 0, 1]
    assert slots.embedding_index.tolist() == [0, 1, 0]


def test_width_is_rounded_up() -> None:
    lm = ToyLM(ToyLM.Config())
    batch = Collator(lm, {}, pad_to_multiple_of=8).batch([Example([Text("abc"), Text("d", target=True)])])
    assert batch.tokens.shape == (1, 8)
    assert batch.layout.lengths.tolist() == [5]


def test_text_is_cut_at_the_end(collator: Collator) -> None:
    collator.max_length = 6
    found = collator.encode_example(Example([Media("number", 1), Text("abcdefgh", target=True)]))
    assert len(found) == 6
    assert found.tokens[2:] == [*b"abcd"]


@pytest.mark.parametrize(
    "segments", [[Text("abcde"), Media("number", 3)], [Media("number", 1), Text("abcde"), Text("f", target=True)]]
)
def test_an_example_that_cannot_fit_is_named(collator: Collator, segments: list[object]) -> None:
    collator.max_length = 6
    with pytest.raises(TooLong, match=r"row 17 needs .* at most 6 fit"):
        collator.encode_example(Example(segments, "row 17"))  # type: ignore[arg-type]


def test_wrong_values_are_named(collator: Collator) -> None:
    with pytest.raises(InputError, match=r"row 3: number: given 9; allowed: 0 to 3"):
        collator.encode_example(Example([Media("number", 9)], "row 3"))
    with pytest.raises(InputError, match=r'no input is called "picture"; inputs: number'):
        collator.encode_example(Example([Media("picture", 1)]))
    with pytest.raises(InputError, match="is empty"):
        collator.encode_example(Example([]))
    with pytest.raises(InputError, match="token ids must be 0 to 256, got 5 to 300"):
        collator.encode_example(Example([Tokens(torch.tensor([5, 300]))]))


def test_raw_values_find_their_input(collator: Collator) -> None:
    assert collator.segment(2) == Media("number", 2)
    assert collator.segment("word") == Text("word")
    assert isinstance(collator.segment(torch.tensor([1, 2])), Tokens)
    with pytest.raises(InputError, match=r"no input accepts a value of type float; inputs: number.*Media"):
        collator.segment(2.5)


def test_a_value_that_fits_two_inputs_is_refused(collator: Collator) -> None:
    collator.inputs = {"first": collator.inputs["number"], "second": collator.inputs["number"]}
    with pytest.raises(InputError, match=r"fits several inputs \(first, second\)"):
        collator.segment(2)


def test_max_length_beyond_the_context_is_refused() -> None:
    with pytest.raises(InputError, match="max_length: given 100; allowed: 1 to 64, the language model's context"):
        Collator(ToyLM(ToyLM.Config()), {}, max_length=100)


def test_batch_to_casts_only_media(collator: Collator) -> None:
    batch = collator.batch([Example([Media("number", 1), Text("a"), Text("b", target=True)])])
    moved = batch.to("meta", torch.bfloat16)
    assert moved.media["number"].dtype == torch.bfloat16
    assert moved.tokens.dtype == torch.int64
    assert {
        t.device.type for t in (moved.tokens, moved.labels, moved.layout.scored, moved.slots["number"].media_index)
    } == {"meta"}
