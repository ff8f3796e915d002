"""Parts of every kind, small enough to reason about, for tests of the core. They bring their own modality: numbers."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magma import (
    Adapter,
    BatchLayout,
    Cache,
    Context,
    DataSource,
    Encoder,
    Example,
    Features,
    FrozenLM,
    Head,
    InputError,
    Magma,
    Media,
    PartConfig,
    PartError,
    Prediction,
    Prefix,
    Question,
    Site,
    SourceState,
    Sublayer,
    Task,
    Text,
    hookimpl,
)

WORDS = ("zero", "one", "two", "three")


class ToyCache(Cache):
    """Keys, values and which columns are real."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None, valid: Tensor | None = None) -> None:
        self.keys, self.values, self.valid = keys, values, valid

    def _map(self, f: Callable[[Tensor], Tensor]) -> ToyCache:
        return ToyCache(*(None if t is None else f(t) for t in (self.keys, self.values, self.valid)))

    def expand(self, repeats: int) -> ToyCache:
        return self._map(lambda t: t.repeat_interleave(repeats, 0))

    def select(self, rows: Tensor) -> ToyCache:
        return self._map(lambda t: t[rows])


class Wrapped(nn.Module):
    def __init__(self, sublayer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.sublayer, self.adapter = sublayer, adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter(x, self.sublayer)


class ToyLM(FrozenLM):
    """One block of attention and feed-forward over bytes."""

    name = "toy"

    class Config(PartConfig):
        dim: int = 16
        context: int = 64

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dim, self.context, self.vocab, self.eos = config.dim, config.context, 257, 256
        self.words = nn.Embedding(self.vocab, self.dim)
        self.places = nn.Embedding(config.context, self.dim)
        self.qkv = nn.Linear(self.dim, 3 * self.dim)
        self.out: nn.Module = nn.Linear(self.dim, self.dim)
        self.mlp: nn.Module = nn.Sequential(nn.Linear(self.dim, 32), nn.GELU(), nn.Linear(32, self.dim))
        self.dropout = nn.Dropout(0.5)  # only a language model that leaves eval mode would notice

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def embed(self, tokens: Tensor) -> Tensor:
        return self.words(tokens)

    def add_adapters(self, place: Sublayer, make: Callable[[], Adapter]) -> None:
        if place in self.adapters:
            raise PartError(f"{place} is adapted already")
        adapter = make()
        if place == "attention":
            self.out = Wrapped(self.out, adapter)
        else:
            self.mlp = Wrapped(self.mlp, adapter)
        self.adapters[place] = [adapter]

    def remove_adapters(self) -> None:
        self.out = self.out.sublayer if isinstance(self.out, Wrapped) else self.out
        self.mlp = self.mlp.sublayer if isinstance(self.mlp, Wrapped) else self.mlp
        self.adapters = {}

    def new_cache(self) -> ToyCache:
        return ToyCache()

    def forward(self, embeddings: Tensor, layout: BatchLayout, cache: Cache | None = None) -> Tensor:
        b, t, _ = embeddings.shape
        x = self.dropout(self.enter(embeddings, layout))
        q, k, v = self.qkv(x).chunk(3, -1)
        valid = torch.arange(t, device=x.device) < layout.lengths[:, None]
        past = 0
        if isinstance(cache, ToyCache):
            if cache.keys is not None and cache.values is not None and cache.valid is not None:
                past = cache.keys.shape[1]
                k, v, valid = (
                    torch.cat(pair, 1) for pair in ((cache.keys, k), (cache.values, v), (cache.valid, valid))
                )
            cache.keys, cache.values, cache.valid = k, v, valid
        mask = torch.ones(t, past + t, dtype=torch.bool, device=x.device).tril(past) & valid[:, None]
        mask = mask | torch.eye(t, past + t, dtype=torch.bool, device=x.device).roll(past, 1)
        h = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return self.leave(h + self.mlp(h)).reshape(b * t, -1)[layout.scored]

    def enter(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        return embeddings + self.places(layout.positions.clamp(max=self.config.context - 1))

    def leave(self, h: Tensor) -> Tensor:
        return h

    def lm_head(self, hidden: Tensor) -> Tensor:
        return hidden @ self.words.weight.T


class HybridLM(ToyLM):
    """No limit, three widths, embeddings by id; its second block has no attention and two feed-forward sublayers."""

    name = "hybrid"
    packing_problem = "it counts from the start of a row"

    def __init__(self, config: ToyLM.Config) -> None:
        super().__init__(config)
        self.context = None
        self.words = nn.Embedding(self.vocab, self.embedding_dim)
        self.by_id = nn.Embedding(self.vocab, self.dim)
        self.widen, self.narrow = nn.Linear(self.embedding_dim, self.dim), nn.Linear(self.dim, self.output_dim)
        self.logits = nn.Linear(self.output_dim, self.vocab)
        self.second = nn.ModuleList(
            nn.Sequential(nn.Linear(self.dim, 8), nn.Tanh(), nn.Linear(8, self.dim)) for _ in range(2)
        )

    @property
    def embedding_dim(self) -> int:
        return 12

    @property
    def output_dim(self) -> int:
        return 10

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [self.mlp, self.second]

    def site_blocks(self, sublayer: Sublayer) -> int:
        return {"attention": 1, "mlp": 2}[sublayer]

    def add_adapters(self, place: Sublayer, make: Callable[[], Adapter]) -> None:
        super().add_adapters(place, make)
        if place == "mlp":
            for i, sublayer in enumerate(self.second):
                adapter = make()
                self.second[i] = Wrapped(sublayer, adapter)
                self.adapters[place].append(adapter)

    def remove_adapters(self) -> None:
        super().remove_adapters()
        for i, sublayer in enumerate(self.second):
            self.second[i] = sublayer.sublayer if isinstance(sublayer, Wrapped) else sublayer

    def enter(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        assert layout.token_ids is not None
        return self.widen(embeddings) + self.by_id(layout.token_ids)

    def leave(self, h: Tensor) -> Tensor:
        for sublayer in self.second:
            h = h + sublayer(h)
        return self.narrow(h)

    def lm_head(self, hidden: Tensor) -> Tensor:
        return self.logits(hidden)


class ToyEncoder(Encoder):
    """A number, counted on fingers: any length up to four, with BatchNorm so that buffers are trained too."""

    name = "fingers"
    modality = "number"

    class Config(PartConfig):
        dim: int = 6

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dim, self.length = config.dim, 4
        self.linear = nn.Linear(4, config.dim)
        self.norm = nn.BatchNorm1d(config.dim)

    def accepts(self, raw: Any) -> bool:
        return isinstance(raw, int)

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        if not isinstance(raw, int) or not 0 <= raw <= 3:
            raise InputError(f"given {raw!r}; allowed: 0 to 3")
        return F.one_hot(torch.tensor(raw), 4).float()

    def dummy_item(self) -> Tensor:
        return torch.zeros(4)

    def num_features(self, prepared: Tensor) -> int:
        return int(prepared.argmax()) + 1

    def forward(self, x: Tensor) -> Features:
        features = self.norm(self.linear(x))[:, None].repeat(1, 4, 1)
        return Features(features, x.argmax(-1) + 1)


class TightEncoder(ToyEncoder):
    """Memory runs out above a number of rows, in all processes or in one. In training it draws random numbers."""

    name = "tight"

    class Config(ToyEncoder.Config):
        rows: int
        when: Literal["forward", "backward", "evaluation"] = "forward"
        process: int | None = None
        batches: int = 0
        """The first ones fit in any case."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.passed = 0

    def forward(self, x: Tensor) -> Features:
        learning = torch.is_grad_enabled()
        self.passed += not x.is_meta
        here = self.config.process in (None, int(os.environ.get("RANK", 0)))
        tight = here and not x.is_meta and len(x) > self.config.rows and self.passed > self.config.batches
        when = "backward" if learning and self.config.when == "backward" else "forward" if learning else "evaluation"
        tight = tight and when == self.config.when
        if tight and when != "backward":
            raise torch.OutOfMemoryError("toy out of memory. Tried to allocate 1 row")
        features, lengths = super().forward(x)
        if tight and features.requires_grad:
            features.register_hook(_run_out)
        return Features(features + 0.1 * torch.randn_like(features) if learning else features, lengths)


def _run_out(_: Tensor) -> None:
    raise torch.OutOfMemoryError("toy out of memory. Tried to allocate 1 gradient")


class ToyPrefix(Prefix):
    name = "plain"

    def __init__(self, config: PartConfig, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = encoder_length
        self.linear = nn.Linear(encoder_dim, dim)

    def num_embeddings(self, features: int) -> int:
        return features

    def forward(self, features: Features) -> Features:
        return Features(self.linear(features.values), features.lengths)


class ToyAdapter(Adapter):
    name = "add"

    class Config(PartConfig):
        width: int = 4

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__(config, dim)
        self.down, self.up = nn.Linear(dim, config.width), nn.Linear(config.width, dim)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        h = sublayer(x)
        return h + self.up(self.down(h).relu())


class ToyLook(Adapter):
    """Each position attends to the media before it, or only to the last one."""

    name = "look"
    uses_context = True

    class Config(PartConfig):
        last_only: bool = False

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.query = nn.Linear(site.in_features, site.media_features)
        self.value = nn.Linear(site.media_features, site.out_features)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], context: Context) -> Tensor:
        scores = (self.query(x) @ context.media.mT).sigmoid() * context.media_mask(self.config.last_only)
        weights = scores / (1 + scores.sum(-1, keepdim=True))
        return sublayer(x) + self.value(weights @ context.media)


class ToyHead(Head):
    name = "classes"

    class Config(PartConfig):
        classes: tuple[str, ...]

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__(config, dim)
        self.classes = config.classes
        self.linear = nn.Linear(dim, len(config.classes))

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.linear(hidden)
        return out


class ToySource(DataSource):
    """A number and its name."""

    name = "counting"

    class Config(PartConfig):
        input: str = "number"
        length: int = 8
        text_only: bool = False
        labelled: bool = False

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config, seed)
        self.config: ToySource.Config = config

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        state = state or {"epoch": 0, "position": 0}
        for i in range(state["position"], self.config.length):
            number = (i + state["epoch"]) % 4
            last = i + 1 == self.config.length
            after = {"epoch": state["epoch"] + last, "position": 0 if last else i + 1}
            segments: list[Any] = [] if self.config.text_only else [Media(self.config.input, number)]
            if self.config.labelled:
                yield Example(segments, f"counting {i}", label=("even", "odd")[number % 2]), after
                continue
            yield Example([*segments, Text("is"), Text(f" {WORDS[number]}", target=True)], f"counting {i}"), after


class ToyTask(Task):
    name = "counting"
    primary_metric = "count_accuracy"

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        for i in range(4):
            yield Question(str(i), [Media("number", i), "is"], WORDS[i], "count")

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        right = [p.text.strip() == p.question.answer for p in predictions]
        return {"count_accuracy": sum(right) / len(right)}


@hookimpl
def magma_parts() -> list[type]:
    return [ToyLM, HybridLM, ToyEncoder, TightEncoder, ToyPrefix, ToyAdapter, ToyLook, ToyHead, ToySource, ToyTask]


RECIPE: dict[str, Any] = {
    "name": "toy",
    "lm": {"use": "toy"},
    "inputs": {"number": {"encoder": {"use": "fingers"}, "prefix": {"use": "plain"}}},
    "adapters": {"mlp": {"use": "add"}},
    "data": {"train": [{"use": "counting"}], "evaluation": [{"use": "counting"}]},
    "tasks": [{"use": "counting"}],
    "train": {"steps": 6, "batch_size": 4, "lr": 1e-2, "precision": "fp32"},
}


def by_recomputation(model: Magma, prompt: list[Any], count: int) -> str:
    """Greedy text without a cache: all positions again for each token."""
    text = ""
    for _ in range(count):
        token = int(model.logits([*prompt, text] if text else prompt)[-1].argmax())
        if token == model.lm.eos:
            break
        text += model.lm.decode([token])
    return text
