"""Encoders of audio."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .ast import Ast
from .clap import Clap
from .spectrogram import Spectrogram
from .wav2vec2 import Wav2Vec2
from .whisper import Whisper


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Spectrogram, Whisper, Wav2Vec2, Ast, Clap]
