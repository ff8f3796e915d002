"""Audio towers of transformers: that library's preparation and hidden states, whatever else is in a batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_audio import HEARING, PARTS, every, noise, of, on_meta, saved, small
from magma_audio.ast import Ast
from magma_audio.clap import Clap
from magma_audio.hf_encoder import HFAudioEncoder
from magma_audio.wav2vec2 import Wav2Vec2
from magma_audio.whisper import Whisper
from torch import Tensor

import magma
from magma import Example, InputError, Media, PartError, Text


def heard(part: type[HFAudioEncoder], wave: np.ndarray, rate: int, **fields: Any) -> Tensor:
    """What the library's own feature extractor makes of a recording."""
    kind = part.transformers_classes()[2]
    found = kind(**fields)(wave, sampling_rate=rate, return_tensors="pt")
    values: Tensor = found["input_features" if "input_features" in found else "input_values"][0]
    return values


# What a recording becomes


@pytest.mark.parametrize(
    ("samples", "loud"),
    [(1, 1.0), (160, 0.3), (161, 1e-4), (16001, 0.3), (479_400, 0.3), (479_900, 0.3), (480_000, 1e-4)],
)
def test_whisper_features_match_transformers(samples: int, loud: float) -> None:
    """What is left out is the last frame that is there, over and over."""
    encoder = on_meta(Whisper)
    wave = noise(samples, loud)
    item, expected = encoder.prepare((wave, 16000)), heard(Whisper, wave, 16000).T
    assert torch.equal(item, expected[: len(item)])
    assert bool((expected[len(item) :] == item[-1]).all())
    assert len(item) == min(3000, -(-samples // 160) + 3)
    assert encoder.num_features(item) == (1500 if len(item) == 3000 else -(-samples // 320))


@pytest.mark.parametrize("samples", [400, 401, 16000, 48123])
def test_wav2vec2_features_match_transformers(samples: int) -> None:
    wave = noise(samples) + 0.1
    assert torch.equal(on_meta(Wav2Vec2).prepare((wave, 16000)), heard(Wav2Vec2, wave, 16000))


@pytest.mark.parametrize("samples", [400, 559, 560, 16000, 163_000, 164_080])
def test_ast_features_match_transformers(samples: int) -> None:
    """What is left out is the library's padding."""
    encoder = on_meta(Ast)
    wave = noise(samples)
    item, expected = encoder.prepare((wave, 16000)), heard(Ast, wave, 16000)
    assert torch.equal(item, expected[: len(item)])
    assert bool((expected[len(item) :] == expected[-1, 0]).all())
    assert len(item) == 1 + (samples - 400) // 160


@pytest.mark.parametrize("samples", [1, 48000, 313_131, 480_000])
def test_clap_features_match_transformers(samples: int) -> None:
    wave = noise(samples)
    item = on_meta(Clap).prepare((wave, 48000))
    assert torch.equal(item, heard(Clap, wave, 48000, truncation="rand_trunc")[0].float())
    assert item.shape == (1001, 64)


@every
def test_other_rates_and_channels_are_brought_to_the_towers_own(part: type[HFAudioEncoder]) -> None:
    from torchaudio.functional import resample

    encoder = small(part)
    wave = noise(5000)
    both = np.stack([wave, np.zeros_like(wave)])
    expected = resample(torch.from_numpy(wave / 2), 11025, encoder.rate)
    assert torch.allclose(encoder.prepare((both, 11025)), encoder.prepare((expected, encoder.rate)), atol=1e-5)


@every
def test_too_long_is_said_and_a_sample_is_enough(part: type[HFAudioEncoder]) -> None:
    encoder = small(part)
    with pytest.raises(InputError, match=r"a waveform: its duration is 2 s; allowed: at most [0-9.]+ s, or crop = "):
        encoder.prepare((noise(16000), 8000))
    item = encoder.prepare((np.ones(1, np.float32), 16000))
    assert encoder(item[None]).values.shape == (1, encoder.num_features(item), encoder.dim)
    assert bool(encoder(item[None]).values.isfinite().all())


def test_a_preprocessor_beside_the_weights_decides(tmp_path: Path) -> None:
    folder = saved("ast", tmp_path)[1]
    Ast.transformers_classes()[2](**HEARING["ast"], mean=-1.0, std=2.0).save_pretrained(folder)
    wave = noise(8000)
    item = Ast(Ast.Config(weights=str(folder))).prepare((wave, 16000))
    expected = heard(Ast, wave, 16000, **HEARING["ast"], mean=-1.0, std=2.0)
    assert torch.equal(item, expected[: len(item)])
    (folder / "preprocessor_config.json").write_text("{ no")
    with pytest.raises(PartError, match=r"ast\.weights: given .*which cannot be read"):
        Ast(Ast.Config(weights=str(folder)))


def original(kind: str, model: Any, wave: np.ndarray) -> Tensor:
    """The library's hidden states [n, e] of a recording at the tower's rate, padded as it pads."""
    with torch.no_grad():
        if kind.startswith("whisper"):
            x = heard(Whisper, wave, 16000, **HEARING["whisper"])
            found = model.get_encoder()(x[None])
        elif kind.startswith("wav2vec2"):
            base = model if kind == "wav2vec2" else model.wav2vec2
            found = base(heard(Wav2Vec2, wave, 16000)[None])
        elif kind == "ast":
            x = heard(Ast, wave, 16000, **HEARING["ast"])
            patches = model.audio_spectrogram_transformer(x[None]).last_hidden_state[0, 2:]
            return torch.stack([patches[row * 5 + moment] for moment in range(5) for row in range(2)])
        else:
            x = heard(Clap, wave, 48000, **HEARING["clap"])
            grid = model.audio_model(x[None].float()).last_hidden_state[0]
            return torch.stack(
                [grid[:, row, column] for row in range(grid.shape[1]) for column in range(grid.shape[2])]
            )
    values: Tensor = found.last_hidden_state[0]
    return values


KINDS = ["whisper", "whisper for text", "wav2vec2", "wav2vec2 layer norm", "ast", "clap"]


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_the_whole_models_and_padding_changes_nothing(kind: str, tmp_path: Path) -> None:
    model, folder = saved(kind, tmp_path)
    encoder = of(kind).build(weights=str(folder)).eval()
    waves = [noise(int(encoder.rate * seconds)) for seconds in (0.1, 0.6, 0.31)]
    items = [encoder.prepare((wave, encoder.rate)) for wave in waves]
    with torch.no_grad():
        features = encoder(encoder.stack(items))
    for row, (wave, item) in enumerate(zip(waves, items, strict=True)):
        expected = original(kind, model, wave)
        n = encoder.num_features(item)
        assert features.lengths is None or int(features.lengths[row]) == n
        assert features.values.shape[1:] == (max(map(encoder.num_features, items)), expected.shape[1])
        assert n == len(expected) or kind.startswith(("whisper", "ast"))
        assert float((features.values[row, :n] - expected[:n]).abs().max()) <= 1e-5
        with torch.no_grad():
            alone = encoder(encoder.stack([item])).values[0]
        assert float((features.values[row, :n] - alone[:n]).abs().max()) <= 1e-5


def test_a_short_recording_has_few_features() -> None:
    """A second of sound does not fill the language model with half a minute of silence."""
    sizes = {}
    for part in PARTS:
        encoder = on_meta(part)
        sizes[part.name] = encoder.num_features(encoder.prepare((noise(encoder.rate), encoder.rate)))
    assert sizes == {"whisper": 50, "wav2vec2": 49, "ast": 12 * 10, "clap": 64}


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2 layer norm"])
def test_gradients_of_a_recording_know_no_padding(kind: str, tmp_path: Path) -> None:
    encoder = Wav2Vec2.build(weights=str(saved(kind, tmp_path)[1])).eval()
    item, longer = (encoder.prepare((noise(samples), 16000)) for samples in (2000, 9000))
    n = encoder.num_features(item)
    found = []
    for batch in ([item], [item, longer]):
        encoder.zero_grad()
        encoder(encoder.stack(batch)).values[0, :n].square().mean().backward()
        found.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert len(found[0]) == len(list(encoder.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*found, strict=True))


@every
def test_every_step_runs_the_same_modules_in_training(part: type[HFAudioEncoder]) -> None:
    encoder = small(part).train()
    x = encoder.stack([encoder.prepare((noise(4000), 16000)) for _ in range(2)])
    for _ in range(4):
        encoder.zero_grad()
        encoder(x).values.square().mean().backward()
        assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


@every
def test_towers_accept_crop_and_refuse_what_every_audio_encoder_does(part: type[HFAudioEncoder]) -> None:
    plain, cropping = small(part), small(part, crop="random")
    long = noise(24_000)
    with pytest.raises(
        InputError, match=rf"a waveform: its duration is 3 s; allowed: at most {plain.seconds:g} s, or crop"
    ):
        plain.prepare((long, 8000), random.Random(0))
    first = plain.prepare((long[: plain.max_samples(8000)], 8000))
    assert torch.equal(cropping.prepare((long, 8000)), first)
    drawn = cropping.prepare((long, 8000), random.Random(0))
    start = random.Random(0).randint(0, 24_000 - plain.max_samples(8000))
    assert torch.equal(drawn, plain.prepare((long[start:][: plain.max_samples(8000)], 8000)))
    assert not torch.equal(drawn, first)
    assert cropping.num_features(drawn) == cropping.length
    for bad in ((long[:0], 8000), (long, float("nan")), (np.stack([long, -long]), 8000), (long * np.nan, 8000)):
        with pytest.raises(InputError, match="^a waveform: "):
            cropping.prepare(bad)
    backwards = plain.prepare((long[3999::-1].copy(), 8000))
    for form in (long[3999::-1], long[3999::-1].astype(">f4")):
        assert torch.equal(plain.prepare((form, 8000)), backwards)


# In a model


@pytest.mark.parametrize("trainable", [False, True])
@every
def test_a_language_model_learns_from_a_tower(part: type[HFAudioEncoder], trainable: bool) -> None:
    table = {"encoder": {"use": part.name, **part.check_config}, "prefix": {"use": "linear"}, "trainable": trainable}
    recipe = {"name": "hearing", "lm": {"use": "gptj", "weights": "bundled:tiny"}, "inputs": {"audio": table}}
    model = magma.assemble(recipe)
    waves = [(noise(samples), 8000) for samples in (800, 2000)]
    examples = [Example([Media("audio", w), Text(t, target=True)]) for w, t in zip(waves, (" a", " b"), strict=True)]
    batch = model.collator().batch(examples)
    encoder = model.input_modules()["audio"].encoder
    before = {name: t.clone() for name, t in model.frozen_tensors().items()}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model.train().loss(batch)
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learning)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert any(p.requires_grad for p in encoder.parameters()) is trainable
    assert all(torch.equal(t, before[name]) for name, t in model.frozen_tensors().items())
    assert isinstance(model.generate([waves[0], "A"], max_tokens=1), str)


@every
def test_a_tower_is_planned_without_its_weights(part: type[HFAudioEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    from magma.plan import plan
    from magma.recipe.recipe import Recipe

    monkeypatch.setattr("magma.hub.ask_hub", lambda name, _: f"no {name}")
    table = {"encoder": {"use": part.name, "weights": "no/such", **part.check_config}, "prefix": {"use": "linear"}}
    lm = {"use": "gptj", "weights": "bundled:tiny"}
    found = plan(Recipe.load({"name": "hearing", "lm": lm, "inputs": {"audio": table}}))
    assert found.inputs["audio"].features == small(part).length
    assert found.flops_per_sample is not None
