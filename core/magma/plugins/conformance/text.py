"""Checks of a language model's tokenization: adjacent texts, unusual characters, control tokens."""

from __future__ import annotations

from ...data import tokenization
from ...data.collator import Collator
from ...errors import InputError
from ...interfaces import FrozenLM
from ...values import Example, Text
from .subject import Check, PartUnderTest, require

PAIRS = (("A:", " seven"), ("x\n", "y"), ("a ", "b"))
ODD = ("a \ufffd", "\U0001f600", "\u00e9t\u00e9")


def texts_in_a_row_are_one(subject: PartUnderTest) -> None:
    """Adjacent texts are tokenized as one, and a text after something else keeps its first character."""
    lm: FrozenLM = subject.make()
    for one, other in PAIRS:
        whole = one + other
        ids, offsets = lm.encode_with_offsets(whole)
        require(ids == lm.encode(whole), f"`encode_with_offsets` of {whole!r} gives other ids than `encode`")
        require(offsets is None or len(offsets) == len(ids), f"{len(ids)} tokens of {whole!r} have other offsets")
        found = Collator(lm, {}).encode_example(Example([Text(one), Text(other, target=True)]))
        wanted = [*lm.beginning, *ids, lm.eos]
        require(found.tokens == wanted, f"{one!r} and {other!r} give {found.tokens}; expected: {wanted}")
        target_tokens = [token for token, target in zip(found.tokens, found.targets, strict=True) if target][:-1]
        decoded = tokenization.decode_after(lm, target_tokens)
        # The first token may belong to both texts.
        more = len(tokenization.decode_after(lm, target_tokens[1:])) >= len(other)
        require(decoded.endswith(other) and not more, f"of {one!r} and {other!r}, the targets are {decoded!r}")
        after = tokenization.decode_after(lm, tokenization.encode(lm, [other], at_start=False)[0])
        require(after == other, f"after something else, {other!r} is decoded as {after!r}")


def odd_letters_are_read(subject: PartUnderTest) -> None:
    """Any text has readable tokens; half a surrogate pair is U+FFFD in a prompt and an error in data."""
    lm: FrozenLM = subject.make()
    for text in ODD:
        ids = lm.encode(text)
        require(bool(ids), f"{text!r} has no token")
        require(
            min(ids) >= 0 and max(ids) < lm.num_embeddings,
            f"{text!r} has tokens {ids}; allowed: 0 to {lm.num_embeddings - 1}",
        )
    collator = Collator(lm, {})
    asked = collator.encode_example(Example([Text("a \ud83d")]), truncate=False).tokens
    require(asked == [*lm.beginning, *lm.encode("a \ufffd")], "half a surrogate pair is not read as U+FFFD")
    try:
        collator.encode_example(Example([Text("a \ud83d", target=True)]))
    except InputError:
        return
    raise AssertionError("data with half a surrogate pair is accepted; expected: magma.InputError")


def typed_control_tokens_are_letters(subject: PartUnderTest) -> None:
    """The name of a control token in plain text gives its characters; in a template it gives the token."""
    lm: FrozenLM = subject.make()
    names = {**{lm.decode([end]): end for end in lm.ends}, **lm.control_tokens}
    for name, token in names.items():
        if not name.strip():
            continue
        text = f"a{name}b"
        for ids in (lm.encode(text), lm.encode_with_offsets(text)[0]):
            require(token not in ids, f"{name!r} in a text is token {token}, as if the model had written it")
    for name, token in lm.control_tokens.items():
        filled = Collator(lm, {}).encode_example(Example([Text.fill(f"{name}{{text}}", text="a")])).tokens
        wanted = [*lm.beginning, token]
        require(filled[: len(wanted)] == wanted, f"a template with {name!r} begins with {filled[: len(wanted)]}")


CHECKS: tuple[Check, ...] = (texts_in_a_row_are_one, odd_letters_are_read, typed_control_tokens_are_letters)
