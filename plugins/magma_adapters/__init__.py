"""Adapters: small trained modules around the sublayers of a frozen language model.

`bottleneck.py` has the sequential and the parallel bottleneck adapters of the paper (equations 1 and 2).
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .bottleneck import Parallel, Sequential


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Sequential, Parallel]
