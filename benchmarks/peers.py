"""Ways to train the same model on the same examples: the published algorithm, transformers by hand, and ours.

All share one set of tensors, so that a test can hold them to the same loss and gradients. Axes: b batch, t tokens,
k media positions, d width, v vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import magma
from magma import Example, Features, Magma, Media, PartConfig, Tokens
from magma.interfaces import SUBLAYERS

IGNORED = -100


class Grid(magma.Encoder):
    """Precomputed features [k, e]: only the language model's part is compared."""

    name = "grid"
    modality = "grid"

    class Config(PartConfig):
        """As a CLIP RN50x16 at 384 pixels: 144 features; narrower, as the language model is."""

        dim: int = 288
        length: int = 144

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dim, self.length = config.dim, config.length

    def accepts(self, raw: Any) -> bool:
        """A tensor [k, e]."""
        return isinstance(raw, Tensor) and raw.ndim == 2

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """As it is."""
        return raw

    def dummy_item(self) -> Tensor:
        """Zeros."""
        return torch.zeros(self.length, self.dim)

    def forward(self, x: Tensor) -> Features:
        """[b, k, e], the same."""
        return Features(x)


def build(
    dim: int = 384, layers: int = 4, vocab: int = 512, context: int = 2048, only_with: Sequence[str] = ()
) -> Magma:
    """The model of the benchmarks: GPT-J of this size, with adapters 8/8 of the paper."""
    from magma_lms.gptj import GPTJ

    torch.manual_seed(0)
    return with_grid(
        GPTJ.build(
            layers=layers,
            dim=dim,
            heads=6,
            rotary_dim=min(32, dim // 6),
            context=context,
            vocab=vocab,
            eos=vocab - 2,
            weights=None,
        ),
        only_with=only_with,
    )


def with_grid(
    lm: magma.FrozenLM, sublayers: Sequence[magma.Sublayer] = SUBLAYERS, only_with: Sequence[str] = ()
) -> Magma:
    """A language model that reads grids, with adapters 8/8 of the paper around these sublayers."""
    from magma_adapters.bottleneck import Sequential
    from magma_prefixes.linear import Linear

    grid = Grid(Grid.Config())
    prefix = Linear.build(grid.dim, grid.length, lm.embedding_dim, layernorm=True)
    return Magma(
        lm,
        {"grid": magma.Input(grid, prefix)},
        {
            sublayer: magma.AdapterTable(lambda: Sequential.build(lm.dim, downsample=8), only_with=only_with)
            for sublayer in sublayers
        },
    )


def examples(count: int, vocab: int, seed: int = 0, shortest: int = 8, longest: int = 33) -> list[Example]:
    """Captions of 8 to 33 tokens after a grid of features."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=draw).tolist()
    return [
        Example(
            [
                Media("grid", torch.randn(144, 288, generator=draw)),
                Tokens(torch.randint(0, vocab - 2, (length,), generator=draw), target=True),
            ]
        )
        for length in lengths
    ]


def tensors(batch: Sequence[Example]) -> tuple[Tensor, list[Tensor]]:
    """Grids [b, k, e] and captions of examples."""
    grids, captions = zip(*((example.segments[0].value, example.segments[1].ids) for example in batch), strict=True)
    return torch.stack(grids), list(captions)


def ours(model: Magma, batch: Sequence[Example]) -> Tensor:
    """Mean loss over the targets."""
    return model.loss(model.collator().batch(batch))


# The published algorithm


def padded(captions: Sequence[Tensor], width: int, eos: int) -> Tensor:
    """Captions [b, width], filled up with end-of-text."""
    out = torch.full((len(captions), width), eos)
    for row, caption in enumerate(captions):
        out[row, : len(caption)] = caption
    return out


def labels_by_loop(captions: Tensor, media: int, eos: int) -> Tensor:
    """[b, t]: the caption up to its first end-of-text, after `media` ignored positions, token by token."""
    labels = torch.cat([torch.full((len(captions), media), IGNORED), captions[:, : captions.shape[1] - media]], dim=1)
    for row in labels:
        for at, token in enumerate(row):
            if token == eos:
                row[at + 1 :] = IGNORED
                break
    return labels


class Published(nn.Module):
    """Captions padded to the context, eager attention with a mask of the whole context, the head at all positions."""

    def __init__(self, model: Magma, checkpointing: bool = True) -> None:
        super().__init__()
        self.model, self.checkpointing = model, checkpointing
        context = model.lm.context
        self.register_buffer("mask", torch.ones(context, context, dtype=torch.bool).tril()[None, None])

    def logits(self, prefix: Tensor, captions: Tensor) -> Tensor:
        """[b, k, d] and [b, context] to [b, context, v]."""
        lm: Any = self.model.lm
        decoder = lm.model.transformer
        words = lm.embed(captions)[:, : captions.shape[1] - prefix.shape[1]]
        x = torch.cat([prefix, words], dim=1)
        for block in decoder.h:
            x = checkpoint(self._block, block, x, use_reentrant=False) if self.checkpointing else self._block(block, x)
        out: Tensor = lm.model.lm_head(decoder.ln_f(x))
        return out

    def _block(self, block: Any, x: Tensor) -> Tensor:
        y = block.ln_1(x)
        attention, mlp = block.attn, block.mlp
        attended = _apply_adapter(attention, y, lambda h: self._attention(getattr(attention, "sublayer", attention), h))
        fed = _apply_adapter(mlp, y, lambda h: self._feed(getattr(mlp, "sublayer", mlp), h))
        return attended + fed + x

    def _attention(self, attention: Any, x: Tensor) -> Tensor:
        b, t, d = x.shape
        heads = attention.heads
        query, key, value = (
            p(x).view(b, t, heads, d // heads) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        sine, cosine = self.model.lm.model.transformer.rope_table[:t].chunk(2, -1)
        query, key = (_apply_rope(part, sine, cosine, attention.rotary) for part in (query, key))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        weights = query @ key.transpose(-1, -2) / (d // heads) ** 0.5
        weights = weights.masked_fill(~self.mask[:, :, :t, :t], torch.finfo(weights.dtype).min)
        weights = weights.softmax(-1)
        out: Tensor = attention.out_proj((weights @ value).transpose(1, 2).reshape(b, t, d))
        return out

    def _feed(self, mlp: Any, x: Tensor) -> Tensor:
        h = mlp.fc_in(x)
        h = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        out: Tensor = mlp.fc_out(h)
        return out

    def forward(self, media: Tensor, captions: Sequence[Tensor]) -> Tensor:
        """Mean loss over the targets."""
        (input_module,) = self.model.input_modules().values()
        eos = self.model.lm.eos
        filled = padded(captions, self.model.lm.context, eos)
        prefix = input_module(media).values
        labels = labels_by_loop(filled, prefix.shape[1], eos).to(media.device)
        logits = self.logits(prefix, filled.to(media.device))
        return F.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=IGNORED
        )


def _apply_adapter(module: Any, x: Tensor, sublayer: Any) -> Tensor:
    return module.adapter(x, sublayer) if hasattr(module, "adapter") else sublayer(x)


def _apply_rope(x: Tensor, sine: Tensor, cosine: Tensor, r: int) -> Tensor:
    """Neighbouring dimensions as pairs, [b, t, h, d / h]."""
    sine, cosine = (half.repeat_interleave(2, -1)[None, :, None] for half in (sine, cosine))
    rotary, rest = x[..., :r], x[..., r:]
    swapped = torch.stack((-rotary[..., 1::2], rotary[..., ::2]), dim=-1).flatten(-2)
    return torch.cat([rotary * cosine + swapped * sine, rest], dim=-1)


# transformers by hand


class ByHand(nn.Module):
    """What a user would write: the library's model and loss, dynamic padding, adapters after its sublayers."""

    def __init__(self, model: Magma, attention: str = "attn") -> None:
        """`attention`: the library's name of the attention sublayer in a block."""
        super().__init__()
        from transformers import AutoModelForCausalLM

        mine: Any = model.lm
        adapters = {place: list(made) for place, made in mine.adapters.items()}
        wrapped = mine.model.state_dict()
        state = {n.replace("sublayer.", ""): t for n, t in wrapped.items() if ".adapter." not in n}
        with torch.device("meta"):
            self.lm: Any = AutoModelForCausalLM.from_config(mine.model.config)
        _fill_buffers(self.lm, model.device)
        self.lm.load_state_dict(state, assign=True)
        self.lm.requires_grad_(False).eval()
        blocks = next(module for module in self.lm.modules() if isinstance(module, nn.ModuleList))
        for sublayer, name in (("attention", attention), ("mlp", "mlp")):
            for block, adapter in zip(blocks, adapters.get(sublayer, ()), strict=False):
                setattr(block, name, _SequentialAdapter(getattr(block, name), adapter))
        (input_module,) = model.input_modules().values()
        self.input_module = input_module
        self.eos = mine.eos

    def forward(self, media: Tensor, captions: Sequence[Tensor]) -> Tensor:
        """Mean loss over the targets."""
        prefix = self.input_module(media).values
        b, k, _ = prefix.shape
        width = max(len(caption) for caption in captions) + 1
        tokens = padded(captions, width, self.eos).to(media.device)
        lengths = torch.tensor([len(caption) + 1 for caption in captions], device=media.device)
        real = torch.arange(width, device=media.device) < lengths[:, None]
        x = torch.cat([prefix, self.lm.get_input_embeddings()(tokens)], dim=1)
        labels = torch.cat([tokens.new_full((b, k), IGNORED), tokens.masked_fill(~real, IGNORED)], dim=1)
        seen = torch.cat([real.new_ones(b, k), real], dim=1).long()
        loss: Tensor = self.lm(inputs_embeds=x, attention_mask=seen, labels=labels, use_cache=False).loss
        return loss


def _fill_buffers(model: Any, device: torch.device) -> None:
    """Fill the buffers of a model on meta that are not in the state dict, with the library's own code.

    Releases differ in the module that has GPT-J's rotary table, so no name is used here. Parameters are still on meta:
    the library's code would draw those of the same module again.
    """
    for module in model.modules():
        on_meta = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in on_meta:
            setattr(module, name, torch.empty_like(getattr(module, name), device=device))
        if on_meta:
            model._init_weights(module)


class _SequentialAdapter(nn.Module):
    """A sequential adapter around a module of the library."""

    def __init__(self, module: nn.Module, adapter: Any) -> None:
        super().__init__()
        self.module, self.adapter = module, adapter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's outputs, the first one adapted."""
        out = self.module(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        adapted = first + self.adapter.bottleneck(first)
        return (adapted, *out[1:]) if isinstance(out, tuple) else adapted
