"""Prefixes: maps from the features of an encoder to the space of word embeddings.

The paper uses the linear map. The pooled map is from Frozen. The paper also tried the non-linear ones, and found them
no better.
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .identity import Identity
from .linear import Linear
from .mlp import Mlp
from .pooled import Pooled
from .transformer import Transformer


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Identity, Linear, Pooled, Mlp, Transformer]
