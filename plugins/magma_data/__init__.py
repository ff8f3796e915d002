"""Data sources and evaluations that come with MAGMA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from magma import hookimpl

if TYPE_CHECKING:
    from magma import Part


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package; torch is loaded when someone asks for them, not when the program starts."""
    from .digits import Digits, DigitsTask
    from .paired import SameNumber, SameNumberTask
    from .pairs import Captions, Labelled, Vqa
    from .spoken import SpokenDigits, SpokenDigitsTask

    return [
        *(Captions, Labelled, Vqa),
        *(Digits, DigitsTask),
        *(SpokenDigits, SpokenDigitsTask),
        *(SameNumber, SameNumberTask),
    ]
