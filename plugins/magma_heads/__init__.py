"""Heads: what a model puts in place of the language model's own to classify."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .linear import LinearHead


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [LinearHead]
