"""Heads: classifiers that replace the output layer of the language model, for labels instead of text."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .linear import LinearHead


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [LinearHead]
