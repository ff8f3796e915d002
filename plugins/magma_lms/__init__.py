"""Frozen language models of transformers, with adapters around their sublayers.

`causal.py` supports all families of `families.py`; `gptj.py` is a faster GPT-J, the language model of the paper.
`kv_cache.py` and `shared_prefix_cache.py` are KV caches, `weights.py` finds and reads files; `bundled` has a tiny
model.
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .causal import Causal
from .gptj import GPTJ


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [GPTJ, Causal]
