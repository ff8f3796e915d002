"""The language model newname. Axes: b batch, t tokens, p positions of a cache, d width, h heads, m scored positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""
BYTES = 256
"""Tokens are bytes; this one ends a text."""


class KeysAndValues(magma.Cache):
    """A pair [b, p, d] of each block, and which positions are real [b, p]."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[Tensor, Tensor]] = {}
        self.real: Tensor | None = None

    def _map(self, change: Callable[[Tensor], Tensor]) -> KeysAndValues:
        made = KeysAndValues()
        made.blocks = {i: (change(keys), change(values)) for i, (keys, values) in self.blocks.items()}
        made.real = None if self.real is None else change(self.real)
        return made

    def expand(self, repeats: int) -> KeysAndValues:
        """Each row repeated `repeats` times."""
        return self._map(lambda t: t.repeat_interleave(repeats, 0))

    def select(self, rows: Tensor) -> KeysAndValues:
        """Only these rows."""
        return self._map(lambda t: t[rows])


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor, cache: KeysAndValues | None, block: int) -> Tensor:
        """[b, t, d]; `mask` [b, 1, t, p] is True where a position attends to another."""
        queries, keys, values = self.qkv(x).chunk(3, -1)
        if cache is not None:
            if block in cache.blocks:
                keys, values = (torch.cat(pair, 1) for pair in zip(cache.blocks[block], (keys, values), strict=True))
            cache.blocks[block] = keys, values
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (queries, keys, values))
        found: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return found


class WithAdapter(nn.Module):
    """A module inside an adapter, which checkpoints know by its name."""

    def __init__(self, module: nn.Module, adapter: magma.Adapter, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name
        self.add_module(name, adapter)

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """[b, t, in_features] to [b, t, out_features]. Masks and caches bypass the adapter."""
        found: Tensor = self.get_submodule(self.name)(x, lambda h: self.module(h, *others))
        return found


class Block(nn.Module):
    """Attention and feed-forward, each after a LayerNorm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention: nn.Module = Attention(dim, heads)
        self.mlp: nn.Module = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """[b, t, d]."""
        x = x + self.attention(self.ln_1(x), *context)
        found: Tensor = x + self.mlp(self.ln_2(x))
        return found


class NewPart(magma.FrozenLM):
    """A small transformer over bytes, with random weights: load trained ones in `load_weights`."""

    name = "newname"

    class Config(magma.PartConfig):
        """The sizes of the model."""

        width: int = Field(32, ge=2)
        layers: int = Field(2, ge=1)
        heads: int = Field(4, ge=1)
        context: int = Field(128, ge=1)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dim, self.context, self.vocab, self.eos = config.width, config.context, BYTES + 1, BYTES
        self.word_embedding, self.position_embedding = (
            nn.Embedding(self.vocab, self.dim),
            nn.Embedding(config.context, self.dim),
        )
        self.layers = nn.ModuleList(Block(self.dim, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(self.dim)
        self.all_sites = self.find_sites()

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in order."""
        return list(self.layers)

    def encode(self, text: str) -> list[int]:
        """UTF-8."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """UTF-8; invalid bytes are replaced."""
        return bytes(token for token in tokens if token < BYTES).decode(errors="replace")

    def embed(self, tokens: Tensor) -> Tensor:
        """[b, t] to [b, t, d]."""
        found: Tensor = self.word_embedding(tokens)
        return found

    def sites(self) -> Sequence[magma.Site]:
        """The sublayers, the blocks and their linear layers."""
        return self.all_sites

    def find_sites(self) -> list[magma.Site]:
        """The sites of the blocks without adapters."""
        found: list[tuple[str, int, int, int, nn.Module | None]] = []
        for i, block in enumerate(self.layers):
            found += [(path, i, self.dim, self.dim, None) for path in ("attention", "mlp", "block")]
            found += [
                (path, i, module.in_features, module.out_features, module)
                for path, module in block.named_modules()
                if isinstance(module, nn.Linear)
            ]
        return [magma.Site(*one, media_features=self.dim) for one in found]

    def attach_adapter(self, site: magma.Site, adapter: magma.Adapter, name: str) -> Callable[[], None]:
        """Replace the module of the site by one that has the adapter around it."""
        holder: nn.Module = self.layers
        path = [str(site.block), *(site.path.split(".") if site.path != "block" else [])]
        for part in path[:-1]:
            holder = holder.get_submodule(part)
            while isinstance(holder, WithAdapter):
                holder = holder.module
        inside = holder.get_submodule(path[-1])
        setattr(holder, path[-1], WithAdapter(inside, adapter, name))
        return lambda: setattr(holder, path[-1], inside)

    def new_cache(self) -> KeysAndValues:
        """An empty cache."""
        return KeysAndValues()

    def forward(self, embeddings: Tensor, layout: magma.BatchLayout, cache: magma.Cache | None = None) -> Tensor:
        """[b, t, d] to [m, d]."""
        t = embeddings.shape[1]
        columns = torch.arange(t, device=embeddings.device)
        real = columns < layout.lengths[:, None]
        mask = (columns <= columns[:, None]) & real[:, None]  # [b, t, t]
        if layout.sequence_ids is not None:  # attention does not cross packed examples
            mask = mask & (layout.sequence_ids[:, None] == layout.sequence_ids[..., None])
        if isinstance(cache, KeysAndValues):
            if cache.real is not None:
                mask = torch.cat([cache.real[:, None].expand(-1, t, -1), mask], -1)
                real = torch.cat([cache.real, real], -1)
            cache.real = real
        mask |= ~mask.any(-1, keepdim=True)  # padding attends to everything, to avoid a division by zero
        mask = mask[:, None]
        x = embeddings + self.position_embedding(layout.positions)
        for i, block in enumerate(self.layers):
            x = block(x, mask, cache, i)
        found: Tensor = self.norm(x).flatten(0, 1)[layout.scored]
        return found

    def lm_head(self, hidden: Tensor) -> Tensor:
        """[m, d] to [m, v], with the word embeddings."""
        return hidden @ self.word_embedding.weight.T


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
