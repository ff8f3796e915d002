"""Weights of the audio encoders of transformers: what is read, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_audio import every, noise, of, on_meta, preprocessor, saved, small, whole
from magma_audio.ast import Ast
from magma_audio.clap import Clap
from magma_audio.hf_encoder import HFAudioEncoder
from magma_audio.wav2vec2 import Wav2Vec2
from magma_audio.whisper import Whisper
from safetensors.torch import load_file, save_file

import magma
from magma import PartError

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
    assert f"{kind.split()[0]}.weights: {folder}: 3 tensors do not fit the encoder:" in lines[0]
    assert len(lines) == 4
    assert any(line.endswith("is missing") for line in lines)
    assert any("has the shape [3, 3, 3], in the encoder [" in line for line in lines)
    assert any(line.endswith("stray is not part of it") for line in lines)


@every
def test_a_folder_that_does_not_do_is_explained(part: type[HFAudioEncoder], tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert part.problems(part.Config(weights=gone)) == [f"weights: given {gone!r}, which is not a folder"]
    with pytest.raises(
        PartError, match=rf"{part.name}\.weights: given '{gone}', which is not a folder\. Allowed: a hub name"
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
        PartError, match=rf'{part.name}\.weights: .* is a model of type "bert"; allowed: "{part.model_types[0]}"'
    ):
        part.build(weights=str(empty))
    (empty / "config.json").write_text(json.dumps({"model_type": part.model_types[-1]}))
    with pytest.raises(PartError, match=rf"{part.name}\.weights: .* has no \*\.safetensors or pytorch_model"):
        part.build(weights=str(empty))


@every
def test_a_hub_name_that_cannot_be_had_is_told_and_sizes_stand_in(
    part: type[HFAudioEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magma.hub.ask_hub", lambda name, _: f"no {name}")
    config = part.Config(weights="no/such", **part.check_config)
    (problem,) = part.problems(config)
    assert problem.startswith("weights: no/such is not in the cache, and the hub reports: no no/such. Run")
    encoder = part(config)  # type: ignore[call-arg]
    assert encoder.dim == small(part).dim
    with pytest.raises(PartError, match=rf"{part.name}\.weights: no/such is not in .* file\. Allowed: a hub name"):
        encoder.load_weights()


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "ast", "clap"])
def test_a_hub_name_in_the_cache_is_read_from_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(kind, tmp_path)[1]
    preprocessor(kind, folder)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, file: str(folder / file))
    monkeypatch.setattr("magma.hub.ask_hub", lambda *_: pytest.fail("the hub was asked"))
    encoder = of(kind).build(weights="some/name")
    again = of(kind).build(weights=str(folder))
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in encoder.state_dict().items())


def test_sizes_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    with pytest.raises(
        PartError, match=r"whisper: an encoder with these sizes cannot be built: .*divisible by num_heads"
    ):
        small(Whisper, heads=3)
    with pytest.raises(PartError, match=r"wav2vec2: an encoder with these sizes cannot be built"):
        small(Wav2Vec2, width=33)
    with pytest.raises(ValueError, match="`layers` and `heads` with one entry for each stage"):
        Clap.Config(layers=[1, 1], heads=[1])
    folder = saved("clap", tmp_path)[1]
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["enable_fusion"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PartError, match=r"clap\.weights: .* is a fused model; allowed: an unfused one"):
        Clap(Clap.Config(weights=str(folder)))
