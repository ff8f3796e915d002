"""What audio encoders share: a recording to one channel at one rate, no longer than they accept.

Axes: c channels, s samples.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from magma import Encoder, InputError, PartConfig

from .decode import looks_like_audio, open_recording

SILENCE = 1e-5
"""A recording that never exceeds this share of full scale is refused."""
CANCELLED = 1e-2
"""Channels cancel each other where their average has less than this share of their root mean square."""
PADDING = float("-inf")
"""Fills up prepared items. No recording holds it, so that an encoder can see where each item ends."""


class AudioConfig(PartConfig):
    """What every audio encoder can be asked for."""

    crop: Literal["none", "start", "random"] = "none"
    """Of a recording that is too long: none is refused, start keeps its beginning, random any part in training and
    the beginning otherwise."""


class AudioEncoder(Encoder):
    """What audio encoders share: decoding, one channel, one rate, a longest duration, padding that they recognise."""

    modality = "audio"
    config: AudioConfig
    rate: int
    """Samples a second of the waveforms that the encoder reads."""
    seconds: float
    """The longest recording."""

    def accepts(self, raw: Any) -> bool:
        """A path with an audio file's suffix, the bytes of one, or a pair of a waveform and its rate."""
        return looks_like_audio(raw)

    def max_samples(self, rate: int) -> int:
        """Samples of the longest recording at a rate."""
        return int(self.seconds * rate)

    def load_mono(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """A recording to one channel [s] at the encoder's rate; `rng` is for `crop`.

        Raises `InputError` that names the recording.
        """
        import torchaudio.functional as audio

        recording = open_recording(raw)
        count, start = min(recording.length, self.max_samples(recording.rate)), 0
        cropped = count < recording.length
        if cropped and self.config.crop == "none":
            raise InputError(
                f"{recording.name}: it lasts {recording.length / recording.rate:.6g} s; allowed: at most "
                f'{self.seconds:g} s, or crop = "start" or "random" in the encoder\'s table, to use a part of it'
            )
        if self.config.crop == "random" and cropped and rng is not None:
            start = rng.randint(0, recording.length - count)
        mono = _average_channels(recording.name, recording.read(start, count))
        if not cropped and float(mono.abs().max()) <= SILENCE:  # a part may be a pause
            raise InputError(f"{recording.name}: it is silent")
        if recording.rate == self.rate:
            return mono
        resampled: Tensor = audio.resample(mono, recording.rate, self.rate)
        return resampled

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        """Items [s, ...] of unequal length, filled up with `PADDING`."""
        return pad_sequence(list(items), batch_first=True, padding_value=PADDING)

    @abstractmethod
    def dummy_item(self) -> Tensor:
        """The shortest item."""


def _average_channels(name: str, channels: Tensor) -> Tensor:
    """[c, s] to [s]. Raises `InputError` where that leaves nothing of what the channels hold."""
    mono = channels.mean(0)
    if not len(mono):
        raise InputError(f"{name}: no samples can be read from it")
    if not bool(mono.isfinite().all()):
        raise InputError(f"{name}: its samples are not all finite (NaN or infinity)")
    if len(channels) == 1 or float(channels.abs().max()) <= SILENCE:
        return mono
    share = mono.double().square().mean().sqrt() / channels.double().square().mean().sqrt()
    if share < CANCELLED:
        raise InputError(
            f"{name}: its {len(channels)} channels cancel each other: their average has {float(share):.2%} of their "
            "level, as if one were inverted. Give one channel only: waveform[0], or for a file what this writes: "
            'ffmpeg -i FILE -af "pan=mono|c0=c0" FILE-mono.wav'
        )
    return mono


def example_recordings(folder: Path, seconds: float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What an encoder of at least `seconds` accepts, and what it refuses: for its `check_inputs`."""
    import soundfile

    t = np.arange(int(8_000 * seconds)) / 8_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    soundfile.write(folder / "tone.wav", tone, 8_000)
    (folder / "text.wav").write_text("no sound")
    good = (folder / "tone.wav", (tone[: len(tone) // 2], 8_000), (np.stack([tone, tone[::-1]]), 16_000))
    bad = (folder / "none.wav", folder / "text.wav", (tone[:0], 8_000), (0 * tone, 8_000), (tone * np.nan, 8_000))
    return good, (*bad, (tone, float("nan")), (np.stack([tone, -tone]), 8_000))
