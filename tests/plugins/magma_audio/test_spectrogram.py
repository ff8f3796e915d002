"""Sound: what is heard of files and waveforms, and the encoder from scratch."""

from __future__ import annotations

import io
import os
import random
import wave as wave_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from magma_audio.spectrogram import Spectrogram
from magma_media.waveform import PADDING

import magma
from magma import Example, InputError, Magma, Media, Text

SMALL: dict[str, Any] = {"rate": 8000, "seconds": 2.0, "bands": 16, "width": 16, "heads": 2}


def tone(rate: int = 8000, seconds: float = 0.5, pitch: float = 440.0) -> np.ndarray:
    time = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


def encoder(**fields: Any) -> Spectrogram:
    torch.manual_seed(0)
    return Spectrogram.build(**{**SMALL, **fields}).eval()


def written(folder: Path, kind: str, rate: int, channels: int, subtype: str | None = None) -> Path:
    path = folder / f"tone.{kind}"
    wave = np.stack([tone(rate)] * channels, axis=1)
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize(("kind", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", None), ("ogg", None)])
def test_files_of_every_kind_are_heard_alike(
    tmp_path: Path, kind: str, subtype: str | None, rate: int, channels: int
) -> None:
    path = written(tmp_path, kind, rate, channels, subtype)
    assert encoder().accepts(path.read_bytes())
    heard = encoder().load_mono(path)
    expected = torch.from_numpy(tone(8000))
    assert heard.shape == expected.shape
    inside = slice(200, -200)  # a resampler's and a codec's edges
    assert (heard - expected)[inside].abs().max() < (0.05 if kind == "ogg" else 0.01)


def test_mp3_bytes_and_waveforms_are_heard(tmp_path: Path) -> None:
    path = written(tmp_path, "mp3", 44100, 2)
    one, other = encoder().load_mono(path), encoder().load_mono(path.read_bytes())
    assert torch.equal(one, other)
    assert encoder().accepts(path.read_bytes())
    for image in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", b"text"):
        assert not encoder().accepts(image)  # it would be another input's
    plain = torch.from_numpy(tone())
    assert torch.equal(encoder().load_mono((plain, 8000)), plain)
    assert torch.equal(encoder().load_mono((torch.stack([plain, -plain, plain]), 8000)), plain / 3)
    whole = (plain * 32768).round().to(torch.int16)
    assert torch.allclose(encoder().load_mono((whole.numpy(), 8000)), plain, atol=1e-4)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ((np.zeros(800, np.float32), 8000), "a waveform: the recording is silent"),
        ((np.zeros(0, np.float32), 8000), "a waveform: the recording has no samples"),
        ((np.full(800, np.nan, np.float32), 8000), "a waveform: its samples are not all finite"),
        (
            (tone(seconds=2.1), 8000),
            r'a waveform: its duration is 2\.1 s; allowed: at most 2 s, or crop = "start" or "random"',
        ),
        ((np.zeros((2, 0), np.float32), 8000), "a waveform: the recording has no samples"),
        ((np.zeros((0, 9), np.float32), 8000), "a waveform: the recording has no samples"),
        ((tone().astype(np.longdouble) * 1e300, 8000), "a waveform: its samples are not all finite"),
        (b"", "0 bytes of audio: the file is empty"),
        ((tone().reshape(-1, 1), 8000), r"a waveform: given a waveform \[4000, 1\]; allowed: \[s\], or \[c, s\]"),
        (
            (tone().astype(np.int64), 8000),
            "given a waveform of torch.int64; allowed: .*; convert it to the original type",
        ),
        ((tone().astype(complex), 8000), "given a waveform of complex128; allowed"),
        ((tone().astype(object), 8000), "given a waveform of object; allowed"),
        ((torch.zeros(9, device="meta"), 8000), "given a waveform without values"),
        (b"RIFF and no more", "16 bytes of audio: cannot be read as audio"),
        (Path("gone.wav"), "gone.wav: no such file"),
        (17, "given a value of type int; allowed: an audio file"),
        (torch.zeros(3, 5), r"given a tensor \[3, 5\]; allowed: log-mel frames \[f, 16\], at most 201"),
        (torch.full((3, 16), np.nan), "given log-mel frames that are not all finite"),
    ],
)
def test_what_cannot_be_heard_is_said(raw: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder().prepare(raw)


@pytest.mark.parametrize(
    "rate",
    [float("nan"), float("inf"), 0, -8000, 3999, 192_001, 10**400, "8000", None, True, np.float32("nan"), [8000]],
)
def test_sample_rates_that_are_none_are_refused(rate: Any) -> None:
    with pytest.raises(InputError, match=r"^a waveform: given a sample rate of .*; allowed: 4,000 to 192,000 Hz"):
        encoder().prepare((tone(), rate))


@pytest.mark.parametrize("rate", [8000.0, np.int16(8000), np.float32(8000), np.array(8000), torch.tensor(8000)])
def test_sample_rates_may_be_numbers_of_any_library(rate: Any) -> None:
    assert torch.equal(encoder().load_mono((tone(), rate)), torch.from_numpy(tone()))


def test_arrays_of_any_memory_layout_are_heard_alike(tmp_path: Path) -> None:
    """As soundfile reads them: reversed, strided, of the other byte order, read-only, of every type."""
    wave = tone(pitch=431.0)
    whole = (wave * 32767).astype(np.int16)
    frozen = wave.copy()
    frozen.flags.writeable = False
    same = [wave[::-1].copy()[::-1], np.repeat(wave, 3)[::3], wave.astype(">f4"), wave.astype(np.longdouble), frozen]
    for form in [*same, np.stack([wave, wave], axis=1).T, torch.from_numpy(wave).requires_grad_()]:
        assert torch.equal(encoder().load_mono((form, 8000)), torch.from_numpy(wave))
    soundfile.write(tmp_path / "whole.wav", whole, 8000, subtype="PCM_16")
    expected = encoder().load_mono(tmp_path / "whole.wav")
    for form in (
        whole,
        whole.astype(">i2"),
        whole.astype(np.int32) << 16,
        (whole.astype(np.int32) + 32768).astype("u2"),
    ):
        assert torch.equal(encoder().load_mono((form, 8000)), expected)
    soundfile.write(tmp_path / "bytes.wav", wave, 8000, subtype="PCM_U8")
    with wave_module.open(str(tmp_path / "bytes.wav")) as file:  # 8 bits are unsigned in WAV files
        coarse = np.frombuffer(file.readframes(len(wave)), np.uint8)
    expected = encoder().load_mono(tmp_path / "bytes.wav")
    assert torch.equal(encoder().load_mono((coarse, 8000)), expected)
    assert torch.equal(encoder().load_mono(((coarse ^ 128).view(np.int8), 8000)), expected)
    assert (expected - torch.from_numpy(wave)).abs().max() < 0.01


HEADS = [
    (b"\0\0\0\x1cftypM4A \0\0\2\0", ".m4a", "MPEG-4", True),
    (b"\0\0\0\x20ftypisom\0\0\2\0", ".mp4", "MPEG-4", False),
    (b"\0\0\0\x14ftypqt  \0\0\2\0", ".mov", "MPEG-4", False),
    (b"\xff\xf1\x4c\x40\x1a\x7f\xfc", ".aac", "AAC", True),
    (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01", ".webm", "Matroska", False),
    (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01", ".wav", "Matroska", False),
    (bytes.fromhex("3026b2758e66cf11a6d9"), ".wma", "Windows Media", False),
    (b"RIFF\0\0\0\0AVI LIST", ".avi", "AVI", False),
    (b"#!AMR\n", ".amr", "AMR", True),
]


@pytest.mark.parametrize(("head", "suffix", "kind", "audio_only"), HEADS, ids=lambda value: str(value)[:8])
def test_what_soundfile_cannot_read_is_named_with_what_can(
    head: bytes, suffix: str, kind: str, audio_only: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"my voice{suffix}"
    path.write_bytes(head + bytes(500))
    target = tmp_path / ("my voice-converted.wav" if suffix == ".wav" else "my voice.wav")
    with pytest.raises(InputError) as error:
        encoder().prepare(path)
    assert str(error.value).startswith(f"{path}: it is a")
    assert f"{kind} " in str(error.value)
    assert "soundfile cannot read" in str(error.value)
    assert f"(ffmpeg -i '{path}' '{target}')" in str(error.value)
    assert "PyAV or torchcodec" in str(error.value)
    with pytest.raises(InputError, match=rf"^{len(head) + 500} bytes of audio: it is an? {kind} .*ffmpeg -i FILE"):
        encoder().prepare(path.read_bytes())
    # Files that may hold video are left to an input of videos, if there is one.
    assert encoder().accepts(path.read_bytes()) is audio_only
    assert encoder().accepts(Path("a.m4a"))
    assert not encoder().accepts(Path("a.webm"))


def test_an_unknown_format_is_named_with_what_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.wav"
    path.write_text("no sound")
    message = r"notes\.wav: cannot be read as audio: Format not recognised\. If it is a recording, convert it"
    with pytest.raises(InputError, match=message):
        encoder().prepare(path)


def test_channels_that_cancel_each_other_are_reported(tmp_path: Path) -> None:
    wave = tone()
    soundfile.write(tmp_path / "inverted.wav", np.stack([wave, -wave], axis=1), 8000)
    with pytest.raises(InputError, match=r"inverted\.wav: its 2 channels cancel .* Use one"):
        encoder().prepare(tmp_path / "inverted.wav")
    with pytest.raises(InputError, match=r"a waveform: its 2 channels cancel .* has 0\.50% of their level"):
        encoder().prepare((np.stack([1.01 * wave, -0.99995 * wave]), 8000))
    one_sided = encoder().load_mono((np.stack([wave, 0 * wave]), 8000))
    assert torch.equal(one_sided, torch.from_numpy(wave / 2))
    wide = np.stack([wave, -0.9 * wave])  # an average 26 dB below the channels is still what they hold
    assert torch.allclose(encoder().load_mono((wide, 8000)), torch.from_numpy(0.05 * wave), atol=1e-6)
    with pytest.raises(InputError, match="the recording is silent"):
        encoder().prepare((np.stack([0 * wave, 0 * wave]), 8000))


def test_recordings_that_are_too_long_are_cropped_where_the_config_says_so(tmp_path: Path) -> None:
    """Every sample says where it is, so that a part can be found in the whole. Files are read from there on only."""
    ramp = (np.arange(20_000) / 32768).astype(np.float32)
    soundfile.write(tmp_path / "ramp.wav", ramp, 8000)
    for raw in (
        (ramp, 8000),
        (np.stack([ramp, ramp]), 8000),
        tmp_path / "ramp.wav",
        (tmp_path / "ramp.wav").read_bytes(),
    ):
        with pytest.raises(InputError, match=r"its duration is 2\.5 s; allowed: at most 1 s, or crop"):
            encoder(seconds=1.0).prepare(raw, random.Random(0))
        first = torch.from_numpy(ramp[:8000])
        assert torch.equal(encoder(seconds=1.0, crop="start").load_mono(raw, random.Random(0)), first)
        part = encoder(seconds=1.0, crop="random")
        assert torch.equal(part.load_mono(raw), first)  # evaluation draws nothing
        starts = []
        for seed in range(20):
            heard = part.load_mono(raw, random.Random(seed))
            start = round(float(heard[0]) * 32768)
            assert torch.equal(heard, torch.from_numpy(ramp[start : start + 8000]))
            starts.append(start)
        assert starts == [random.Random(seed).randint(0, 12_000) for seed in range(20)]
        assert len(set(starts)) == 20
    short = (tone(seconds=0.9), 8000)
    draw = random.Random(1)
    assert torch.equal(encoder(seconds=1.0, crop="random").prepare(short, draw), encoder(seconds=1.0).prepare(short))
    assert draw.random() == random.Random(1).random()  # what fits draws nothing


def test_a_cropped_part_may_be_a_pause() -> None:
    late = np.concatenate([np.zeros(8000, np.float32), tone()])
    part = encoder(seconds=1.0, crop="start")
    assert bool(part(part.stack([part.prepare((late, 8000))])).values.isfinite().all())
    with pytest.raises(InputError, match="its samples are not all finite"):
        part.prepare((late * np.nan, 8000))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.flac"
    path.write_bytes(written(tmp_path, "flac", 8000, 1).read_bytes()[:50])
    with pytest.raises(InputError, match=r"broken\.flac: cannot be read as audio"):
        encoder().prepare(path)


def test_it_takes_what_sounds_and_nothing_else() -> None:
    part = encoder()
    assert all(part.accepts(raw) for raw in (Path("a.WAV"), b"fLaC...", (tone(), 8000), (torch.zeros(3), 8000.0)))
    assert not any(part.accepts(raw) for raw in (Path("a.png"), "a.wav", tone(), (8000, tone()), 3, None))


@pytest.mark.parametrize("samples", [1, 7, 79, 80, 81, 4000, 15999, 16000])
def test_its_size_is_what_it_gives(samples: int) -> None:
    part = encoder()
    prepared = part.prepare((torch.randn(samples, generator=torch.Generator().manual_seed(1)), 8000))
    features = part(part.stack([prepared]))
    assert features.values.shape == (1, part.num_features(prepared), part.dim)
    assert features.lengths is not None
    assert features.lengths.tolist() == [part.num_features(prepared)]
    assert part.num_features(prepared) <= part.length
    assert len(prepared) <= len(part.max_size_item()) == 201
    assert part.num_features(part.max_size_item()) == part.length == 26


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_changes_nothing(dtype: torch.dtype) -> None:
    """Whatever else is in a batch: every recording gives what it gives alone, and zeros behind."""
    part = encoder().to(dtype)
    draw = torch.Generator().manual_seed(0)
    items = [part.prepare((torch.randn(n, generator=draw), 8000)) for n in (300, 5000, 16000, 2111)]
    stacked = part.stack(items)
    assert bool((stacked[0, len(items[0]) :] == PADDING).all())
    together = part(stacked.to(dtype))
    for i, item in enumerate(items):
        alone = part(part.stack([item]).to(dtype)).values[0]
        n = part.num_features(item)
        assert together.lengths[i] == n
        assert torch.allclose(
            together.values[i, :n].float(), alone.float(), atol=1e-5 if dtype == torch.float32 else 0.1
        )
        assert not together.values[i, n:].any()


def test_all_of_it_learns_and_none_of_it_is_random() -> None:
    part = encoder(dropout=0.1).train()
    x = part.stack([part.prepare((tone(pitch=pitch), 8000)) for pitch in (220.0, 440.0)])
    part(x).values.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    part.eval()
    assert torch.equal(part(x).values, part(x).values)


def test_spec_augment_only_in_training() -> None:
    part = encoder(spec_augment=True)
    raw = (tone(), 8000)
    plain = part.prepare(raw)
    one, same, other = (part.prepare(raw, random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == plain.shape
    assert 0 < (one == 0).float().mean() < 0.7
    assert torch.equal(one[one != 0], plain[one != 0])
    assert torch.equal(encoder().prepare(raw, random.Random(1)), plain)


def test_a_language_model_hears_recordings_of_unequal_length(tmp_path: Path) -> None:
    recipe = {
        "name": "hearing",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {"audio": {"encoder": {"use": "spectrogram", **SMALL}, "prefix": {"use": "linear"}}},
    }
    model: Magma = magma.assemble(recipe)
    files = []
    for i, seconds in enumerate((0.2, 1.1)):
        files.append(tmp_path / f"{i}.wav")
        soundfile.write(files[-1], tone(seconds=seconds, pitch=300 + 200 * i), 8000)
    batch = model.collator().batch([Example([Media("audio", f), Text(" seven", target=True)]) for f in files])
    loss = model.train().loss(batch)
    loss.backward()
    grads = [p.grad for p in model.input_modules()["audio"].encoder.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)
    assert model.generate([files[0], "A"], max_tokens=2) == model.generate([files[0].read_bytes(), "A"], max_tokens=2)
    magma.save(model, tmp_path / "saved")
    again = magma.load(tmp_path / "saved")
    assert torch.equal(again.logits([files[1], "A"]), model.eval().logits([files[1], "A"]))


def test_real_recordings_are_heard() -> None:
    folder = Path(os.environ.get("MAGMA_DATA", "../shared/data")) / "fsdd"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set MAGMA_DATA to the folder that holds the Free Spoken Digit Dataset")
    part = encoder(seconds=3.0)
    files = sorted(folder.glob("*_0.wav"))
    assert len(files) == 60
    prepared = [part.prepare(path) for path in files]
    assert all(abs(float(item.mean())) < 1e-4 and abs(float(item.std()) - 1) < 1e-3 for item in prepared)
    assert bool(part(part.stack(prepared)).values.isfinite().all())
    assert io.BytesIO(files[0].read_bytes()).getbuffer().nbytes > 1000
