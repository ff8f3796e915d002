"""Audio towers of transformers: that library's preparation and hidden states, whatever else is in a batch."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from magma_audio.ast import Ast
from magma_audio.clap import Clap
from magma_audio.hf_encoder import HFAudioEncoder
from magma_audio.wav2vec2 import Wav2Vec2
from magma_audio.whisper import Whisper
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

import magma
from magma import Example, InputError, Media, PartError, Text

PARTS: list[type[HFAudioEncoder]] = [Whisper, Wav2Vec2, Ast, Clap]
every = pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
DRAW = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The library tells at length what it saves."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(before)


def noise(samples: int, loud: float = 0.3) -> np.ndarray:
    return (loud * DRAW.standard_normal(samples)).astype(np.float32)


def tower(part: type[HFAudioEncoder], **fields: Any) -> Any:
    torch.manual_seed(0)
    return part.build(**fields).eval()


def small(part: type[HFAudioEncoder], **fields: Any) -> Any:
    return tower(part, **{**part.check_config, **fields})


def heard(part: type[HFAudioEncoder], wave: np.ndarray, rate: int, **fields: Any) -> Tensor:
    """What the library's own feature extractor makes of a recording."""
    kind = part.transformers_classes()[2]
    found = kind(**fields)(wave, sampling_rate=rate, return_tensors="pt")
    values: Tensor = found["input_features" if "input_features" in found else "input_values"][0]
    return values


@cache
def on_meta(part: type[HFAudioEncoder]) -> Any:
    """Of the published sizes."""
    with torch.device("meta"):
        return part(part.Config())  # type: ignore[call-arg]


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
    with pytest.raises(InputError, match=r"a waveform: it lasts 2 s; allowed: at most [0-9.]+ s, or crop = "):
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


# What the tower makes of it

HEARING: dict[str, dict[str, Any]] = {
    "whisper": {"feature_size": 16, "chunk_length": 1},
    "wav2vec2": {},
    "ast": {"num_mel_bins": 32, "max_length": 64},
    "clap": {"max_length_s": 1, "truncation": "rand_trunc"},
}
"""Of the small whole models' feature extractors."""


