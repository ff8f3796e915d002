"""Data sources and evaluations that come with MAGMA."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .digits import Digits, DigitsTask
from .paired import SameNumber, SameNumberTask
from .pairs import Captions, Labelled, PlainText, Vqa
from .spoken import SpokenDigits, SpokenDigitsTask


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [
        *(Captions, Labelled, PlainText, Vqa),
        *(Digits, DigitsTask),
        *(SpokenDigits, SpokenDigitsTask),
        *(SameNumber, SameNumberTask),
    ]
