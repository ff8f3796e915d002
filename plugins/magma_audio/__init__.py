"""Audio encoders: a small spectrogram encoder without pretrained weights, and four published ones of transformers.

`hf_encoder.py` has the base class of those of transformers, and magma_media that of all. Each family has its own file.
`audio_windows.py` divides long recordings.
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .ast import Ast
from .audio_windows import AudioWindows
from .clap import Clap
from .spectrogram import Spectrogram
from .wav2vec2 import Wav2Vec2
from .whisper import Whisper


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Spectrogram, Whisper, Wav2Vec2, Ast, Clap, AudioWindows]
