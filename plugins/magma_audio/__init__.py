"""Encoders of audio."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .spectrogram import Spectrogram


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Spectrogram]
