"""Sound as users hold it, to what an encoder reads. Axes: c channels, s samples."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from magma import Encoder, InputError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au")
MAGIC = (b"fLaC", b"OggS", b"ID3", b".snd", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3")
"""What the bytes of a FLAC, Ogg, MP3 or AU file begin with; WAV and AIFF are told by more than that."""
FORMS = ((b"RIFF", b"WAVE"), (b"RF64", b"WAVE"), (b"FORM", b"AIFF"), (b"FORM", b"AIFC"))
RATES = (4_000, 192_000)
"""Samples a second, at least and at most."""
SILENCE = 1e-5
"""A recording that never goes beyond this share of full scale is taken for an empty one."""
PADDING = float("-inf")
"""What prepared items are filled up with: no recording has it, so that an encoder knows where one ends."""
ALLOWED = "an audio file (a path, or its bytes) or (waveform [s] or [c, s], samples a second)"


class AudioEncoder(Encoder):
    """What audio encoders share: decoding, one channel, one rate, a longest duration, padding that they recognise."""

    modality = "audio"
    rate: int
    """Samples a second that the encoder hears."""
    seconds: float
    """The longest recording."""

    def accepts(self, raw: Any) -> bool:
        """A path with an audio file's suffix, the bytes of one, or a pair of a waveform and its rate."""
        if isinstance(raw, Path):
            return raw.suffix.lower() in SUFFIXES
        if isinstance(raw, bytes | bytearray):
            return raw.startswith(MAGIC) or (raw[:4], raw[8:12]) in FORMS
        return (
            isinstance(raw, tuple)
            and len(raw) == 2
            and isinstance(raw[0], np.ndarray | Tensor)
            and isinstance(raw[1], int | float | np.integer)
        )

    def hear(self, raw: Any) -> Tensor:
        """A recording to one channel [s] at the encoder's rate. Raises `InputError` that names it."""
        import torchaudio.functional as audio

        waveform, rate, name = _decoded(raw)
        if waveform.ndim not in (1, 2) or (waveform.ndim == 2 and waveform.shape[0] > waveform.shape[1]):
            raise InputError(f"{name}: given a waveform {list(waveform.shape)}; allowed: [s], or [c, s]")
        if not RATES[0] <= rate <= RATES[1]:
            raise InputError(f"{name}: given {rate} samples a second; allowed: {RATES[0]:,} to {RATES[1]:,}")
        mono = waveform if waveform.ndim == 1 else waveform.mean(0)
        if not len(mono):
            raise InputError(f"{name}: it is empty")
        if not bool(mono.isfinite().all()):
            raise InputError(f"{name}: its samples are not all finite")
        if len(mono) > self.seconds * rate:
            raise InputError(f"{name}: it lasts {len(mono) / rate:.2f} s; allowed: at most {self.seconds:g} s")
        if float(mono.abs().max()) <= SILENCE:
            raise InputError(f"{name}: it is silent")
        return mono if rate == self.rate else audio.resample(mono, rate, self.rate)

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        """Items [s, ...] of unequal length, filled up with `PADDING`."""
        return pad_sequence(list(items), batch_first=True, padding_value=PADDING)

    @abstractmethod
    def blank(self) -> Tensor:
        """The shortest item."""


def recordings_for_trial(folder: Path, seconds: float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What an encoder of at least `seconds` hears, and what it refuses: for its `trial`."""
    import soundfile

    t = np.arange(int(8_000 * seconds)) / 8_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    soundfile.write(folder / "tone.wav", tone, 8_000)
    (folder / "text.wav").write_text("no sound")
    good = (folder / "tone.wav", (tone[: len(tone) // 2], 8_000), (np.stack([tone, tone[::-1]]), 16_000))
    bad = (folder / "none.wav", folder / "text.wav", (tone[:0], 8_000), (0 * tone, 8_000), (tone * np.nan, 8_000))
    return good, bad


def _decoded(raw: Any) -> tuple[Tensor, int, str]:
    """float32 waveform [s] or [c, s], samples a second, and how errors speak of it."""
    if isinstance(raw, tuple) and len(raw) == 2:
        values, rate = raw
        if not isinstance(values, np.ndarray | Tensor):
            raise InputError(f"given a waveform of type {type(values).__name__}; allowed: {ALLOWED}")
        waveform = torch.as_tensor(values)
        if waveform.is_floating_point():
            return waveform.float(), int(rate), "a waveform"
        if waveform.dtype in (torch.int16, torch.int32):
            return waveform.float() / -float(torch.iinfo(waveform.dtype).min), int(rate), "a waveform"
        raise InputError(f"given a waveform of {waveform.dtype}; allowed: a floating type in -1 to 1, int16 or int32")
    if isinstance(raw, str | Path):
        name, source = str(raw), raw
        if not Path(raw).is_file():
            raise InputError(f"{raw}: no such file")
    elif isinstance(raw, bytes | bytearray):
        name, source = f"{len(raw)} bytes of audio", io.BytesIO(raw)  # type: ignore[assignment]
    else:
        raise InputError(f"given a value of type {type(raw).__name__}; allowed: {ALLOWED}")
    import soundfile

    try:
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise InputError(f"{name}: it cannot be read as audio: {error}") from error
    return torch.from_numpy(samples.T.copy()), int(rate), name
