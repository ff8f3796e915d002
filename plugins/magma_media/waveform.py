"""Base class of audio encoders: recordings to mono waveforms at one sample rate, of limited length.

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

MIN_LEVEL = 1e-5
"""A recording whose level never exceeds this fraction of full scale is refused."""
MIN_MONO_LEVEL = 1e-2
"""Channels cancel each other if the RMS of their average is less than this fraction of their RMS."""
PADDING = float("-inf")
"""Padding value of prepared items. No recording contains it, so an encoder can find the end of each item."""


class AudioConfig(PartConfig):
    """Keys of every audio encoder."""

    crop: Literal["none", "start", "random"] = "none"
    """What happens with a recording that is longer than the encoder accepts: an error, its beginning, or a random part
    in training and the beginning elsewhere."""


class AudioEncoder(Encoder):
    """Base class of audio encoders: decoding, mixing to mono, resampling, maximum duration and padding."""

    modality = "audio"
    config: AudioConfig
    rate: int
    """Sample rate of the encoder, in Hz."""
    seconds: float
    """Maximum duration of a recording, in seconds."""

    def accepts(self, raw: Any) -> bool:
        """True for the path or the bytes of an audio file, and for a pair (waveform, sample rate)."""
        return looks_like_audio(raw)

    def max_samples(self, rate: int) -> int:
        """Number of samples of the maximum duration, at a sample rate."""
        return int(self.seconds * rate)

    def load_mono(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """A recording to a mono waveform [s] at the encoder's sample rate; `rng` is for `crop`. Raises `InputError`."""
        return load_mono(raw, self.rate, self.seconds, self.config.crop, rng)

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        """Items [s, ...] of different lengths to one batch, padded with `PADDING`."""
        return pad_sequence(list(items), batch_first=True, padding_value=PADDING)

    @abstractmethod
    def dummy_item(self) -> Tensor:
        """An item of minimum length."""


def load_mono(raw: Any, rate: int, seconds: float, crop: str, rng: random.Random | None = None) -> Tensor:
    """Read a recording.

    Args:
        raw: What `open_recording` accepts.
        rate: Sample rate of the result.
        seconds: Maximum duration.
        crop: As in `AudioConfig`.
        rng: For `crop = "random"`.

    Returns:
        A mono waveform [s].

    Raises:
        InputError: It cannot be read, or it is too long.
    """
    import torchaudio.functional as audio

    recording = open_recording(raw)
    count, start = min(recording.length, int(seconds * recording.rate)), 0
    cropped = count < recording.length
    if cropped and crop == "none":
        raise InputError(
            f"{recording.name}: its duration is {recording.length / recording.rate:.6g} s; allowed: at most "
            f'{seconds:g} s, or crop = "start" or "random" in the encoder\'s table'
        )
    if crop == "random" and cropped and rng is not None:
        start = rng.randint(0, recording.length - count)
    mono = _average_channels(recording.name, recording.read(start, count))
    if not cropped and float(mono.abs().max()) <= MIN_LEVEL:  # a cropped part may be silent
        raise InputError(f"{recording.name}: the recording is silent")
    if recording.rate == rate:
        return mono
    resampled: Tensor = audio.resample(mono, recording.rate, rate)
    return resampled


def _average_channels(name: str, channels: Tensor) -> Tensor:
    """Average the channels: [c, s] to [s]. Raises `InputError` for non-finite values and channels that cancel."""
    mono = channels.mean(0)
    if not len(mono):
        raise InputError(f"{name}: no samples can be read")
    if not bool(mono.isfinite().all()):
        raise InputError(f"{name}: its samples are not all finite (NaN or infinity)")
    if len(channels) == 1 or float(channels.abs().max()) <= MIN_LEVEL:
        return mono
    remaining = mono.double().square().mean().sqrt() / channels.double().square().mean().sqrt()
    if remaining < MIN_MONO_LEVEL:
        raise InputError(
            f"{name}: its {len(channels)} channels cancel each other: the average has {float(remaining):.2%} of their "
            "level; perhaps one is inverted. Use one channel: waveform[0], or for a file: "
            'ffmpeg -i FILE -af "pan=mono|c0=c0" FILE-mono.wav'
        )
    return mono


def example_recordings(folder: Path, seconds: float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Valid and invalid recordings for an encoder that accepts at least `seconds`, for the conformance checks."""
    import soundfile

    t = np.arange(int(8_000 * seconds)) / 8_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    soundfile.write(folder / "tone.wav", tone, 8_000)
    (folder / "text.wav").write_text("no sound")
    good = (folder / "tone.wav", (tone[: len(tone) // 2], 8_000), (np.stack([tone, tone[::-1]]), 16_000))
    bad = (folder / "none.wav", folder / "text.wav", (tone[:0], 8_000), (0 * tone, 8_000), (tone * np.nan, 8_000))
    return good, (*bad, (tone, float("nan")), (np.stack([tone, -tone]), 8_000))
