"""Frames of videos: the right ones, as a plain decoder gives them, and clear errors for files that cannot be read."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from magma_video import container
from magma_video.clip import looks_like_video, open_clip
from magma_video.timeline import Timeline, evenly_spaced
from PIL import Image
from video_files import decoded, frame, write

from magma import InputError

B_FRAMES = {"g": "12", "bf": "3"}
FILES: dict[str, dict[str, Any]] = {
    "a.mp4": {"options": B_FRAMES},
    "a.mov": {"options": B_FRAMES, "container": {"movflags": "faststart"}},
    "a.mkv": {"options": B_FRAMES},
    "a.ts": {"options": B_FRAMES},
    "a.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "20"}},
    "b.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "20"}},
    "a.avi": {"options": {"bf": "2"}},
    "b.avi": {"codec": "mpeg4", "options": B_FRAMES},
    "c.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "a.mpg": {"codec": "mpeg2video", "options": {"g": "10", "bf": "2"}},
    "a.h264": {"options": B_FRAMES},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:bframes=3:open-gop=1:log-level=error"}},
    "open.mp4": {"options": {**B_FRAMES, "x264-params": "open-gop=1"}},
    "uneven.mkv": {"options": {"g": "9"}, "times": [3 * i * i for i in range(60)]},
    "uneven.mp4": {"options": {"g": "9"}, "times": [3 * i * i for i in range(60)]},
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_chosen_frames_are_those_of_a_decoder_that_reads_everything(name: str, as_bytes: bool, tmp_path: Path) -> None:
    path = write(tmp_path / name, **FILES[name])
    all_frames = decoded(path)
    clip = open_clip(path.read_bytes() if as_bytes else path)
    assert len(clip.timeline.times) == len(all_frames) == 60
    for indices in ([0, 7, 8, 30, 59], [13], [58, 59], list(range(60))):
        for i, image in zip(indices, clip.read(indices), strict=True):
            assert np.array_equal(np.asarray(image), all_frames[i]), i


def test_packets_between_the_chosen_frames_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", count=120, options={"g": "10"})
    clip = open_clip(path)
    count = 0
    original = container._Decoder._decode

    def counted(self: Any) -> Any:
        nonlocal count
        for one in original(self):
            count += 1
            yield one

    monkeypatch.setattr(container._Decoder, "_decode", counted)
    list(clip.read([0, 61, 119]))
    assert count < 30


def test_times_decide_and_not_the_numbers_of_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", count=20, times=[*range(0, 400, 40), *range(1000, 11_000, 1000)])
    timeline = open_clip(path).timeline
    assert timeline.choose(11) == [0, *range(10, 20)]
    assert timeline.choose(30, per_second=1) == [0, *range(10, 20)]
    assert timeline.choose(1000, per_second=25) == list(range(20))


@pytest.mark.parametrize("n", [1, 2, 7, 60, 1001])
@pytest.mark.parametrize("count", [1, 2, 8, 16])
def test_evenly_spaced_frames_are_those_of_linspace(n: int, count: int) -> None:
    found = evenly_spaced(n, 25).choose(count)
    expected = np.floor(np.arange(count) * (n - 1) / (count - 1) + 1e-9) if count > 1 else [(n - 1) // 2]
    assert found == sorted({int(i) for i in expected})


@pytest.mark.parametrize(("rate", "per_second"), [(25, 5), (30, 1), (29.97, 2), (24, 0.7), (10, 30)])
def test_frames_per_second(rate: float, per_second: float) -> None:
    n = 300
    found = evenly_spaced(n, rate).choose(1000, per_second)
    moments = np.arange(0, n / rate - 1e-9, 1 / per_second)
    assert found == sorted({int(np.floor(moment * rate + 1e-9)) for moment in moments})


def test_too_many_per_second_are_spread_over_the_video() -> None:
    timeline = evenly_spaced(300, 25)
    assert timeline.choose(8, 25) == timeline.choose(8) == [0, 42, 85, 128, 170, 213, 256, 299]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotated_files_are_shown_upright(rotation: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", count=3, rotation=rotation)
    (shown,) = open_clip(path).read([1])
    stored = Image.fromarray(decoded(path)[1])
    assert np.array_equal(np.asarray(shown), np.asarray(stored.rotate(rotation, expand=True)))
    with av.open(path) as file:
        assert next(file.decode(video=0)).rotation % 360 == rotation


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(frame(5 * i)) for i in range(count)]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng", "b.png"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_animated_images(name: str, as_bytes: bool, tmp_path: Path) -> None:
    first, *others = pictures(6)
    options: Any = {"lossless": True} if name.endswith("webp") else {}
    kind = "PNG" if "png" in name else None
    durations = [50, 100, 150, 200, 250, 300]
    first.save(
        tmp_path / name, kind, save_all=True, append_images=others, duration=durations, disposal=1, **options
    ) if kind else first.save(tmp_path / name, save_all=True, append_images=others, duration=durations, **options)
    raw = (tmp_path / name).read_bytes() if as_bytes else tmp_path / name
    assert looks_like_video(raw) is (as_bytes or name != "b.png")
    clip = open_clip(raw)
    assert (list(clip.timeline.times), clip.timeline.end) == ([0, 50, 150, 300, 500, 750], 1050)
    for i, image in zip([0, 2, 5], clip.read([0, 2, 5]), strict=True):
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frame(5 * i)).max() < 30


def test_a_folder_of_frames_in_natural_order(tmp_path: Path) -> None:
    for i, picture in enumerate(pictures(12)):
        picture.save(tmp_path / f"frame {i}.png")
    (tmp_path / ".hidden.png").write_text("")
    (tmp_path / "notes.txt").write_text("")
    clip = open_clip(tmp_path)
    assert [path.name for path in clip.read(range(12))] == [f"frame {i}.png" for i in range(12)]
    assert not clip.timeline.has_seconds
    assert open_clip(tmp_path, 4).timeline.choose(99, 1) == [0, 4, 8]


def test_a_still_image_has_one_frame(tmp_path: Path) -> None:
    pictures(1)[0].save(tmp_path / "a.png")
    assert open_clip(tmp_path / "a.png").timeline.choose(8) == [0]
    assert not looks_like_video(tmp_path / "a.png")


CUTS = {"a.mp4": 0.5, "a.mov": 0.5, "a.mkv": 0.6, "a.webm": 0.6, "b.webm": 0.5, "b.avi": 0.88, "c.avi": 0.7}


@pytest.mark.parametrize("name", CUTS)
def test_truncated_files_are_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, **FILES[name])
    raw = path.read_bytes()
    path.write_bytes(raw[: int(CUTS[name] * len(raw))])
    with pytest.raises(InputError, match=f"{name}.*(truncated|cannot be read)"):
        open_clip(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.ts"])
def test_damaged_files_give_frames_or_a_clear_error(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, **FILES[name])
    raw = path.read_bytes()
    draw = np.random.default_rng(0)
    messages = []
    for _ in range(30):
        damaged = bytearray(raw)
        start = int(draw.integers(len(raw)))
        damaged[start : start + 40] = draw.integers(
            256, size=len(damaged[start : start + 40]), dtype=np.uint8
        ).tobytes()
        path.write_bytes(damaged)
        try:
            clip = open_clip(path)
            list(clip.read(clip.timeline.choose(8)))
        except InputError as error:
            messages.append(str(error))
    assert messages
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no video", "cannot be read as a video"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://x/a.ts\n", ""),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=f"a.mp4.*{message}"):
        open_clip(tmp_path / "a.mp4")


def test_a_recording_without_video_is_refused(tmp_path: Path) -> None:
    with av.open(tmp_path / "a.mp4", "w") as file:
        stream = file.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        file.mux([*stream.encode(sound), *stream.encode(None)])
    with pytest.raises(InputError, match="a.mp4: it has no video stream"):
        open_clip(tmp_path / "a.mp4")


def test_without_pyav_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", count=2)
    monkeypatch.setattr(container, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"a.mp4: .*PyAV.* pip install 'magma-multimodal\[video\]'"):
        open_clip(path)


MEASURE = """
import resource, sys
from magma_video.container import open_file
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
clip = open_file("a video", __import__("pathlib").Path(sys.argv[1]))
next(clip.read([0]))
before = peak()
for image in clip.read(clip.timeline.choose(100)):
    pass
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", count=120, size=(480, 640), options={"preset": "ultrafast", "g": "25"})
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40  # MiB; the 100 frames have 88


