"""Prefixes: features to word-embedding space."""

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
