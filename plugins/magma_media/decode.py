"""Reads recordings: audio files, their bytes, and waveforms. Axes: c channels, s samples."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magma import InputError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
"""Suffixes of files that soundfile reads."""
UNREADABLE_SUFFIXES = (".m4a", ".m4b", ".aac", ".wma", ".amr", ".weba", ".mka", ".ac3", ".ape", ".wv")
"""Suffixes of audio files that soundfile cannot read. Video files are not listed, as another input may accept them."""
MAGIC = (
    *(b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3"),
    *(b".snd", b"caff", b"riff\x2e\x91\xcf\x11"),
)
"""First bytes of FLAC, Ogg, MP3, AU, CAF and W64 files."""
CHUNK_HEADERS = ((b"RIFF", b"WAVE"), (b"RF64", b"WAVE"), (b"FORM", b"AIFF"), (b"FORM", b"AIFC"))
"""Bytes 0 to 4 and 8 to 12 of WAV and AIFF files."""
UNREADABLE_AUDIO = (
    (4, b"ftypM4A", "an MPEG-4 audio file (m4a)"),
    (0, b"\xff\xf1", "an AAC file"),
    (0, b"\xff\xf9", "an AAC file"),
    (0, b"ADIF", "an AAC file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"\x0bw", "an AC-3 file"),
    (0, b"MAC ", "a Monkey's Audio file (ape)"),
    (0, b"wvpk", "a WavPack file"),
)
"""Offset, first bytes and name of audio formats that soundfile cannot read."""
CONTAINERS = (
    (4, b"ftyp", "an MPEG-4 file (mp4, mov, m4a)"),
    (0, b"\x1aE\xdf\xa3", "a Matroska file (webm, mkv, mka)"),
    (0, bytes.fromhex("3026b2758e66cf11"), "a Windows Media file (wma, wmv)"),
    (8, b"AVI ", "an AVI file"),
    (0, b"FLV", "a Flash video"),
    (0, b"\0\0\x01\xba", "an MPEG video"),
)
"""The same for formats that may contain video, which another input may accept."""
SAMPLE_RATES = (4_000, 192_000)
"""Minimum and maximum sample rate, in Hz."""
NUMBERS = (int, float, np.integer, np.floating)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32)
ALLOWED = "an audio file (a path, or its bytes) or a pair (waveform [s] or [c, s], sample rate in Hz)"
WAVEFORMS = "floats from -1 to 1, or integers of 8, 16 or 32 bits, which are scaled to that range"


@dataclass(frozen=True)
class Recording:
    """A recording, any part of which can be read."""

    name: str
    """The beginning of every error message."""
    rate: int
    """Sample rate in Hz."""
    length: int
    """Number of samples per channel."""
    read: Callable[[int, int], Tensor]
    """Takes the first sample and the number of samples; returns float32 [c, s]. Raises `InputError`."""


def looks_like_audio(raw: Any) -> bool:
    """True for the path or the bytes of an audio file, and for a pair (waveform, number). Opens no file."""
    if isinstance(raw, Path):
        return raw.suffix.lower() in SUFFIXES + UNREADABLE_SUFFIXES
    if isinstance(raw, bytes | bytearray):
        return (
            raw.startswith(MAGIC)
            or (raw[:4], raw[8:12]) in CHUNK_HEADERS
            or _match_format(raw, UNREADABLE_AUDIO) is not None
        )
    return (
        isinstance(raw, tuple)
        and len(raw) == 2
        and isinstance(raw[0], np.ndarray | Tensor)
        and isinstance(raw[1], NUMBERS)
    )


def open_recording(raw: Any) -> Recording:
    """Open a recording without reading its samples. Raises `InputError` for other values and empty recordings."""
    if isinstance(raw, tuple) and len(raw) == 2:
        recording = _open_waveform(*raw)
    elif isinstance(raw, str | Path):
        recording = _open_path(Path(raw))
    elif isinstance(raw, bytes | bytearray):
        recording = _open_file(
            f"{len(raw)} bytes of audio", io.BytesIO(raw), bytes(raw[:64]), "ffmpeg -i FILE FILE.wav"
        )
    else:
        raise InputError(f"given a value of type {type(raw).__name__}; allowed: {ALLOWED}")
    if not recording.length:
        raise InputError(f"{recording.name}: the recording has no samples")
    return recording


# Waveforms


def _open_waveform(values: Any, rate: Any) -> Recording:
    if not isinstance(values, np.ndarray | Tensor):
        raise InputError(f"given a waveform of type {type(values).__name__}; allowed: {ALLOWED}")
    name, rate = "a waveform", _check_rate("a waveform", rate)
    shape = list(values.shape)
    if len(shape) not in (1, 2) or (len(shape) == 2 and 0 < shape[1] < shape[0]):
        raise InputError(f"{name}: given a waveform {shape}; allowed: [s], or [c, s]")
    waveform = _to_float32(values if isinstance(values, Tensor) else _to_tensor(values))
    waveform = waveform.reshape(-1, shape[-1]) if waveform.numel() else waveform.reshape(1, 0)
    return Recording(name, rate, waveform.shape[1], lambda start, count: waveform[:, start : start + count])


def _to_tensor(values: np.ndarray) -> Tensor:
    """An array to a tensor. It may have any strides, byte order and float type, and be read-only, unlike in torch."""
    if values.dtype.kind not in "iuf":
        raise InputError(f"given a waveform of {values.dtype}; allowed: {WAVEFORMS}")
    wider_than_torch = values.dtype.itemsize > 8
    with np.errstate(over="ignore"):  # overflow becomes infinity, which is refused later
        return torch.from_numpy(
            np.array(values, np.float64 if wider_than_torch else values.dtype.newbyteorder("="), order="C")
        )


def _to_float32(values: Tensor) -> Tensor:
    """To float32: integers are scaled to -1 to 1 (zero is the middle of the range of unsigned ones), floats are not."""
    if values.is_meta or values.layout != torch.strided:
        raise InputError("given a waveform without values in memory (meta or sparse); allowed: a dense tensor")
    values = values.detach().cpu()
    if values.is_floating_point():
        return values.float()
    if values.dtype not in INTEGERS:
        advice = (
            "; convert it to the original type of the samples" if values.dtype in (torch.int64, torch.uint64) else ""
        )
        raise InputError(f"given a waveform of {values.dtype}; allowed: {WAVEFORMS}{advice}")
    kind = torch.iinfo(values.dtype)
    half = 2.0 ** (kind.bits - 1)
    return ((values.double() - (0 if kind.min else half)) / half).float()


def _check_rate(name: str, rate: Any) -> int:
    if isinstance(rate, np.ndarray | Tensor) and rate.ndim == 0:
        rate = rate.item()
    if isinstance(rate, NUMBERS) and not isinstance(rate, bool) and SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        return round(float(rate))
    allowed = f"{SAMPLE_RATES[0]:,} to {SAMPLE_RATES[1]:,} Hz"
    raise InputError(f"{name}: given a sample rate of {rate!r:.40}; allowed: {allowed}")


# Files


def _match_format(head: bytes | bytearray, formats: Iterable[tuple[int, bytes, str]]) -> str | None:
    return next((name for offset, magic, name in formats if head.startswith(magic, offset)), None)


def _open_path(path: Path) -> Recording:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    converted = path.with_suffix(".wav") if path.suffix.lower() != ".wav" else path.with_stem(f"{path.stem}-converted")
    convert = shlex.join(["ffmpeg", "-i", str(path), str(converted)])
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as audio: {error.strerror}") from error
    return _open_file(str(path), path, head, convert)


def _open_file(name: str, source: Path | io.BytesIO, head: bytes, convert: str) -> Recording:
    """`head` is the beginning of the file, `convert` a command that converts it for soundfile."""
    import soundfile

    if not head:
        raise InputError(f"{name}: the file is empty (0 bytes)")
    remedy = (
        f"convert it with ffmpeg ({convert}), or decode it with PyAV or torchcodec and pass (waveform, sample rate)"
    )
    if kind := _match_format(head, UNREADABLE_AUDIO + CONTAINERS):
        raise InputError(f"{name}: it is {kind}, which soundfile cannot read; {remedy}")

    def decode(load: Callable[..., Any], **options: Any) -> Any:
        if isinstance(source, io.BytesIO):
            source.seek(0)
        try:
            return load(source, **options)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
            unknown = getattr(error, "code", None) == UNKNOWN_FORMAT
            advice = f". If it is a recording, {remedy}" if unknown else ""
            raise InputError(f"{name}: cannot be read as audio: {reason}{advice}") from error

    def read(start: int, count: int) -> Tensor:
        samples, _ = decode(soundfile.read, start=start, frames=count, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T.copy())

    info = decode(soundfile.info)
    return Recording(name, _check_rate(name, info.samplerate), info.frames, read)


UNKNOWN_FORMAT = 1
"""libsndfile's SF_ERR_UNRECOGNISED_FORMAT."""
