"""The tokens that the library's processor puts around a medium, and how its chat template asks about one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magma import PartError, error_summary

from .whole_inputs import blank
from .whole_model import Modality

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Frame:
    """Token ids around the features of a medium."""

    before: Sequence[int] = ()
    after: Sequence[int] = ()
    problem: str = ""
    """Why the processor does not show them."""

    def describe(self) -> str:
        """The end of a line of the report."""
        if self.problem:
            return f", without tokens around it, because the processor does not show them: {self.problem}"
        count = len(self.before), len(self.after)
        return f", with the embeddings of {count[0]} tokens before and {count[1]} after it" if any(count) else ""


def load_full_processor(source: str | Path) -> Any:
    """The library's processor of text and media; None if there is no tokenizer beside the weights."""
    from transformers import AutoProcessor

    if not any(Path(source, name).is_file() for name in TOKENIZER_FILES):
        return None
    with contextlib.suppress(Exception):  # whatever the library raises if a file is not there
        processor = AutoProcessor.from_pretrained(source)
        if getattr(processor, "tokenizer", None) is not None:
            return processor
    return None


def find_frame(processor: Any, modality: Modality, token: int, media_processor: Any) -> Frame:
    """The tokens around a medium.

    Args:
        processor: The library's processor of text and media.
        modality: What is read.
        token: The id of the token that stands for one feature.
        media_processor: The image processor or the feature extractor.

    Raises:
        PartError: There are tokens between the features.
    """
    text = processor.tokenizer.convert_ids_to_tokens(token)
    medium = blank(modality, media_processor)
    media = {"images": [medium]} if modality == "image" else {"audio": [medium.numpy()]}
    try:
        ids = list(processor(text=[text], **media)["input_ids"][0])
    except Exception as error:  # the library raises errors of many types
        return Frame(problem=error_summary(error))
    around = list(processor.tokenizer("")["input_ids"])  # BOS and EOS, which the language model's own key decides
    places = [i for i, one in enumerate(ids) if one == token]
    if not places:
        return Frame(problem=f"it does not put the token {text!r} where the {modality} is")
    between = [one for one in ids[places[0] : places[-1]] if one != token]
    if between:
        names = processor.tokenizer.convert_ids_to_tokens(sorted(set(between)))
        raise PartError(f"its processor puts tokens between the features of one {modality}: {', '.join(names[:4])}")
    before, after = ids[: places[0]], ids[places[-1] + 1 :]
    return Frame(_without(before, around), _without(after[::-1], around[::-1])[::-1])


def _without(ids: list[int], start: list[int]) -> list[int]:
    """The ids without those of `start` that they begin with."""
    while ids and start and ids[0] == start[0]:
        ids, start = ids[1:], start[1:]
    return ids


def chat_prompt(processor: Any, modality: Modality, token: int) -> tuple[str, str] | None:
    """What is written before and after a medium to ask `{question}` about it. None: there is no such template.

    BOS at the beginning is left out: the language model's own key decides about it.
    """
    messages = [{"role": "user", "content": [{"type": modality}, {"type": "text", "text": "{question}"}]}]
    try:
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception:  # the library raises errors of many types; many processors have no template
        return None
    mark = processor.tokenizer.convert_ids_to_tokens(token)
    if not isinstance(text, str) or text.count(mark) != 1:
        return None
    before, after = text.split(mark)
    return before.removeprefix(processor.tokenizer.bos_token or ""), after
