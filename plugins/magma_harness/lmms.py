"""A MAGMA folder as one of lmms-eval's "simple" models.

A request has a context, the media of a document, and generation options or a continuation.
"""

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
DEFAULT_TEMPLATE = "{media}{text}"
SAMPLING_OPTIONS = ("temperature", "top_p", "top_k")
SUPPORTED_OPTIONS = (*SAMPLING_OPTIONS, "until", "max_new_tokens", "do_sample", "num_beams")


class MagmaFolder(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """The model of a folder, as `--model_args` describes it.

    pretrained: a checkpoint, or the folder of a run.
    batch_size: number of requests per batch.
    device: default: the GPU of this process, or the CPU if there is no GPU.
    template: the prompt. `{media}` is replaced by everything that the task's `doc_to_visual` returns, in its order,
    `{text}` by the task's context, and `\\n` by a line break: "{media}Q: {text} A:".
    max_new_tokens: maximum length of an answer, for tasks that set no limit.
    lm: the current place of the language model, if it was moved.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        template: str = DEFAULT_TEMPLATE,
        max_new_tokens: int = 256,
        lm: str | None = None,
        max_batch_size: int | str | None = None,  # lmms-eval always passes it; the batch size is not searched
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"batch_size is {batch_size!r}; allowed: a whole number of 1 or more")
        self.batch_size = int(batch_size)
        self.max_new_tokens = max_new_tokens
        self.template = _split_template(str(template))
        self.model = load(str(pretrained), lm=lm, device=_choose_device(device))
        self.device = self.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, whose `args` are (context, options, doc_to_visual, document, task, split)."""
        by_decoding: dict[Decoding, list[int]] = {}
        for i, request in enumerate(requests):
            with _name_documents_in_errors([request]):
                by_decoding.setdefault(self._make_decoding(request.args[1]), []).append(i)
        answers = [""] * len(requests)
        with self._show_progress(len(requests)) as done:
            for decoding, numbers in by_decoding.items():
                for batch in self._iter_batches(numbers):
                    batch_requests = [requests[i] for i in batch]
                    prompts = [self._make_prompt(request) for request in batch_requests]
                    with _name_documents_in_errors(batch_requests):
                        texts = self.model.generate(prompts, **asdict(decoding))
                    for i, text in zip(batch, texts, strict=True):
                        answers[i] = text
                    done(len(batch))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """The log-likelihood of each continuation, and whether greedy decoding produces it.

        `args` are (context, continuation, doc_to_visual, document, task, split). If the continuation is a function of
        the document, it is the task's target, and the result is its log-probability. If it is a string, it is one of
        several choices. lmms-eval selects the choice with the lowest number, because its own models return a loss;
        the result is therefore the negative log-probability. Both are sums over the tokens of the continuation.
        """
        found: list[Any] = []
        with self._show_progress(len(requests)) as done:
            for batch in self._iter_batches(requests):
                prompts = [self._make_prompt(request) for request in batch]
                texts = [self._get_continuation(request) for request in batch]
                with _name_documents_in_errors(batch):
                    scores = self.model.log_likelihood(prompts, texts)
                for request, (total, greedy) in zip(batch, scores, strict=True):
                    pair = (total if callable(request.args[1]) else -total, greedy)
                    found.append(GenerationResult(pair))  # a bare pair is turned into a string by the evaluator
                done(len(batch))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported: raises `InputError`."""
        with _name_documents_in_errors(requests[:1]):
            raise InputError("it needs several rounds of generation; supported: generate_until and loglikelihood")

    def _iter_batches(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for at in range(0, len(items), self.batch_size):
            yield items[at : at + self.batch_size]

    @contextmanager
    def _show_progress(self, total: int) -> Iterator[Callable[[int], Any]]:
        with tqdm(total=total, desc="MAGMA", disable=self.rank != 0) as bar:
            yield bar.update

    # One request

    def _make_prompt(self, request: Any) -> list[Any]:
        """Its segments, in the order of the template; an end-of-text token if there are none."""
        context, _, *about = request.args
        values: list[Any] = []
        if about:  # without it, the request is for the unconditional likelihood of a choice
            doc_to_visual, *where = about
            values = _flatten_media(doc_to_visual(self._get_document(*where)))
        before, after = (Text.fill(part, text=context) for part in self.template)
        if not values:
            text = before + after
            return [text] if text.text else [Tokens(torch.tensor([self.model.lm.eos]))]
        collator = self.model.collator()
        with _name_documents_in_errors([request]):
            return [collator.segment(piece) for piece in (before, *values, after)]

    def _get_continuation(self, request: Any) -> str:
        _, continuation, *about = request.args
        return str(continuation(self._get_document(*about[1:])) if callable(continuation) else continuation)

    def _get_document(self, number: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]

    def _make_decoding(self, options: Mapping[str, Any]) -> Decoding:
        """Decoding for a task's `generation_kwargs`, which have the names of transformers; None counts as absent."""
        given = {name: value for name, value in options.items() if value is not None}
        supported = ", ".join(SUPPORTED_OPTIONS)
        for name in given.keys() - set(SUPPORTED_OPTIONS):
            _warn_once(f'generation option "{name}" is not supported and has no effect; supported: {supported}')
        if given.get("num_beams", 1) != 1:
            raise InputError(f"num_beams is {given['num_beams']}; allowed: 1, because beam search is not supported")
        until = given.get("until", ())
        stop = [until] if isinstance(until, str) else until
        temperature_is_positive = given.get("temperature", 1.0 if given.get("do_sample") else 0.0) > 0
        sampled = {}
        if temperature_is_positive and given.get("do_sample", True):
            sampled = {"temperature": 1.0} | {name: given[name] for name in SAMPLING_OPTIONS if name in given}
        return Decoding(
            max_tokens=int(given.get("max_new_tokens", self.max_new_tokens)),
            stop=tuple(text for text in stop if text),
            **sampled,
        )


def _split_template(text: str) -> tuple[str, str]:
    """The parts of the template before and after the media; one of the two contains `{text}`."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":  # lmms-eval does not remove quotes
        text = text[1:-1]
    if text.count("{media}") != 1 or text.count("{text}") != 1:
        raise InputError(f'template is {text!r}; allowed: text with "{{media}}" and "{{text}}" in it, once each')
    before, _, after = text.replace("\\n", "\n").partition("{media}")
    return before, after


def _choose_device(given: str | None) -> str:
    """The given device, or the default. With several GPUs, each process of lmms-eval uses its local rank."""
    device = given or ("cuda" if torch.cuda.is_available() else "cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device


def _flatten_media(value: Any) -> list[Any]:
    """The media that `doc_to_visual` returns (None or nested lists, too), in a form that encoders accept."""
    if value is None:
        return []
    if isinstance(value, list):
        return [medium for one in value for medium in _flatten_media(one)]
    return [_to_medium(value)]


def _to_medium(value: Any) -> Any:
    """Converts files and audio from the types of `datasets`; other values are returned unchanged."""
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
    """Add the names of the documents to an `InputError`."""
    try:
        yield
    except InputError as error:
        about = [request.args[-3:-1] for request in requests if len(request.args) > 2]
        names = ", ".join(f"{task} document {number}" for number, task in about) or "a request"
        raise type(error)(f"{names}: {error}") from error


@functools.cache
def _warn_once(message: str) -> None:
    """Log each message only once."""
    log.warning(message)
