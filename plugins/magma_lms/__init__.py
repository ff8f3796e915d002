"""Frozen language models of transformers, with adapters around their sublayers.

`causal.py` takes any family of `families.py`, `gptj.py` is the faster GPT-J of the paper. `kv_cache.py` and
`shared_prefix_cache.py` hold keys and values, `weights.py` finds and reads files, `bundled` has a tiny model.
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .causal import Causal
from .gptj import GPTJ


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [GPTJ, Causal]
