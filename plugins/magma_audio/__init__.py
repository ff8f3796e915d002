"""Audio encoders: a small one over spectrograms from scratch, and four published ones of transformers.

`decode.py` reads recordings, `waveform.py` has what all audio encoders share, `hf_encoder.py` what those of
transformers share; each family of encoders has its own file.
"""

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
