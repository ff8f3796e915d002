"""Small copies of configurations: the structure and the behaviour of a model are found out on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

WINDOW = 8
"""Attention windows of a reduced copy, and the chunks in which recurrent layers compute, in positions."""
VOCABULARY = 1024
"""Word embeddings of a reduced copy."""
WIDTHS = (
    "hidden_size",
    "intermediate",
    "ffn",
    "d_model",
    "n_embd",
    "n_inner",
    "embedding_size",
    "embed_dim",
    "lru_width",
)
"""Parts of the names of widths that grow with the number of heads."""
COUNTS = ("heads", "n_head", "num_kv")
"""Parts of the names of numbers of heads."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")

SELECTIONS = {
    "index_topk": 8,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
"""Sizes in a reduced copy of attention that selects positions; a short text does not show the selection otherwise."""


def reductions(architecture: Any, only_windows: bool = False) -> Iterator[Any]:
    """Copies of a configuration, the smallest first; the last two have their full widths.

    Args:
        architecture: The configuration.
        only_windows: Leave out those that are smaller but for their windows.
    """
    fields = architecture.to_dict()
    heads = [value for key, value in fields.items() if _is(key, COUNTS) and isinstance(value, int) and value > 1]
    if heads and not only_windows:
        for selections in _selections(fields):
            for divisor in sorted({math.gcd(*heads), max(1, math.gcd(*heads) // 2)}, reverse=True):
                small = {**_shrink(fields, divisor), **_small_vocabulary(fields), **_windows(fields)}
                yield _copy(architecture, {**small, **selections})
    for selections in _selections(fields):
        yield _copy(architecture, {**_windows(fields), **selections})
    yield copy.deepcopy(architecture)


def _copy(architecture: Any, changes: Mapping[str, Any]) -> Any:
    fields = {**architecture.to_dict(), **changes}
    for derived in ("transformers_version", "quantization_config", "_name_or_path"):
        fields.pop(derived, None)
    return type(architecture).from_dict(fields)


def _is(key: str, parts: tuple[str, ...]) -> bool:
    return any(part in key for part in parts)


def _shrink(fields: Mapping[str, Any], divisor: int) -> dict[str, Any]:
    """Widths and numbers of heads divided, and few experts."""
    found: dict[str, Any] = {}
    for key, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if key in EXPERTS:
            found[key] = min(value, 4)
        elif key in EXPERTS_PER_TOKEN:
            found[key] = min(value, 2)
        elif _is(key, COUNTS) or (_is(key, WIDTHS) and "head_dim" not in key):
            found[key] = max(1, value // divisor)
    return found


def _windows(fields: Mapping[str, Any]) -> dict[str, int]:
    return {
        key: WINDOW
        for key, value in fields.items()
        if ("window" in key or key.endswith("chunk_size"))
        and isinstance(value, int)
        and not isinstance(value, bool)
        and value > WINDOW
        and "max_window" not in key
    }


def _selections(fields: Mapping[str, Any]) -> list[dict[str, int]]:
    """Small selections, and those of the configuration: with few heads, equal scores can make the choice arbitrary."""
    found = {
        key: small for key, small in SELECTIONS.items() if isinstance(fields.get(key), int) and fields[key] > small
    }
    return [found, {}] if found else [{}]


def _small_vocabulary(fields: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in fields.items():
        if key in ("vocab_size", "vocab_size_per_layer_input"):
            found[key] = min(value, VOCABULARY)
        elif key.endswith("token_id") and isinstance(value, int) and value >= VOCABULARY:
            found[key] = len(found) + 1
        elif key.endswith("token_id") and isinstance(value, list):
            found[key] = [min(one, VOCABULARY - 1 - i) for i, one in enumerate(value)]
    return found
