"""A MAGMA folder as one of lmms-eval's "simple" models: a context, a document's media, and what is asked of them."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from magma import Decoding, InputError, Text, Tokens, load

from . import missing_dependency

try:
    from lmms_eval.api.instance import GenerationResult
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise missing_dependency(error) from error

log = logging.getLogger("magma_harness")
TEMPLATE = "{media}{text}"
SAMPLING = ("temperature", "top_p", "top_k")
KNOWN = (*SAMPLING, "until", "max_new_tokens", "do_sample", "num_beams")


class MagmaFolder(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """The model of a folder, as `--model_args` describes it.

    pretrained: the folder, a checkpoint or a run.
    batch_size: how many requests are answered at once.
    device: where; by default this process's GPU, or the CPU where there is none.
    template: the prompt. `{media}` stands for all that the task's `doc_to_visual` gives, in its order, `{text}` for the
    context that the task writes, and `\\n` for a new line: "{media}Q: {text} A:".
    max_new_tokens: how long an answer may be where the task does not say it.
    lm: where the language model is now, if it has moved.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        template: str = TEMPLATE,
        max_new_tokens: int = 256,
        lm: str | None = None,
        max_batch_size: int | str | None = None,  # lmms-eval always offers it; there is no search for a batch size
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"batch_size is {batch_size!r}; allowed: a whole number of 1 or more")
        self.batch_size = int(batch_size)
        self.max_new_tokens = max_new_tokens
        self.template = _template(str(template))
        self.model = load(str(pretrained), lm=lm, device=_device(device))
        self.device = self.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, whose `args` are (context, options, doc_to_visual, document, task, split)."""
        alike: dict[Decoding, list[int]] = {}
        for i, request in enumerate(requests):
            with _name_documents_in_errors([request]):
                alike.setdefault(self._decoding(request.args[1]), []).append(i)
        answers = [""] * len(requests)
        with self._progress(len(requests)) as done:
            for decoding, numbers in alike.items():
                for batch in self._batches(numbers):
                    asked = [requests[i] for i in batch]
                    prompts = [self._prompt(request) for request in asked]
                    with _name_documents_in_errors(asked):
                        texts = self.model.generate(prompts, **asdict(decoding))
                    for i, text in zip(batch, texts, strict=True):
                        answers[i] = text
                    done(len(batch))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """How likely each continuation is, and whether greedy decoding writes it.

        `args` are (context, continuation, doc_to_visual, document, task, split). A continuation that is a function of
        the document is a task's target, and the number is its log-probability. One that is text is a choice among
        several: lmms-eval takes the choice of the least number, the loss of its own models, so the number is the
        log-probability negated. Either is summed over the continuation's tokens.
        """
        found: list[Any] = []
        with self._progress(len(requests)) as done:
            for batch in self._batches(requests):
                prompts = [self._prompt(request) for request in batch]
                texts = [self._continuation(request) for request in batch]
                with _name_documents_in_errors(batch):
                    scores = self.model.log_likelihood(prompts, texts)
                for request, (total, greedy) in zip(batch, scores, strict=True):
                    pair = (total if callable(request.args[1]) else -total, greedy)
                    found.append(GenerationResult(pair))  # a bare pair is turned into a string by the evaluator
                done(len(batch))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: a folder answers single prompts."""
        with _name_documents_in_errors(requests[:1]):
            raise InputError("it asks in several rounds; a MAGMA folder takes generate_until and loglikelihood")

    def _batches(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for at in range(0, len(items), self.batch_size):
            yield items[at : at + self.batch_size]

    @contextmanager
    def _progress(self, total: int) -> Iterator[Callable[[int], Any]]:
        with tqdm(total=total, desc="MAGMA", disable=self.rank != 0) as bar:
            yield bar.update

    # One request

    def _prompt(self, request: Any) -> list[Any]:
        """Its segments, in the template's order; end-of-text where there is nothing, for something has to be read."""
        context, _, *about = request.args
        values: list[Any] = []
        if about:  # else it asks for a choice's likelihood behind nothing
            doc_to_visual, *where = about
            values = _flatten_media(doc_to_visual(self._document(*where)))
        before, after = (Text.fill(part, text=context) for part in self.template)
        if not values:
            alone = before + after
            return [alone] if alone.text else [Tokens(torch.tensor([self.model.lm.eos]))]
        collator = self.model.collator()
        with _name_documents_in_errors([request]):
            return [collator.segment(piece) for piece in (before, *values, after)]

    def _continuation(self, request: Any) -> str:
        _, continuation, *about = request.args
        return str(continuation(self._document(*about[1:])) if callable(continuation) else continuation)

    def _document(self, number: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]

    def _decoding(self, options: Mapping[str, Any]) -> Decoding:
        """A task's `generation_kwargs`, which are those of transformers; None is as good as absent."""
        given = {name: value for name, value in options.items() if value is not None}
        for name in given.keys() - set(KNOWN):
            _warn(f'generation option "{name}" is not known to MAGMA and has no effect; known: {", ".join(KNOWN)}')
        if given.get("num_beams", 1) != 1:
            raise InputError(f"num_beams is {given['num_beams']}; allowed: 1, there is no beam search")
        until = given.get("until", ())
        stop = [until] if isinstance(until, str) else until
        warm = given.get("temperature", 1.0 if given.get("do_sample") else 0.0) > 0
        sampled = {}
        if warm and given.get("do_sample", True):
            sampled = {"temperature": 1.0} | {name: given[name] for name in SAMPLING if name in given}
        return Decoding(
            max_tokens=int(given.get("max_new_tokens", self.max_new_tokens)),
            stop=tuple(text for text in stop if text),
            **sampled,
        )


def _template(text: str) -> tuple[str, str]:
    """What stands before the media and behind them; `{text}` is in one of the two."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":  # lmms-eval leaves quotes where they are
        text = text[1:-1]
    if text.count("{media}") != 1 or text.count("{text}") != 1:
        raise InputError(f'template is {text!r}; allowed: text with "{{media}}" and "{{text}}" in it, once each')
    before, _, after = text.replace("\\n", "\n").partition("{media}")
    return before, after


def _device(given: str | None) -> str:
    """The one asked for. Of several GPUs, each process that lmms-eval is started in takes its own."""
    device = given or ("cuda" if torch.cuda.is_available() else "cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device


def _flatten_media(value: Any) -> list[Any]:
    """What `doc_to_visual` gives, lists in lists or nothing at all, each as an encoder takes it."""
    if value is None:
        return []
    if isinstance(value, list):
        return [medium for one in value for medium in _flatten_media(one)]
    return [_to_medium(value)]


def _to_medium(value: Any) -> Any:
    """Files and sounds in the forms of `datasets`; whatever else it is, an encoder may know it."""
    if isinstance(value, str):
        return Path(value)
    decoders = sys.modules.get("torchcodec.decoders")
    if decoders is not None and isinstance(value, decoders.AudioDecoder):
        samples = value.get_all_samples()
        return samples.data, samples.sample_rate
    if isinstance(value, Mapping):
        if value.get("array") is not None and "sampling_rate" in value:
            return np.asarray(value["array"]), value["sampling_rate"]
        if value.get("bytes"):
            return value["bytes"]
        if value.get("path"):
            return Path(value["path"])
    return value


@contextmanager
def _name_documents_in_errors(requests: Sequence[Any]) -> Iterator[None]:
    """Say of which documents an `InputError` speaks."""
    try:
        yield
    except InputError as error:
        about = [request.args[-3:-1] for request in requests if len(request.args) > 2]
        names = ", ".join(f"{task} document {number}" for number, task in about) or "a request"
        raise type(error)(f"{names}: {error}") from error


@functools.cache
def _warn(message: str) -> None:
    """Once, however many requests there are."""
    log.warning(message)
