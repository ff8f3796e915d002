"""Encoders of audio."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .spectrogram import Spectrogram
from .towers import Ast, Clap, Wav2Vec2, Whisper


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Spectrogram, Whisper, Wav2Vec2, Ast, Clap]
