"""Names of tensors in the authors' code, and model sizes from the tensors of a checkpoint.

Axes: d language-model width, c positions of its context, r rotary dimension.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from magma import CheckpointError

CLIP_RESNETS: dict[tuple[tuple[int, ...], int], int] = {
    ((3, 4, 6, 3), 64): 224,
    ((3, 4, 23, 3), 64): 224,
    ((4, 6, 10, 6), 80): 288,
    ((6, 8, 18, 8), 96): 384,
    ((3, 15, 36, 10), 128): 448,
}
"""Image size of OpenAI's CLIP ResNets by their stages and width: RN50, RN101, RN50x4, RN50x16, RN50x64."""
BUFFERS = ("bias", "masked_bias", "scale_attn", "sin", "cos")
"""Buffers of each attention layer of the authors' GPT-J; they are not trained."""
_ATTENTION = {None: "attn.attention", "sequential": "attn.attn_block.attention", "parallel": "attn.module.attention"}
_MLP = {None: "mlp", "sequential": "mlp.0", "parallel": "mlp.module"}
_ADAPTER = {
    "attention": {"sequential": "attn", "parallel": "attn"},
    "mlp": {"sequential": "mlp.1", "parallel": "mlp"},
}


@dataclass(frozen=True)
class Bottleneck:
    """The adapters around one sublayer of every block."""

    use: str
    """`"sequential"` or `"parallel"`."""
    downsample: int
    layernorm: bool
    learned: bool
    """Whether the scale is a parameter."""


