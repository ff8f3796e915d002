"""The tokens of a text that consists of several segments: the same as those of the joined text.

Tokenizers like SentencePiece put a space before the first word of a text. That is right only at the start of a
sequence: a text that follows something else is encoded and decoded after an anchor, which is then removed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from ..interfaces import FrozenLM
from ..values import Text

Encode = Callable[[str], list[int]]
Owners = list[tuple[int, int]]
"""For each token, the first and the last of the texts that it covers."""
_ANCHORS = ("\n", "a", ":", "0", "\u00b7")
"""Short texts. A tokenizer may merge one of them with the text after it, but hardly all of them."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"


def encode(lm: FrozenLM, texts: Sequence[str], at_start: bool = True) -> tuple[list[int], Owners]:
    """Tokens of texts that follow each other, and their owners. `at_start`: they start the sequence.

    Without `lm.joins` each text is encoded as if it started the sequence.
    """
    if not lm.joins:
        pairs = [(token, number) for number, text in enumerate(texts) for token in lm.encode(text)]
        return [token for token, _ in pairs], [(number, number) for _, number in pairs]
    anchor = "" if at_start or not lm.marks_beginning else _anchor(lm, texts)
    skipped = len(lm.encode(anchor)) if anchor else 0
    if len(texts) == 1:
        ids = lm.encode(anchor + texts[0])[skipped:]
        return ids, [(0, 0)] * len(ids)
    ids, offsets = lm.encode_with_offsets(anchor + "".join(texts))
    if offsets is None:
        owners = _owners_by_prefix(lm.encode, ids, [anchor + texts[0], *texts[1:]])
    else:
        owners = _owners_by_offsets(offsets, [anchor + texts[0], *texts[1:]])
    return ids[skipped:], owners[skipped:]


def _anchor(lm: FrozenLM, texts: Sequence[str]) -> str:
    """The first anchor whose tokens stay the same before the text; empty if there is none."""
    text = "".join(texts)
    for anchor in _ANCHORS:
        before, whole = lm.encode(anchor), lm.encode(anchor + text)
        if before and whole[: len(before)] == before:
            return anchor
    return ""


def decode_after(lm: FrozenLM, tokens: Sequence[int]) -> str:
    """The text of tokens that follow something else, such as an answer. A space at its start is kept."""
    if not (lm.joins and lm.marks_beginning):
        return lm.decode(tokens)
    for anchor in _ANCHORS[1:]:  # a line feed may be a byte that the decoder joins with the next ones
        before = lm.encode(anchor)
        prefix, text = lm.decode(before), lm.decode([*before, *tokens])
        if prefix and text.startswith(prefix):
            return text[len(prefix) :]
    return lm.decode(tokens)


def _owners_by_prefix(encode: Encode, ids: Sequence[int], texts: Sequence[str]) -> Owners:
    """Owners of the tokens `ids` of the joined texts, for a tokenizer without offsets.

    A token belongs to the texts before a boundary if these texts have the same token without the rest. The first token
    that differs belongs to both sides.
    """
    first, last = [0] * len(ids), [0] * len(ids)
    text = ""
    for number, piece in enumerate(texts[:-1], 1):
        text += piece
        before = encode(text)
        same = next((i for i, pair in enumerate(zip(before, ids, strict=False)) if pair[0] != pair[1]), None)
        cut = min(len(before), len(ids)) if same is None else same
        after = min(cut + (len(before) > cut), len(ids))  # the token at `cut` began before this piece
        first[after:] = [number] * (len(ids) - after)
        last[cut:] = [number] * (len(ids) - cut)
    return list(zip(first, last, strict=True))


def _owners_by_offsets(offsets: Sequence[tuple[int, int]], texts: Sequence[str]) -> Owners:
    """Owners of tokens with these offsets (first character, and the one after the last) into the joined texts."""
    ends = list(accumulate(map(len, texts)))
    most = len(texts) - 1

    def owner(character: int) -> int:
        return min(bisect_right(ends, character), most)

    return [(owner(start), owner(max(start, end - 1))) for start, end in offsets]


def problem(text: str) -> str | None:
    """Why no tokenizer accepts a text (half of a surrogate pair); None if there is no problem."""
    found = _SURROGATE.search(text)
    return found and (
        f"its text has \\u{ord(found.group()):04x} at character {found.start() + 1}, half of a surrogate pair; "
        "allowed: characters that can be written in UTF-8"
    )


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, as decoders of UTF-8 do."""
    return _SURROGATE.sub(_REPLACEMENT, text)


def split_control_tokens(texts: Sequence[Text], control: Mapping[str, int]) -> Iterator[tuple[int, str | int]]:
    """(Number of the text, plain text or control token). Control tokens are found only where a text allows them."""
    names = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
    for number, text in enumerate(texts):
        at = 0
        for start, end in text.control if names else ():
            for found in re.finditer(names, text.text[start:end]):
                if before := text.text[at : start + found.start()]:
                    yield number, before
                yield number, control[found.group()]
                at = start + found.end()
        if rest := text.text[at:]:
            yield number, rest