def whole(kind: str) -> Any:
    """A small whole model of the library, of which the tower is a part."""
    import transformers as library

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(3)
    if kind.startswith("whisper"):
        encoder = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 40}
        decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "max_target_positions": 8}
        tokens = {
            "vocab_size": 50,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        }
        config = library.WhisperConfig(**encoder, **decoder, **tokens, num_mel_bins=16, max_source_positions=50)
        model = library.WhisperModel if kind == "whisper" else library.WhisperForConditionalGeneration
    elif kind.startswith("wav2vec2"):
        more = (
            {}
            if kind == "wav2vec2"
            else {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
        )
        config = library.Wav2Vec2Config(**sizes, hidden_size=32, conv_dim=[16] * 7, **more)
        model = library.Wav2Vec2Model if kind == "wav2vec2" else library.Wav2Vec2ForCTC
    elif kind == "ast":
        config = library.ASTConfig(**sizes, hidden_size=16, num_mel_bins=32, max_length=64)
        model = library.ASTForAudioClassification
    else:
        sound = {"patch_embeds_hidden_size": 8, "hidden_size": 32, "spec_size": 128, "depths": [1, 2, 1]}
        text = {**sizes, "hidden_size": 16, "vocab_size": 50, "projection_dim": 8}
        config = library.ClapConfig(audio_config={**sound, "num_attention_heads": [1, 2, 2]}, text_config=text)
        model = library.ClapModel
    made = model(config).eval()
    with torch.no_grad():  # what begins as zeros or ones would hide a mistake
        for p in made.parameters():
            p += 0.1 * torch.randn_like(p)
        for name, buffer in made.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += torch.rand_like(buffer)
    return made


def saved(kind: str, folder: Path) -> tuple[Any, Path]:
    model = whole(kind)
    model.save_pretrained(folder / kind)
    if kind == "clap":
        preprocessor(kind, folder / kind)  # its window is nowhere else
    return model, folder / kind


def preprocessor(kind: str, folder: Path) -> None:
    of(kind).transformers_classes()[2](**HEARING[kind]).save_pretrained(folder)


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


def of(kind: str) -> type[HFAudioEncoder]:
    return next(part for part in PARTS if kind.startswith(part.name))


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
        assert features.values.shape[1:] == (max(map(encoder.size, items)), expected.shape[1])
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
    with pytest.raises(InputError, match=rf"a waveform: it lasts 3 s; allowed: at most {plain.seconds:g} s, or crop"):
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


# Weights


@pytest.mark.parametrize(
    ("part", "fields", "length", "dim", "rate"),
    [
        (Whisper, {"d_model": 768, "encoder_layers": 12, "encoder_ffn_dim": 3072}, 1500, 768, 16000),
        (Wav2Vec2, {"mask_time_prob": 0.0}, 1499, 768, 16000),
        (Ast, {}, 1212, 768, 16000),
        (Clap, {}, 64, 768, 48000),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_the_published_sizes(
    part: type[HFAudioEncoder], fields: dict[str, Any], length: int, dim: int, rate: int
) -> None:
    encoder = on_meta(part)
    config, model, _ = part.transformers_classes()
    with torch.device("meta"):
        expected = model(config(**fields))
    assert {name: t.shape for name, t in encoder.tower.state_dict().items()} == {
        name: t.shape for name, t in expected.state_dict().items()
    }
    fixed = expected.embed_positions.weight.numel() if part is Whisper else 0
    assert sum(p.numel() for p in encoder.parameters()) + fixed == sum(p.numel() for p in expected.parameters())
    assert (encoder.length, encoder.dim, encoder.rate) == (length, dim, rate)
    assert all(p.is_meta for p in encoder.parameters())


def test_whispers_table_of_positions_is_not_trained_and_not_lost(tmp_path: Path) -> None:
    """In a checkpoint of a trained encoder it is the file's, which need not be the library's to the last digit."""
    model, folder = saved("whisper", tmp_path)
    table = {"encoder": {"use": "whisper", "weights": str(folder)}, "prefix": {"use": "linear"}}
    first = magma.assemble(
        {"name": "hearing", "lm": {"use": "gptj", "weights": "bundled:tiny"}, "inputs": {"audio": table}}
    )
    magma.save(first, tmp_path / "saved")
    again = magma.load(tmp_path / "saved")
    for found in (first, again):
        encoder: Any = found.input_modules()["audio"].encoder
        assert torch.equal(encoder.tower.embed_positions.weight, model.encoder.embed_positions.weight)
        assert not any("embed_positions" in name for name, _ in encoder.named_parameters())
    prompt = [(noise(4000), 16000), "A"]
    assert torch.equal(again.eval().logits(prompt), first.eval().logits(prompt))


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "ast", "clap"])
def test_weights_keep_the_files_precision(kind: str, tmp_path: Path) -> None:
    whole(kind).half().save_pretrained(tmp_path)
    preprocessor(kind, tmp_path)
    encoder = of(kind).build(weights=str(tmp_path))
    assert {p.dtype for p in encoder.parameters()} == {torch.float16}
    assert {p.dtype for p in encoder.to(torch.bfloat16).parameters()} == {torch.bfloat16}


def test_names_of_older_files_are_known(tmp_path: Path) -> None:
    """wav2vec2-base is stored with other names for its weight normalisation, and with torch's pickle."""
    model, folder = saved("wav2vec2", tmp_path)
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = model.state_dict()
    for new, name in old.items():
        state = {key.replace(new, name): value for key, value in state.items()}
    (folder / "model.safetensors").unlink()
    torch.save({f"wav2vec2.{key}": value for key, value in state.items()}, folder / "pytorch_model.bin")
    assert Wav2Vec2.problems(Wav2Vec2.Config(weights=str(folder))) == []
    found = Wav2Vec2.build(weights=str(folder)).tower.state_dict()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.items())


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return self.path.touch, ()


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = saved("wav2vec2", tmp_path)[1]
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Bomb(tmp_path / "exploded")}))
    with pytest.raises(PartError, match=r"wav2vec2\.weights: given .*which cannot be read"):
        Wav2Vec2.build(weights=str(folder))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["whisper for text", "wav2vec2", "ast", "clap"])
