"""Language models of transformers, frozen, with adapters around their sublayers."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .causal import Causal
from .gptj import GPTJ


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [GPTJ, Causal]
