"""Data sources and evaluations that come with MAGMA."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .digits import Digits, DigitsTask
from .pairs import Captions, Labelled, Vqa


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Captions, Digits, DigitsTask, Labelled, Vqa]