def test_tensors_that_do_not_fit_are_named(kind: str, tmp_path: Path) -> None:
    folder = saved(kind, tmp_path)[1]
    state = load_file(folder / "model.safetensors")
    mine = [n for n in sorted(state) if not n.startswith(("model.decoder", "text_", "classifier", "masked"))]
    gone, bent = [n for n in mine if n.endswith("bias")][:2]
    del state[gone]
    state[bent] = torch.zeros(3, 3, 3)
    stray = gone.replace("bias", "stray")
    state[stray] = torch.zeros(1)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PartError) as error:
        of(kind).build(weights=str(folder))
    lines = str(error.value).splitlines()
    assert f"{kind.split()[0]}.weights: {folder}: 3 tensors do not fit the tower:" in lines[0]
    assert len(lines) == 4
    assert any(line.endswith("is missing") for line in lines)
    assert any("is [3, 3, 3], the tower's is [" in line for line in lines)
    assert any(line.endswith("stray is not part of it") for line in lines)


@every
def test_a_folder_that_does_not_do_is_explained(part: type[HFAudioEncoder], tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert part.problems(part.Config(weights=gone)) == [f"weights: given {gone!r}, which is no folder"]
    with pytest.raises(
        PartError, match=rf"{part.name}\.weights: given '{gone}', which is no folder\. Allowed: a hub name"
    ):
        part.build(weights=gone)
    empty = tmp_path
    assert part.problems(part.Config(weights=str(empty))) == [
        f"weights: {empty} has no config.json",
        f"weights: {empty} has no *.safetensors or pytorch_model*.bin",
    ]
    (empty / "config.json").write_text("{ no")
    with pytest.raises(
        PartError, match=rf"{part.name}\.weights: given '{empty}', which cannot be read: .*valid JSON.*[^.]\. Allowed: "
    ):
        part.build(weights=str(empty))
    (empty / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        PartError, match=rf'{part.name}\.weights: .* holds a model of type "bert"; allowed: "{part.model_types[0]}"'
    ):
        part.build(weights=str(empty))
    (empty / "config.json").write_text(json.dumps({"model_type": part.model_types[-1]}))
    with pytest.raises(PartError, match=rf"{part.name}\.weights: .* has no \*\.safetensors or pytorch_model"):
        part.build(weights=str(empty))


@every
def test_a_hub_name_that_cannot_be_had_is_told_and_sizes_stand_in(
    part: type[HFAudioEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magma.hub.ask_hub", lambda name: f"no {name}")
    config = part.Config(weights="no/such", **part.check_config)
    (problem,) = part.problems(config)
    assert problem.startswith("weights: no/such is not in the cache, and the hub says: no no/such. Where")
    encoder = part(config)  # type: ignore[call-arg]
    assert encoder.dim == small(part).dim
    with pytest.raises(PartError, match=rf"{part.name}\.weights: no/such is not in .* too\. Allowed: a hub name"):
        encoder.load_weights()


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "ast", "clap"])
def test_a_hub_name_in_the_cache_is_read_from_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(kind, tmp_path)[1]
    preprocessor(kind, folder)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, file: str(folder / file))
    monkeypatch.setattr("magma.hub.ask_hub", lambda _: pytest.fail("the hub was asked"))
    encoder = of(kind).build(weights="some/name")
    again = of(kind).build(weights=str(folder))
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in encoder.state_dict().items())


def test_sizes_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"whisper: no tower of these sizes can be built: .*divisible by num_heads"):
        small(Whisper, heads=3)
    with pytest.raises(PartError, match=r"wav2vec2: no tower of these sizes can be built"):
        small(Wav2Vec2, width=33)
    with pytest.raises(ValueError, match="`layers` and `heads` of as many stages"):
        Clap.Config(layers=[1, 1], heads=[1])
    folder = saved("clap", tmp_path)[1]
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["enable_fusion"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PartError, match=r"clap\.weights: .* holds a fused model; allowed: an unfused one"):
        Clap(Clap.Config(weights=str(folder)))


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

    monkeypatch.setattr("magma.hub.ask_hub", lambda name: f"no {name}")
    table = {"encoder": {"use": part.name, "weights": "no/such", **part.check_config}, "prefix": {"use": "linear"}}
    lm = {"use": "gptj", "weights": "bundled:tiny"}
    found = plan(Recipe.load({"name": "hearing", "lm": lm, "inputs": {"audio": table}}))
    assert found.inputs["audio"].features == small(part).length
    assert found.flops_per_sample is not None