@dataclass(frozen=True)
class Sizes:
    """All sizes and options of a model of the authors' code."""

    layers: int
    dim: int
    heads: int
    rotary: int
    context: int
    vocab: int
    words: int
    """Rows of the word embedding; the last one is the image token, the one before it end-of-text."""
    stages: tuple[int, int, int, int]
    width: int
    image_size: int
    layernorm: bool
    """Whether LayerNorm follows the image prefix."""
    guessed: bool = False
    """Whether `image_size` is a guess, because the file does not determine it."""
    adapters: Mapping[str, Bottleneck] = field(default_factory=dict)

    def recipe(self) -> dict[str, Any]:
        """The recipe of the model, without the weights of its language model."""
        words = {} if self.words == self.vocab else {"num_embeddings": self.words}
        return {
            "name": "reference",
            "description": "Imported from a checkpoint of the authors' code",
            "lm": {
                "use": "gptj",
                "layers": self.layers,
                "dim": self.dim,
                "heads": self.heads,
                "rotary_dim": self.rotary,
                "context": self.context,
                "vocab": self.vocab,
                **words,
                "eos": self.words - 2,
            },
            "inputs": {
                "image": {
                    "encoder": {
                        "use": "clip",
                        "layers": list(self.stages),
                        "width": self.width,
                        "image_size": self.image_size,
                        "allow_smaller": self.guessed,
                        "preparation": "published",
                    },
                    "prefix": {"use": "linear", "layernorm": self.layernorm},
                }
            },
            "adapters": {
                place: {
                    "use": adapter.use,
                    "downsample": adapter.downsample,
                    "layernorm": adapter.layernorm,
                    "scale": "learned" if adapter.learned else 1,
                }
                for place, adapter in self.adapters.items()
            },
        }

    def attention(self, layer: int) -> str:
        """The path of a block's attention."""
        adapter = self.adapters.get("attention")
        return f"lm.transformer.h.{layer}.{_ATTENTION[adapter.use if adapter else None]}"

    def reference(self, name: str) -> str:
        """The name in the authors' code of a tensor with this name in MAGMA."""
        for magma_name, reference_name in (
            ("inputs.image.encoder.network.", "image_prefix.enc."),
            ("inputs.image.prefix.projection.", "image_prefix.proj."),
            ("inputs.image.prefix.finish.1.", "image_prefix.ln."),
            ("lm.model.", "lm."),
        ):
            if name.startswith(magma_name):
                name = reference_name + name.removeprefix(magma_name)
                break
        found = re.fullmatch(r"(lm\.transformer\.h\.\d+)\.(attn|mlp)\.(.+)", name)
        if not found:
            return name
        block, short, rest = found.groups()
        place = "attention" if short == "attn" else "mlp"
        adapter = self.adapters.get(place)
        if adapter and rest.startswith("adapter."):
            return f"{block}.{_ADAPTER[place][adapter.use]}.{_adapter_tensor_name(adapter, rest)}"
        rest = rest.removeprefix("sublayer.").replace("fc_in.", "c_fc.").replace("fc_out.", "c_proj.")
        return f"{block}.{(_ATTENTION if short == 'attn' else _MLP)[adapter.use if adapter else None]}.{rest}"

    def tables(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The buffers of an attention layer, without the causal mask `bias`."""
        frequencies = 1.0 / (10000 ** (torch.arange(0, self.rotary, 2) / self.rotary))
        angles = torch.arange(self.context)[:, None].float() * frequencies
        return {
            "masked_bias": torch.tensor(-1e9).to(dtype),
            "scale_attn": torch.tensor(float(self.dim // self.heads)).sqrt().to(dtype),
            "sin": angles.sin().to(dtype),
            "cos": angles.cos().to(dtype),
        }


def _adapter_tensor_name(adapter: Bottleneck, rest: str) -> str:
    """`adapter.down.weight` as an entry of the authors' nn.Sequential: optional LayerNorm, linear, ReLU, linear."""
    _, step, *kind = rest.split(".")
    if step == "scale":
        return "adapter_scale"
    first = 1 if adapter.layernorm else 0
    number = {"norm": 0, "down": first, "up": first + 2}[step]
    return ".".join(["adapter", str(number), *kind])


def find_alias(name: str) -> str | None:
    """The second name of the same tensor in the authors' state dict, if there is one."""
    if name == "lm.transformer.wte.weight":
        return "word_embedding.weight"
    if name.startswith("lm.transformer.h."):
        return name.replace("lm.transformer.h.", "transformer.", 1)
    return None


# Sizes from tensors


def find_sizes(tensors: Mapping[str, Tensor], image_size: int | None = None) -> Sizes:
    """All sizes, from the shapes and buffers of a state dict. Raises `CheckpointError` if a tensor is missing.

    The image size does not follow from the convolutions. It is `image_size` if given, else the size of OpenAI's encoder
    with these stages and this width, else the largest square of at most 224 pixels that leaves half of the context
    for text.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"this is not a checkpoint of the authors' code: it has no tensor {name}")
        found = tuple(tensors[name].shape)
        if len(found) != axes or 0 in found:
            raise CheckpointError(f"{name} has the shape {list(found)}; allowed: {axes} axes, none of them empty")
        return found

    words, dim = shape("lm.transformer.wte.weight", 2)
    vocab, _ = shape("lm.lm_head.weight", 2)
    layers = _count_layers(tensors, r"lm\.transformer\.h\.(\d+)\.")
    adapters = {
        place: found
        for place in ("attention", "mlp")
        if (found := _find_adapter(tensors, place, dim, shape)) is not None
    }
    attention = adapters.get("attention")
    path = f"lm.transformer.h.0.{_ATTENTION[attention.use if attention else None]}"
    context, half = shape(f"{path}.sin", 2)
    shape(f"{path}.scale_attn", 0)
    per_head = round(float(tensors[f"{path}.scale_attn"].float()) ** 2)
    if per_head < 1 or dim % per_head:
        raise CheckpointError(
            f"{path}.scale_attn implies heads of width {per_head}, which does not divide the model's width, {dim}"
        )
    stages = tuple(_count_layers(tensors, rf"image_prefix\.enc\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    width, *_ = shape("image_prefix.enc.layer1.0.conv1.weight", 4)
    if words < 3 or words > vocab:
        raise CheckpointError(f"lm.transformer.wte.weight has {words} rows; allowed: 3 to {vocab}, the rows of lm_head")
    return Sizes(
        layers=layers,
        dim=dim,
        heads=dim // per_head,
        rotary=2 * half,
        context=context,
        vocab=vocab,
        words=words,
        width=width,
        stages=(stages[0], stages[1], stages[2], stages[3]),
        image_size=image_size or CLIP_RESNETS.get((stages, width)) or _guess_image_size(context),
        guessed=image_size is None and (stages, width) not in CLIP_RESNETS,
        layernorm="image_prefix.ln.weight" in tensors,
        adapters=adapters,
    )


def _guess_image_size(context: int) -> int:
    side = max(1, min(7, int((context / 2) ** 0.5)))
    return 32 * side


def _count_layers(names: Iterable[str], pattern: str) -> int:
    """Number of layers: the names that match have the numbers from 0 on. Raises `CheckpointError` for gaps."""
    found = {int(match[1]) for name in names if (match := re.match(pattern, name)) and len(match[1]) < 6}
    if found != set(range(len(found))) or not found:
        where = pattern.replace("\\", "").replace("(d+)", "N")
        raise CheckpointError(
            f"this is not a checkpoint of the authors' code: the numbers N in its names {where} are {sorted(found)[:8]}"
        )
    return len(found)


def _find_adapter(tensors: Mapping[str, Tensor], place: str, dim: int, shape: Any) -> Bottleneck | None:
    block = "lm.transformer.h.0."
    for use in ("sequential", "parallel"):
        path = block + _ADAPTER[place][use]
        sublayer = block + (_ATTENTION if place == "attention" else _MLP)[use]
        if not any(name.startswith(f"{sublayer}.") for name in tensors):
            continue
        layernorm = f"{path}.adapter.1.weight" in tensors
        down, _ = shape(f"{path}.adapter.{1 if layernorm else 0}.weight", 2)
        downsample = dim // down
        if downsample < 1 or dim // downsample != down:
            raise CheckpointError(
                f"{path}: its bottleneck has the width {down}; allowed: {dim} divided by a whole number"
            )
        return Bottleneck(use, downsample, layernorm, f"{path}.adapter_scale" in tensors)
    return None
