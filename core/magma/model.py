"""The model: encoders and prefixes before a frozen language model with adapters.

Axes: b batch, n features, e encoder width, k prefix length, t tokens, d language-model width, v vocabulary,
m scored positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .adapter_tables import AdapterTable, add_tables, as_tables, check_inputs_of_adapters
from .auxiliary import Losses, auxiliary_losses, recorded_outputs
from .data.collator import Collator, is_list_of_prompts
from .data.sequence import Batch, EncodedExample
from .deprecation import RenamedMember, renamed_arguments
from .embedding import embed_batch, embed_media
from .errors import InputError, PartError
from .generation.decoding import Answer, Decoding, continuations, decode, decoding_from_options
from .generation.likelihood import Likelihood, compute_likelihoods, encode_continuation
from .inputs import Input, attached_caches
from .interfaces import Adapter, FrozenLM, Head, Module
from .names import module_problem
from .part import own_tensors, with_nested_parts
from .summary import ALWAYS_STORED as ALWAYS_STORED
from .summary import PartSummary as PartSummary
from .summary import summarize
from .system.memory import in_pieces
from .values import BatchLayout, Example
from .widths import check_widths

Prompts = Sequence[list[Any] | tuple[Any, ...]]
"""Several prompts."""


class Magma(nn.Module):
    """A frozen language model that reads other modalities.

    Args:
        lm: The language model. It is frozen.
        inputs: An `Input` for each name.
        adapters: By name, a function that makes one adapter for the site of this name, such as "attention" or "mlp"; it
            is called once for each site. Or an `AdapterTable`, whose name is free and which says where they act.
        head: A classification head. With it the model classifies and does not generate.

    The parts may have different precisions; `.to(dtype)` converts them to one.

    Raises:
        PartError: Widths of the parts do not match, the language model has no such site, or an adapter refers to an
            input that does not exist.

    Example:
        ```python
        model = magma.load("runs/lidar")
        model.generate([magma.Media("scan", "scan.csv"), "The obstacle is"])
        ```
    """

    def __init__(
        self,
        lm: FrozenLM,
        inputs: Mapping[str, Input] | None = None,
        adapters: Mapping[str, AdapterTable | Callable[..., Adapter]] | None = None,
        head: Head | None = None,
    ) -> None:
        super().__init__()
        self.lm, self.head = lm, head
        for name in inputs or {}:
            if problem := module_problem(name):
                raise PartError(f"inputs.{name}: given {name!r}; allowed: {problem}")
        self.inputs = nn.ModuleDict(dict(inputs or {}))
        self.from_checkpoint: frozenset[str] = frozenset()
        """Paths of frozen parts whose weights are from a checkpoint: a new checkpoint has to contain them too."""
        self.run_all_inputs = False
        """Run every input for every batch even without gradients: other processes may have media for it."""
        self.adapter_tables = as_tables(adapters or {})
        """What the adapters were made from, by the names of their tables."""
        add_tables(lm, self.adapter_tables)
        check_inputs_of_adapters(lm, self.input_modules())
        lm.freeze()
        check_widths(lm, self.input_modules(), head)
        self.train(self.training)

    def input_modules(self) -> dict[str, Input]:
        """The inputs by name."""
        return {name: module for name, module in self.inputs.items() if isinstance(module, Input)}

    @renamed_arguments(multiple="pad_to_multiple_of")
    def collator(self, max_length: int | None = None, pad_to_multiple_of: int = 1) -> Collator:
        """A collator, which turns examples into batches for this model.

        Args:
            max_length: Maximum length of an example in positions, at most the language model's context, the default.
            pad_to_multiple_of: Pad batches to a multiple of this length.
        """
        inputs = self.input_modules()
        return Collator(
            self.lm,
            {name: (module.encoder, module.prefix) for name, module in inputs.items()},
            max_length,
            pad_to_multiple_of,
            self.head.classes if self.head else (),
            attached_caches(inputs),
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    # Embedding and loss

    def embed(self, batch: Batch) -> Tensor:
        """Word embeddings with the embeddings of the media in their positions, [b, t, `lm.embedding_dim`].

        Each input runs exactly once. In training, or if `run_all_inputs` is set, an input that this batch lacks runs on
        a dummy item, with weight zero in the result and no buffer changed, so that all ranks do the same collectives.
        """
        return self.lm_inputs(batch)[0]

    def lm_inputs(self, batch: Batch) -> tuple[Tensor, BatchLayout]:
        """What the language model is called with: `embed`, and the batch's layout with the context of adapters."""
        return embed_batch(self.lm, self.input_modules(), batch, self.run_all_inputs)

    @torch.no_grad()
    def embed_media(self, media: Sequence[Any], name: str | None = None, batch_size: int = 32) -> Tensor:
        """Embeddings of media [n, k, d], as the language model reads them: of the encoder and the prefix of one input.

        Args:
            media: Media of one input, raw or prepared by its encoder.
            name: The input. Default: the one that accepts them.
            batch_size: How many are computed at once.

        Returns:
            In the precision of the model. After the embeddings of media with fewer than k, there are zeros.

        Raises:
            InputError: A medium cannot be read, or no input or several inputs accept it.
        """
        with self.eval_mode():
            return embed_media(self.collator(), self.input_modules(), media, name, batch_size, self.device, self.dtype)

    def forward(self, batch: Batch, auxiliary: bool = False) -> Tensor | Losses:
        """Cross-entropy, summed over the targets, in float32: divide it by those of the global batch. Or `Losses`."""
        with recorded_outputs(self.input_modules() if auxiliary else {}) as outputs:
            hidden = self.lm(*self.lm_inputs(batch))
        if self.head is None:
            total = self.lm.cross_entropy(hidden, batch.labels)
        else:
            total = F.cross_entropy(self.head(hidden).float(), batch.labels, reduction="sum")
        if not auxiliary:
            return total
        words = None if self.head else self.lm.embed(batch.labels[None])[0].detach()
        return Losses(total, auxiliary_losses(self.parts(), batch, outputs, hidden, words))

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the targets of this batch, in nats (equations 3 and 4 of the paper).

        Raises:
            InputError: The batch has no target.
        """
        if not len(batch.labels):
            raise InputError(f"no target tokens in this batch ({', '.join(batch.names)})")
        total: Tensor = self(batch)
        return total / len(batch.labels)

    @torch.no_grad()
    def logits(self, segments: Sequence[Any]) -> Tensor:
        """Next-token logits [t, v] at every position of one sequence, media positions included.

        The model stays in its mode: dropout is active in training mode.

        Args:
            segments: Texts, token ids (integer tensors [n]), and media, raw or prepared by their encoder.

        Raises:
            InputError: No input accepts a segment, or a segment cannot be read.
            TooLong: The segments do not fit into the context.
        """
        embeddings, layout = self.lm_inputs(self._prompts(self.collator().examples([segments])))
        layout = replace(layout, scored=torch.arange(embeddings.shape[1], device=self.device), first_scored=0)
        out: Tensor = self.lm.lm_head(self.lm(embeddings, layout))
        return out

    @torch.no_grad()
    def classify(self, prompts: Sequence[Sequence[Any]]) -> list[dict[str, float]]:
        """Probability of every class of the head, for each prompt.

        Args:
            prompts: Lists of segments, as `generate` accepts them.

        Raises:
            InputError: The model has no classification head, or a prompt cannot be read.
            TooLong: A prompt does not fit into the context.
        """
        if self.head is None:
            raise InputError("this model has no classification head: use generate()")
        head = self.head

        def scores(some: Sequence[Example]) -> list[list[float]]:
            batch = self._prompts(some)
            found: list[list[float]] = head(self.lm(*self.lm_inputs(batch))).float().softmax(-1).tolist()
            return found

        with self.eval_mode():
            rows = in_pieces(self.collator().examples(prompts), scores)
        return [dict(zip(head.classes, row, strict=True)) for row in rows]

    @torch.no_grad()
    def log_likelihood(self, prompts: Sequence[Sequence[Any]], texts: Sequence[str]) -> list[tuple[float, bool]]:
        """Log-likelihood of each text after its prompt, computed in one batch.

        Args:
            prompts: Lists of segments, as `generate` accepts them.
            texts: One text for each prompt.

        Returns:
            For each text the summed log-probability of its tokens in nats, without end-of-text, and whether greedy
            decoding would generate them.

        Raises:
            InputError: The model has a classification head, the numbers differ, or a prompt is empty or unreadable.
            TooLong: A prompt and its text do not fit into the context.
        """
        return [(found.total, found.is_greedy) for found in self.likelihoods(prompts, texts)]

    @torch.no_grad()
    def likelihoods(self, prompts: Sequence[Sequence[Any]], texts: Sequence[str]) -> list[Likelihood]:
        """As `log_likelihood`, with the number of tokens of each text."""
        if self.head is not None:
            raise InputError("this model has a classification head: use classify()")
        if len(prompts) != len(texts):
            raise InputError(f"given {len(prompts)} prompts and {len(texts)} texts; allowed: equal numbers")
        collator = self.collator()
        examples = collator.examples(prompts)
        rows = [encode_continuation(collator, example, text) for example, text in zip(examples, texts, strict=True)]

        def compute(some: Sequence[EncodedExample]) -> list[Likelihood]:
            batch = collator.pad(some).to(self.device, self.dtype)
            hidden, counts = self.lm(*self.lm_inputs(batch)), [sum(row.targets) for row in some]
            return compute_likelihoods(self.lm.lm_head, hidden, batch.labels, counts, self.lm.num_embeddings)

        with self.eval_mode():
            return in_pieces(rows, compute)

    # Generation

    @overload
    def generate(self, prompt: Prompts, **options: Any) -> list[str]: ...
    @overload
    def generate(self, prompt: Sequence[Any], **options: Any) -> str: ...
    def generate(self, prompt: Sequence[Any], **options: Any) -> str | list[str]:
        """Continue a prompt: `model.generate([scan, "The obstacle is"])`.

        Args:
            prompt: A list of segments: texts, token ids and media. Or a list of prompts (lists or tuples).
            options: The fields of `Decoding`: max_tokens, temperature, top_k, top_p, stop, seed.

        Returns:
            The generated text; for a list of prompts, a list of texts.

        Raises:
            InputError: The model has a classification head, a segment cannot be read, or an option is unknown.
            TooLong: A prompt does not fit into the context.
        """
        texts = [answer.text for answer in self._answers(prompt, options)]
        return texts if is_list_of_prompts(prompt) else texts[0]

    @overload
    def generate_tokens(self, prompt: Prompts, **options: Any) -> list[list[int]]: ...
    @overload
    def generate_tokens(self, prompt: Sequence[Any], **options: Any) -> list[int]: ...
    def generate_tokens(self, prompt: Sequence[Any], **options: Any) -> list[int] | list[list[int]]:
        """As `generate`, but with token ids as the result. Without `stop`, no tokenizer is needed."""
        ids = [list(answer.tokens) for answer in self._answers(prompt, options)]
        return ids if is_list_of_prompts(prompt) else ids[0]

    def stream(self, prompt: Sequence[Any], **options: Any) -> Iterator[str]:
        """As `generate` for one prompt, but yields pieces of text as they are generated."""
        decoding = decoding_from_options(options)
        examples = self.collator().examples([prompt])
        return continuations((answer.text for (answer,) in self._decode(examples, decoding)), decoding.stop)

    def _answers(self, prompt: Sequence[Any], options: Mapping[str, Any]) -> list[Answer]:
        """Answers to one prompt or to a list of prompts, computed in smaller batches if memory runs out."""
        decoding = decoding_from_options(options)
        examples = self.collator().examples(prompt if is_list_of_prompts(prompt) else [prompt])
        return in_pieces(examples, lambda some: list(self._decode(some, decoding))[-1])

    @torch.no_grad()
    def _decode(self, prompts: Sequence[Example], how: Decoding) -> Iterator[list[Answer]]:
        if self.head is not None:
            raise InputError("this model has a classification head: use classify()")
        with self.eval_mode():
            batch = self._prompts(prompts)
            yield from decode(self.lm, *self.lm_inputs(batch), how)

    def _prompts(self, prompts: Sequence[Example]) -> Batch:
        collator = self.collator()
        encoded = [collator.encode_example(example, truncate=False) for example in prompts]
        return collator.pad(encoded, score_last=True).to(self.device, self.dtype)

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """A context manager: the model is in eval mode inside it."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @contextmanager
    def adapters_disabled(self, *tables: str) -> Iterator[None]:
        """A context manager: the model without the adapters of these tables, bit by bit; without names, of all tables.

        With activation checkpointing, the backward pass may be outside: it repeats what the forward pass did.

        Raises:
            InputError: There is no such table.
        """
        if unknown := [name for name in tables if name not in self.lm.adapters]:
            raise InputError(
                f"adapters_disabled: given {unknown[0]!r}; allowed: {', '.join(self.lm.adapters) or 'no adapters'}"
            )
        state = self.lm.adapter_state
        with state.use(state.context, state.disabled.union(tables or self.lm.adapters)):
            yield

    ways = RenamedMember("input_modules")
    evaluating = RenamedMember("eval_mode")

    # What is trained

    def parts(self) -> dict[str, list[Module]]:
        """Every part by its path in a recipe: `lm`, `inputs.NAME.encoder`, `adapters.mlp` (one for each site), ..."""
        parts: dict[str, list[Module]] = {"lm": [self.lm]}
        for name, input_module in self.input_modules().items():
            parts[f"inputs.{name}.encoder"] = [input_module.encoder]
            parts[f"inputs.{name}.prefix"] = [input_module.prefix]
        for sublayer, adapters in self.lm.adapters.items():
            parts[f"adapters.{sublayer}"] = list(adapters)
        if self.head is not None:
            parts["head"] = [self.head]
        return {inner: copies for path, own in parts.items() for inner, copies in with_nested_parts(path, own).items()}

    def _own_tensors(self, path: str) -> list[Tensor]:
        """Parameters and buffers of a part, without those of the parts and adapters inside it."""
        return own_tensors(self.parts()[path], self.lm.all_adapters() if path == "lm" else ())

    def part_parameters(self, path: str) -> list[nn.Parameter]:
        """The parameters of one part, without those of the parts inside it; of the language model without adapters."""
        return [t for t in self._own_tensors(path) if isinstance(t, nn.Parameter)]

    def summary(self) -> list[PartSummary]:
        """Name and parameter counts of every part."""
        return [summarize(path, parts[0].name, self.part_parameters(path)) for path, parts in self.parts().items()]

    def trained_tensors(self) -> dict[str, Tensor]:
        """What training changes: the trainable parameters, and the buffers of parts that are not frozen."""
        found: dict[str, Tensor] = {name: p for name, p in self.named_parameters() if p.requires_grad}
        open_paths = [path for path, modules in self.parts().items() if modules and not modules[0].frozen]
        open_buffers = {id(t) for p in open_paths for t in self._own_tensors(p) if not isinstance(t, nn.Parameter)}
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
        """Parameters and saved buffers of a part, by name, without those of the parts and adapters inside it."""
        own = {id(t) for t in self._own_tensors(path)}
        return {name: t for name, t in self.state_dict(keep_vars=True).items() if id(t) in own}

    def frozen_tensors(self) -> dict[str, Tensor]:
        """All other parameters and saved buffers: those that no training step may change."""
        trained = self.trained_tensors()
        return {name: t for name, t in self.state_dict(keep_vars=True).items() if name not in trained}
