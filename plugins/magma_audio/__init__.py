"""Encoders of audio."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .hf_encoder import Ast, Clap, Wav2Vec2, Whisper
from .spectrogram import Spectrogram


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Spectrogram, Whisper, Wav2Vec2, Ast, Clap]
