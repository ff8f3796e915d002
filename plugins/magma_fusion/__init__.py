"""Encoders that are made of other encoders. They read the modality of their members."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .fused import Fused


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Fused]