def test_times_that_repeat_and_a_single_frame() -> None:
    assert Timeline([5], 6, Fraction(1, 25)).choose(8) == [0]
    assert Timeline([5], 6, Fraction(1, 25)).choose(8, 1.0) == [0]


@pytest.mark.parametrize(
    "raw",
    [
        Path("a.MP4"),
        Path("a.gif"),
        b"\0\0\0\x20ftypisom",
        b"\x1aE\xdf\xa3...",
        b"RIFF....AVI LIST",
        np.zeros((2, 4, 4, 3), np.uint8),
        (np.zeros((2, 4, 4, 3), np.uint8), 25),
        [Image.new("RGB", (4, 4))],
    ],
    ids=lambda raw: raw if isinstance(raw, str) else type(raw).__name__,
)
def test_what_looks_like_a_video(raw: Any) -> None:
    assert looks_like_video(raw)


@pytest.mark.parametrize(
    "raw",
    [
        *(
            Path("a.png"),
            Path("a.wav"),
            b"\0\0\0\x20ftypM4A ",
            b"RIFF....WAVE",
            b"RIFF....WEBPVP8 ",
            "a.mp4",
            None,
            [],
            (),
        ),
        *(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3)), (np.zeros(800, np.float32), 8000), [1]),
    ],
    ids=lambda raw: raw if isinstance(raw, str) else type(raw).__name__,
)
def test_what_does_not(raw: Any) -> None:
    assert not looks_like_video(raw)
