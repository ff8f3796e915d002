"""Short answers of a language model that continues text: word F1, and whether an answer begins with the right words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

WITHIN = 3
"""An answer is right if an accepted one begins within this many words, articles not counted."""
FIRST_WORDS = "among the first words"
"""How `starts_with_answer` is called in tables."""
_ARTICLES = {"a", "an", "the"}
_APOSTROPHES = re.compile("['`\N{RIGHT SINGLE QUOTATION MARK}]")
_SEPARATORS = re.compile(r"[^\w\s]|_")


def split_words(text: str) -> list[str]:
    """Words in lower case, without diacritics, punctuation and articles: "The Côte-d'Or." gives `cote`, `dor`.

    As the normalisation of SQuAD's official evaluation, except for diacritics and for hyphens, which separate words.
    """
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(character for character in decomposed if not unicodedata.combining(character)).lower()
    words = _SEPARATORS.sub(" ", _APOSTROPHES.sub("", plain)).split()
    return [word for word in words if word not in _ARTICLES]


def word_f1(text: str, answers: Iterable[str]) -> float:
    """F1 of the words of an answer, as in SQuAD's official evaluation: the maximum over the accepted answers."""
    return max((_f1(split_words(text), split_words(answer)) for answer in answers), default=0.0)


def _f1(found: Sequence[str], right: Sequence[str]) -> float:
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right)) if common else 0.0


def same_words(text: str, answers: Iterable[str]) -> bool:
    """Whether an answer has exactly the words of an accepted one."""
    return split_words(text) in list(map(split_words, answers))


def same_first_word(text: str, answers: Iterable[str]) -> bool:
    """Whether an answer has the first word of an accepted one."""
    return any(words and words == split_words(answer)[:1] for words in [split_words(text)[:1]] for answer in answers)


def starts_with_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether an accepted answer is among the first words of a text, as whole words: it begins within `WITHIN` words.

    "Nairobi, the largest city" and "in East Africa" are right answers for Nairobi and Africa, "the capital of the
    country of Kenya" is not one for Kenya.
    """
    words = split_words(text)
    wanted = [split_words(answer) for answer in answers]
    return any(words[i : i + len(one)] == one for one in wanted if one for i in range(WITHIN))
