"""Prefixes: maps from the features of an encoder to the space of word embeddings.

The paper uses a linear map; the pooled one is Frozen's, the non-linear ones were tried and found no better.
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .linear import Linear
from .mlp import Mlp
from .pooled import Pooled
from .transformer import Transformer


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Linear, Pooled, Mlp, Transformer]
