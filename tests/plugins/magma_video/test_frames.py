"""The encoder `frames`: features of the image encoder frame by frame, positions in time, recipes and checkpoints."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from magma_video.frames import Frames
from PIL import Image
from safetensors.torch import load_file
from video_files import decoded, frame, write

import magma
from magma import InputError, PartError, Recipe
from magma.manifest import find_checkpoint
from magma.plan import plan
from magma.training.train import train

OF = {"use": "clip", "layers": 1, "width": 16, "image_size": 32, "patch_size": 16, "head_width": 8}
"""4 features of 32 x 32 pixels."""


@pytest.fixture(scope="module")
def frames() -> Frames:
    torch.manual_seed(0)
    return Frames.build(of=OF, frames=4).eval()


def pixels(count: int) -> np.ndarray:
    return np.stack([frame(3 * i) for i in range(count)])


def test_features_are_those_of_the_image_encoder_frame_by_frame(frames: Frames, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", count=10)
    videos = [path, pixels(2), path.read_bytes()]
    items = [frames.prepare(video) for video in videos]
    assert [frames.num_features(item) for item in items] == [16, 8, 16]
    assert (frames.length, frames.dim, frames.modality) == (16, 16, "video")
    found = frames(frames.stack(items))
    assert found.lengths is not None
    assert found.lengths.tolist() == [16, 8, 16]
    chosen = [decoded(path)[i] for i in (0, 3, 6, 9)]
    for i, images in enumerate([chosen, list(pixels(2)), chosen]):
        batch = torch.stack([frames.of.prepare(Image.fromarray(one)) for one in images])
        expected = frames.of(batch).values.flatten(0, 1)
        torch.testing.assert_close(found.values[i, : len(expected)], expected)


def test_each_position_in_time_has_its_vector() -> None:
    module = Frames.build(of=OF, frames=3).eval()
    still = [Image.fromarray(frame(0))] * 3
    batch = module.stack([module.prepare(still), module.prepare(still[:2])])
    before = module(batch).values.unflatten(1, (3, 4))
    assert torch.equal(before[0, 0], before[0, 1])
    assert module.time is not None
    with torch.no_grad():
        module.time.copy_(torch.arange(3)[:, None].expand(3, 16))
    after = module(batch).values.unflatten(1, (3, 4))
    torch.testing.assert_close(after[0] - before[0], torch.arange(3.0)[:, None, None].expand(3, 4, 16))
    torch.testing.assert_close(after[1, :2] - before[1, :2], torch.arange(2.0)[:, None, None].expand(2, 4, 16))
    assert Frames.build(of=OF, frames=3, positions="none").state_dict().keys() == {
        name for name in module.state_dict() if name != "time"
    }


def test_joined_channels_have_the_features_of_all_frames_at_one_place(frames: Frames) -> None:
    module = Frames(Frames.Config(of=OF, frames=4, join="channels")).eval()  # type: ignore[arg-type]  # a table
    module.load_all_weights()
    module.load_state_dict(frames.state_dict())
    assert (module.dim, module.length) == (64, 4)
    videos = [pixels(5), pixels(2)]
    items = [module.prepare(video) for video in videos]
    assert [module.num_features(item) for item in items] == [4, 4]
    found = module(module.stack(items)).values.unflatten(2, (4, 16))
    for i, count in enumerate((4, 2)):
        one_after_another = frames(frames.stack([items[i]])).values[0].unflatten(0, (count, 4))
        torch.testing.assert_close(found[i, :, :count], one_after_another.transpose(0, 1))
    assert (found[1, :, 2:] == 0).all()
    tiled = Frames(Frames.Config(of={"use": "tiles", "of": OF, "tiles": 2}, frames=2, join="channels"))  # type: ignore[arg-type]  # a table
    with pytest.raises(InputError, match='features; allowed with join = "channels": equal numbers'):
        tiled.prepare([Image.new("RGB", (64, 32)), Image.new("RGB", (32, 32))])


def test_all_frames_are_augmented_in_the_same_way() -> None:
    module = Frames(Frames.Config(of={**OF, "augmentation": {"flip": 0.5, "brightness": 0.5}}, frames=3))  # type: ignore[arg-type]  # a table
    still = [Image.fromarray(frame(5))] * 3
    items = module.prepare(still, random.Random(1))
    assert torch.equal(items[0], items[2])
    assert not torch.equal(items[0], module.prepare(still)[0])


def test_frames_may_have_tiles_of_several_numbers() -> None:
    module = Frames.build(of={"use": "tiles", "of": OF, "tiles": 2}, frames=2).eval()
    wide, square = Image.fromarray(frame(1)).resize((64, 32)), Image.fromarray(frame(1)).resize((32, 32))
    items = [module.prepare([wide, square]), module.prepare([square, square]), module.prepare([wide])]
    assert [module.num_features(item) for item in items] == [16, 8, 12]
    together = module(module.stack(items))
    for i, item in enumerate(items):
        single = module(module.stack([item])).values[0]
        n = module.num_features(item)
        torch.testing.assert_close(together.values[i, :n], single[:n])


@pytest.mark.parametrize(
    ("config", "raw", "message"),
    [
        ({"per_second": 1.0}, pixels(3), "a video: its frames per second are unknown, which per_second needs"),
        ({}, (pixels(3), 0), "given 0 frames per second"),
        ({}, pixels(3)[0], r"given a ndarray \[48, 64, 3\] of uint8; allowed: a video file"),
        ({}, Path("none.mp4"), "none.mp4: no such file"),
    ],
)
def test_what_cannot_be_read(config: dict[str, Any], raw: Any, message: str) -> None:
    module = Frames(Frames.Config(of=OF, **config))  # type: ignore[arg-type]  # a table
    with pytest.raises(InputError, match=message):
        module.prepare(raw)


def test_a_damaged_frame_of_a_folder_is_named(frames: Frames, tmp_path: Path) -> None:
    Image.fromarray(frame(0)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_text("no image")
    with pytest.raises(InputError, match="1.png cannot be read as an image"):
        frames.prepare(tmp_path)


def test_only_encoders_of_images() -> None:
    with pytest.raises(PartError, match="which reads audio; allowed: an encoder of images"):
        Frames.build(of={"use": "spectrogram", "rate": 8000, "seconds": 0.6, "bands": 16, "width": 16, "heads": 2})


def recipe(folder: Path, **encoder: Any) -> Recipe:
    source = {"use": "captions", "path": str(folder), "input": "video"}
    return Recipe.load(
        {
            "name": "clips",
            "lm": {"use": "gptj", "weights": "bundled:tiny"},
            "inputs": {
                "video": {
                    "encoder": {"use": "frames", "frames": 3, "of": {**OF, "trainable": False}, **encoder},
                    "prefix": {"use": "linear"},
                }
            },
            "data": {"train": [source]},
            "train": {"steps": 2, "batch_size": 2, "lr": 1e-2, "precision": "fp32", "packing": 64, "workers": 0},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


def clips(folder: Path) -> Path:
    """Rows about a video file, a folder of frames and an animation."""
    write(folder / "a.mp4", count=6)
    (folder / "b").mkdir()
    for i in range(2):
        Image.fromarray(frame(9 * i)).save(folder / "b" / f"{i}.jpg")
    first, *others = (Image.fromarray(one) for one in pixels(5))
    first.save(folder / "c.gif", save_all=True, append_images=others)
    rows = [{"video": name, "caption": f"a clip of {name[0]}"} for name in ("a.mp4", "b", "c.gif")]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_positions_in_time_are_trained_beside_a_frozen_encoder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    made = recipe(clips(tmp_path / "data"))
    shown = plan(made)
    train(made, tmp_path / "run")
    checkpoint = find_checkpoint(tmp_path / "run")
    trained = load_file(checkpoint / "trained.safetensors")
    names = [name for name in trained if name.startswith("inputs.video.encoder")]
    assert names == ["inputs.video.encoder.time"]
    assert trained[names[0]].abs().sum() > 0
    assert shown is not None
    model = magma.load(tmp_path / "run")
    module = model.input_modules()["video"].encoder
    assert isinstance(module, Frames)
    assert module.of.frozen
    assert not module.frozen
    assert torch.equal(module.time, trained[names[0]])
    answers = [model.generate([raw, "It is"], max_tokens=3) for raw in (tmp_path / "data/a.mp4", tmp_path / "data/b")]
    assert all(isinstance(answer, str) for answer in answers)


def test_rows_of_files_and_of_shards_give_the_same_videos(tmp_path: Path) -> None:
    from magma_data.sources.captions import Captions

    folder = clips(tmp_path)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in ("a.mp4", "c.gif"):
            for file, content in ((name, (folder / name).read_bytes()), (f"{name[0]}.txt", b"a clip")):
                member = tarfile.TarInfo(file)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    module = Frames(Frames.Config(of=OF, frames=3))  # type: ignore[arg-type]  # a table
    found = {}
    for path in (folder / "train.jsonl", tmp_path / "shard.tar"):
        source = Captions(Captions.Config(path=str(path), input="video", shuffle=False), 0)
        media = [example.segments[0] for example, _ in source.iterate()]
        found[path.suffix] = [module.prepare(one.value) for one in media if isinstance(one, magma.Media)]
        assert not any(one.value is None for one in media if isinstance(one, magma.Media))
    (a, b, c), (from_shard, gif) = found[".jsonl"], found[".tar"]
    assert len(b) == 2
    for one, other in ((a, from_shard), (c, gif)):
        assert all(map(torch.equal, one, other))
