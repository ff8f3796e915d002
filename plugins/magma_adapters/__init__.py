"""Adapters: small trained modules around the sublayers of a frozen language model."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .bottleneck import Parallel, Sequential


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Sequential, Parallel]
