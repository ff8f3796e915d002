"""Magma: encoders and prefixes in front of a frozen language model with adapters inside it.

Axes: b batch, n features, e encoder width, k prefix length, t tokens, d language-model width, v vocabulary,
m scored positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data.collator import Collator
from .data.sequence import Batch, EncodedExample
from .errors import InputError, PartError
from .generation.decoding import Answer, Decoding, continuations, decode, decoding_from_options
from .inputs import Input
from .interfaces import SUBLAYERS, Adapter, FrozenLM, Head, Module, Sublayer
from .names import module_problem
from .system.memory import in_pieces
from .values import Example, Features, Text

ALWAYS_STORED = ("prefix", "adapter", "head")
"""Kinds of parts that a checkpoint holds even if they are frozen: they have no file of weights."""


@dataclass(frozen=True)
class PartSummary:
    """One line of a model's table of parts."""

    path: str
    name: str
    parameters: int
    trained: int

    @property
    def frozen(self) -> int:
        """The others."""
        return self.parameters - self.trained


class Magma(nn.Module):
    """A frozen language model that reads other modalities.

    `inputs` maps a name to an `Input`; `adapters` maps "attention" or "mlp" to a function that makes one adapter,
    called once a block. With a `head` the model classifies instead of writing. Parts may come in several
    precisions: `.to(dtype)` brings them to one. Raises `PartError` where widths do not fit.
    """

    def __init__(
        self,
        lm: FrozenLM,
        inputs: Mapping[str, Input] | None = None,
        adapters: Mapping[Sublayer, Callable[[], Adapter]] | None = None,
        head: Head | None = None,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.head = head
        for name in inputs or {}:
            if problem := module_problem(name):
                raise PartError(f"inputs.{name}: given {name!r}; allowed: {problem}")
        self.inputs = nn.ModuleDict(dict(inputs or {}))
        self.from_checkpoint: frozenset[str] = frozenset()
        """Paths of frozen parts that have a checkpoint's weights: a new checkpoint needs them, too."""
        self.run_all_inputs = False
        """Run every input for every batch also where nothing is learnt: other processes may have media for it."""
        for place, make in (adapters or {}).items():
            if place not in SUBLAYERS:
                raise PartError(f'adapters are put on {" or ".join(SUBLAYERS)}, not on "{place}"')
            lm.add_adapters(place, make)
        lm.freeze()
        self._check_widths()
        self.train(self.training)

    def _check_widths(self) -> None:
        """Run every prefix's declared shape on meta: a width that does not fit is found before a GPU hour is spent."""
        for name, input_module in self.input_modules().items():
            features = torch.empty(1, input_module.encoder.length, input_module.encoder.dim, device="meta")
            try:
                out: Features = _on_meta(input_module.prefix)(Features(features))
            except RuntimeError as error:
                raise PartError(
                    f"inputs.{name}: the prefix cannot take the encoder's "
                    f"[b, {input_module.encoder.length}, {input_module.encoder.dim}]: {error}"
                ) from error
            wanted = (1, input_module.prefix.length, self.lm.dim)
            if tuple(out.values.shape) != wanted:
                raise PartError(
                    f"inputs.{name}: the prefix gives {list(out.values.shape)}, but its length and the language "
                    f"model's width ask for {list(wanted)}"
                )
        if self.head is not None:
            scores = _on_meta(self.head)(torch.empty(1, self.lm.dim, device="meta"))
            if tuple(scores.shape) != (1, len(self.head.classes)):
                raise PartError(f"head: it gives {list(scores.shape)} for {len(self.head.classes)} classes")

    def input_modules(self) -> dict[str, Input]:
        """The inputs by name, typed."""
        return {name: input_module for name, input_module in self.inputs.items() if isinstance(input_module, Input)}

    def collator(self, max_length: int | None = None, multiple: int = 1) -> Collator:
        """What turns examples into batches for this model."""
        return Collator(
            self.lm,
            {name: (input_module.encoder, input_module.prefix) for name, input_module in self.input_modules().items()},
            max_length,
            multiple,
            self.head.classes if self.head else (),
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    # Embedding and loss

    def embed(self, batch: Batch) -> Tensor:
        """[b, t, d]: word embeddings, with every medium's embeddings written into its slots.

        Each input runs exactly once. In training, or in `run_all_inputs`, one that this batch lacks runs on a blank, with no
        weight in the result and no buffer changed, so that all ranks do the same collectives.
        """
        words = self.lm.embed(batch.tokens)
        flat = words.flatten(0, 1)
        for name, input_module in self.input_modules().items():
            if name in batch.media:
                values = input_module(batch.media[name]).values
                slots = batch.slots[name]
                rows = slots.media_index * values.shape[1] + slots.embedding_index
                flat = flat.index_copy(0, slots.positions, values.flatten(0, 1).index_select(0, rows).to(flat.dtype))
            elif self.run_all_inputs or torch.is_grad_enabled():
                blank = input_module.encoder.stack([input_module.encoder.dummy_item()]).to(
                    words.device, self._input_dtype(input_module, words.dtype)
                )
                was = input_module.training
                input_module.eval()  # BatchNorm's statistics stay as they are
                flat = flat + 0 * input_module(blank).values.sum().to(flat.dtype)
                input_module.train(was)
        return flat.view_as(words)

    @staticmethod
    def _input_dtype(input_module: Input, otherwise: torch.dtype) -> torch.dtype:
        return next((p.dtype for p in input_module.parameters()), otherwise)

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy of the targets, summed over them, in float32. Divide by the targets of the global batch."""
        hidden = self.lm(self.embed(batch), batch.layout)
        if self.head is None:
            return self.lm.cross_entropy(hidden, batch.labels)
        return F.cross_entropy(self.head(hidden).float(), batch.labels, reduction="sum")

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the targets of this batch, in nats (equations 3 and 4)."""
        if not len(batch.labels):
            raise InputError(f"no target tokens in this batch ({', '.join(batch.names)})")
        total: Tensor = self(batch)
        return total / len(batch.labels)

    @torch.no_grad()
    def logits(self, segments: Sequence[Any]) -> Tensor:
        """[t, v]: next-token logits at every position of one sequence of segments, media positions included.

        A segment is text, token ids (an integer tensor [n]), a raw medium, or one that is prepared (as its
        encoder gives it); `TooLong` where they do not fit the context. The mode is the model's own: dropout acts in
        training mode.
        """
        batch = self._prompts(self._examples(self.collator(), [segments]))
        width = batch.tokens.shape[1]
        batch.layout = type(batch.layout)(
            batch.layout.positions, batch.layout.lengths, torch.arange(width, device=self.device)
        )
        out: Tensor = self.lm.lm_head(self.lm(self.embed(batch), batch.layout))
        return out

    @torch.no_grad()
    def classify(self, prompts: Sequence[Sequence[Any]]) -> list[dict[str, float]]:
        """The probability of every class of the head, for each prompt: a list of segments as `generate` takes it."""
        if self.head is None:
            raise InputError("this model has no [head]: it writes, use generate")
        head = self.head

        def scores(some: Sequence[Example]) -> list[list[float]]:
            batch = self._prompts(some)
            found: list[list[float]] = head(self.lm(self.embed(batch), batch.layout)).float().softmax(-1).tolist()
            return found

        with self.eval_mode():
            rows = in_pieces(self._examples(self.collator(), prompts), scores)
        return [dict(zip(head.classes, row, strict=True)) for row in rows]

    @torch.no_grad()
    def log_likelihood(self, prompts: Sequence[Sequence[Any]], texts: Sequence[str]) -> list[tuple[float, bool]]:
        """How likely each text is behind its prompt, a list of segments as `generate` takes it; all in one batch.

        The log-probability of the text's tokens, summed, in nats, and whether greedy decoding would write them. No
        end-of-text is among them. Raises `TooLong` where a text would be cut.
        """
        if self.head is not None:
            raise InputError("this model has a [head]: it classifies, use classify")
        if len(prompts) != len(texts):
            raise InputError(f"given {len(prompts)} prompts and {len(texts)} texts; allowed: as many of both")
        collator = self.collator()
        examples = self._examples(collator, prompts)
        rows = [self._continued(collator, example, text) for example, text in zip(examples, texts, strict=True)]
        with self.eval_mode():
            return in_pieces(rows, lambda some: self._likelihoods(collator.pad(some), some))

    def _likelihoods(self, batch: Batch, rows: Sequence[EncodedExample]) -> list[tuple[float, bool]]:
        batch = batch.to(self.device, self.dtype)
        logits = self.lm.lm_head(self.lm(self.embed(batch), batch.layout)).float()
        chances = logits.log_softmax(-1).gather(1, batch.labels[:, None]).squeeze(1).cpu()
        chosen = (logits[:, : self.lm.num_embeddings].argmax(-1) == batch.labels).cpu()
        counts = [sum(row.targets) for row in rows]
        return [
            (float(chance.sum()), bool(hits.all()))
            for chance, hits in zip(torch.split(chances, counts), torch.split(chosen, counts), strict=True)
        ]

    def _continued(self, collator: Collator, prompt: Example, text: str) -> EncodedExample:
        """A prompt with a text behind it as its targets, whole."""
        ending = Text("")  # where the last segment is no target, no end-of-text follows
        whole = Example([*prompt.segments, Text(text, target=True), ending], f"{prompt.name} with {text!r} behind it")
        row = collator.encode_example(whole, truncate=False)
        if row.targets[0]:
            raise InputError(f"{prompt.name} is empty: nothing stands before {text!r} that could predict it")
        return row

    # Generation

    def generate(self, prompt: Sequence[Any], **how: Any) -> Any:
        """Continue a prompt: `model.generate([scan, "The obstacle is"])` gives a string.

        A list of prompts gives a list of strings. `how` are the fields of `Decoding`: max_tokens, temperature,
        top_k, top_p, stop, seed.
        """
        many = _several(prompt)
        texts = [answer.text for answer in self._answers(prompt if many else [prompt], decoding_from_options(how))]
        return texts if many else texts[0]

    def generate_tokens(self, prompt: Sequence[Any], **how: Any) -> Any:
        """As `generate`, but token ids: a list of ints, or a list of those. No tokenizer is needed without `stop`."""
        many = _several(prompt)
        ids = [
            list(answer.tokens) for answer in self._answers(prompt if many else [prompt], decoding_from_options(how))
        ]
        return ids if many else ids[0]

    def stream(self, prompt: Sequence[Any], **how: Any) -> Iterator[str]:
        """The same for one prompt, piece by piece as it is written."""
        decoding = decoding_from_options(how)
        examples = self._examples(self.collator(), [prompt])
        return continuations((answer.text for (answer,) in self._decode(examples, decoding)), decoding.stop)

    def _answers(self, prompts: Sequence[Sequence[Any]], how: Decoding) -> list[Answer]:
        """All at once, or one piece after the other where memory runs out."""
        return in_pieces(self._examples(self.collator(), prompts), lambda some: list(self._decode(some, how))[-1])

    @torch.no_grad()
    def _decode(self, prompts: Sequence[Example], how: Decoding) -> Iterator[list[Answer]]:
        if self.head is not None:
            raise InputError("this model has a [head]: it classifies, use classify")
        with self.eval_mode():
            batch = self._prompts(prompts)
            yield from decode(self.lm, self.embed(batch), batch.layout, how)

    def _prompts(self, prompts: Sequence[Example]) -> Batch:
        collator = self.collator()
        encoded = [collator.encode_example(example, truncate=False) for example in prompts]
        return collator.pad(encoded, score_last=True).to(self.device, self.dtype)

    @staticmethod
    def _examples(collator: Collator, prompts: Sequence[Sequence[Any]]) -> list[Example]:
        """Prompts as users give them, with a name each for errors."""
        examples = []
        for i, prompt in enumerate(prompts):
            if isinstance(prompt, str) or not isinstance(prompt, Sequence):
                raise InputError(f'a prompt is a list such as [medium, "text"], not a {type(prompt).__name__}')
            name = "the prompt" if len(prompts) == 1 else f"prompt {i}"
            examples.append(Example([collator.segment(value) for value in prompt], name))
        return examples

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Eval mode for a while."""
        was = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was)

    # What is trained

    def parts(self) -> dict[str, list[Module]]:
        """Every part by its path in a recipe: `lm`, `inputs.NAME.encoder`, `adapters.mlp` (one a block), ..."""
        parts: dict[str, list[Module]] = {"lm": [self.lm]}
        for name, input_module in self.input_modules().items():
            parts[f"inputs.{name}.encoder"] = [input_module.encoder]
            parts[f"inputs.{name}.prefix"] = [input_module.prefix]
        for place, adapters in self.lm.adapters.items():
            parts[f"adapters.{place}"] = list(adapters)
        if self.head is not None:
            parts["head"] = [self.head]
        return parts

    def part_parameters(self, path: str) -> list[nn.Parameter]:
        """The parameters of one part; the language model's without its adapters'."""
        modules = self.parts()[path]
        inside = {id(p) for adapter in self.lm.all_adapters() for p in adapter.parameters()} if path == "lm" else set()
        return [p for module in modules for p in module.parameters() if id(p) not in inside]

    def summary(self) -> list[PartSummary]:
        """Names and parameter counts of every part, for tables and for the trainer's check."""
        rows = []
        for path, modules in self.parts().items():
            parameters = self.part_parameters(path)
            # ds_numel: what ZeRO-3 partitioned away is still there
            sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in parameters]
            total = sum(size for size, _ in sizes)
            rows.append(PartSummary(path, modules[0].name, total, sum(size for size, trained in sizes if trained)))
        return rows

    def trained_tensors(self) -> dict[str, Tensor]:
        """What training changes: the trainable parameters, and the buffers of parts that are not frozen."""
        found: dict[str, Tensor] = {name: p for name, p in self.named_parameters() if p.requires_grad}
        open_parts = [m for modules in self.parts().values() for m in modules if not m.frozen]
        open_buffers = {id(b) for module in open_parts for b in module.buffers()}
        saved = self.state_dict(keep_vars=True)  # leaves out buffers that are not persistent
        found.update({name: t for name, t in saved.items() if id(t) in open_buffers})
        return found

    def stored_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: what training changes, and frozen parts that have no other source.

        Those are prefixes, adapters and heads, and parts that have a checkpoint's weights.
        """
        kept = [
            tensor
            for path, modules in self.parts().items()
            if modules[0].frozen and (path in self.from_checkpoint or modules[0].kind in ALWAYS_STORED)
            for tensor in self.part_tensors(path).items()
        ]
        return {**self.trained_tensors(), **dict(kept)}

    def part_tensors(self, path: str) -> dict[str, Tensor]:
        """Everything of a part that is saved with a model, by name; of the language model without its adapters."""
        adapters = self.lm.all_adapters() if path == "lm" else []
        inside = {id(t) for module in adapters for t in _tensors(module)}
        own = {id(t) for module in self.parts()[path] for t in _tensors(module)} - inside
        return {name: t for name, t in self.state_dict(keep_vars=True).items() if id(t) in own}

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Everything else that is saved with a model: what no step may change."""
        trained = self.trained_tensors()
        return {name: t for name, t in self.state_dict(keep_vars=True).items() if name not in trained}


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _several(prompt: Any) -> bool:
    """Is this a list of prompts?"""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(one, list | tuple) for one in prompt)


def _on_meta(module: nn.Module) -> Callable[[Any], Any]:
    """The module as a function whose parameters and buffers are on meta: shapes without work or memory."""
    state = {
        name: torch.empty_like(t, device="meta", dtype=torch.float32 if t.is_floating_point() else t.dtype)
        for name, t in [*module.named_parameters(), *module.named_buffers()]
    }
    return lambda *args: torch.func.functional_call(module, state, args)
