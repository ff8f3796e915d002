"""Long recordings as windows: what each window contributes, and batches of different numbers of windows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from magma_audio.audio_windows import AudioWindows
from pydantic import ValidationError

import magma
from magma import Example, InputError, Magma, Media, PartError, Text

RATE = 8000
MEMBER: dict[str, Any] = {"use": "spectrogram", "rate": RATE, "seconds": 1.0, "bands": 16, "width": 16, "heads": 2}


def encoder(**fields: Any) -> Any:
    torch.manual_seed(0)
    return AudioWindows.build(**{"of": MEMBER, "window": 1.0, "max_windows": 4, "rate": RATE, **fields}).eval()


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (0.3 * draw.standard_normal(int(RATE * seconds))).astype(np.float32)


def features(part: Any, *recordings: np.ndarray) -> list[torch.Tensor]:
    with torch.no_grad():
        found = part(part.stack([part.prepare((one, RATE)) for one in recordings]))
    return [values[:length] for values, length in zip(found.values, found.lengths.tolist(), strict=True)]


def of_member(part: Any, recording: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = part.of(part.of.stack([part.of.prepare((recording, RATE))])).values[0]
    return values


def test_windows_without_overlap_follow_each_other() -> None:
    part, recording = encoder(), noise(2.5)
    (found,) = features(part, recording)
    expected = [of_member(part, recording[start : start + RATE]) for start in (0, RATE, 2 * RATE)]
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)
    assert part.num_features(part.prepare((recording, RATE))) == len(found)


def test_each_window_contributes_up_to_the_middle_of_the_overlap() -> None:
    part, recording = encoder(overlap=0.4), noise(2.2)  # windows begin at 0, 0.6 and 1.2 s
    (found,) = features(part, recording)
    windows = [of_member(part, recording[start : start + RATE]) for start in (0, 4800, 9600)]
    n = len(windows[0])
    cut = round(0.2 * n)
    assert torch.allclose(
        found, torch.cat([windows[0][: n - cut], windows[1][cut : n - cut], windows[2][cut:]]), atol=1e-5
    )
    per_second = len(windows[0]) / 1.0
    assert abs(len(found) - 2.2 * per_second) <= 2


def test_recordings_with_different_numbers_of_windows_in_a_batch() -> None:
    part = encoder(overlap=0.2)
    recordings = [noise(3.3, 1), noise(0.4, 2), noise(1.7, 3)]
    together = features(part, *recordings)
    for recording, found in zip(recordings, together, strict=True):
        assert torch.allclose(found, features(part, recording)[0], atol=1e-5)
    assert len(together[0]) <= part.length


def test_a_short_recording_is_one_window() -> None:
    part, recording = encoder(overlap=0.2), noise(0.7)
    assert torch.allclose(features(part, recording)[0], of_member(part, recording), atol=1e-5)


def test_a_pause_in_a_recording_is_read_and_a_silent_recording_is_not() -> None:
    part = encoder()
    recording = noise(3.0)
    recording[RATE : 2 * RATE] = 0
    (found,) = features(part, recording)
    assert found.isfinite().all()
    with pytest.raises(InputError, match="the recording is silent"):
        part.prepare((0 * recording, RATE))


def test_the_number_of_windows_is_bounded() -> None:
    part = encoder(overlap=0.5, max_windows=3)
    assert part.seconds == 2.0
    with pytest.raises(
        InputError, match=r'its duration is 2\.1 s; allowed: at most 2 s, or crop = "start" or "random"'
    ):
        part.prepare((noise(2.1), RATE))
    assert features(encoder(overlap=0.5, max_windows=3, crop="start"), noise(9.0))[0].shape == (part.length, part.dim)
    random_part = encoder(crop="random", max_windows=1)
    first, second = (random_part.prepare((noise(9.0), RATE), random.Random(seed))[0][0] for seed in (1, 2))
    assert not torch.equal(first, second)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PartError, match=r"window: the encoder spectrogram refuses 2 s: .*its duration is 2 s; allowed"):
        encoder(window=2.0)
    with pytest.raises(ValidationError, match=r"an `overlap` of at most half a window, 0\.5 s"):
        encoder(overlap=0.6)
    with pytest.raises(PartError, match='of: "clip" reads image; allowed: an encoder of audio'):
        encoder(of={"use": "clip", "layers": 1, "width": 16, "image_size": 32, "patch_size": 16, "head_width": 8})


def test_recordings_of_another_rate_and_whisper() -> None:
    member = {"use": "whisper", "seconds": 1, "bands": 16, "width": 16, "layers": 1, "heads": 2}
    part = encoder(of=member, rate=16_000, overlap=0.2)
    recording = noise(2.6)
    assert len(features(part, recording)[0]) == part.num_features(part.prepare((recording, RATE)))
    full = part.of.num_features(part.of.prepare((noise(1.0), RATE)))
    assert full == 50
    assert part.length == 4 * 50 - 3 * 10


@pytest.mark.parametrize(
    "prefix",
    [{"use": "stack", "factor": 3}, {"use": "resampler", "length": 4, "layers": 1, "heads": 2, "head_width": 8}],
    ids=lambda prefix: prefix["use"],
)
def test_a_language_model_reads_windows_through_prefixes_that_shorten(tmp_path: Path, prefix: dict[str, Any]) -> None:
    windows = {"use": "audio_windows", "of": MEMBER, "window": 1.0, "overlap": 0.2, "rate": RATE}
    recipe = {
        "name": "long recordings",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {"audio": {"encoder": windows, "prefix": prefix}},
    }
    model: Magma = magma.assemble(recipe)
    recordings = [(noise(0.5, 1), RATE), (noise(2.7, 2), RATE)]
    examples = [Example([Media("audio", one), Text(" seven", target=True)]) for one in recordings]
    model.train().loss(model.collator().batch(examples)).backward()
    trained = model.input_modules()["audio"]
    parameters = [*trained.prefix.parameters(), *trained.encoder.parameters()]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
    prompts = [[one, "A"] for one in recordings]
    model.eval()
    together = model.generate(prompts, max_tokens=3)
    assert together == [model.generate(prompt, max_tokens=3) for prompt in prompts]
    magma.save(model, tmp_path / "saved")
    assert torch.equal(magma.load(tmp_path / "saved").logits(prompts[1]), model.logits(prompts[1]))
