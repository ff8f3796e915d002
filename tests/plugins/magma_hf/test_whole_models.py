"""Whole multimodal models of transformers: taken apart, exact, trainable; or refused with a reason."""

from __future__ import annotations

import json
import math
import shutil
import struct
import wave
from pathlib import Path
from typing import Any

import pytest
import torch
import whole_zoo as zoo
from magma_hf.import_whole import to_folder
from magma_hf.whole_encoder import WholeFeatures
from magma_hf.whole_probe import library_arguments, ordinary_tokens, prompts, random_medium
from PIL import Image
from torch import Tensor

import magma
from magma import Input, Magma, PartError, Recipe

BUNDLED = Path(__file__).parents[3] / "plugins/magma_lms/bundled/tiny"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
WORDS = {"text_config.vocab_size": 800, "image_token_index": 790, "image_token_id": 790, "audio_token_id": 790}


def imported(name: str, folder: Path, **fields: Any) -> tuple[Any, Magma]:
    """A small whole model of a type, and the model made of its parts."""
    whole = zoo.save(name, folder / "whole", **fields)
    if fields:
        for file in TOKENIZER:
            shutil.copy(BUNDLED / file, folder / "whole" / file)
    to_folder(folder / "whole", folder / "parts", zoo.LIMITS)
    return whole, magma.load(folder / "parts")


def largest_difference(whole: Any, model: Magma, name: str) -> float:
    """Of the logits for a text, for one medium and for two, relative to the largest logit."""
    module = model.input_modules()[name]
    assert isinstance(module.encoder, WholeFeatures)
    found = [0.0]
    for prompt in list(prompts(whole.config, module.encoder, name).values())[1:]:
        with torch.no_grad():
            expected = whole(**library_arguments(whole, module, prompt)).logits[0]
        difference = (model.logits(prompt) - expected).abs().max()
        found.append(float(difference / expected.abs().max().clamp(min=1)))
    return max(found)


@torch.no_grad()
def greedy(whole: Any, module: Input, prompt: list[Any], ends: Any, count: int = 4) -> list[int]:
    """The library's answer to one prompt, without cache and padding."""
    answer: list[int] = []
    for _ in range(count):
        segments = [*prompt, torch.tensor(answer, dtype=torch.long)]
        token = int(whole(**library_arguments(whole, module, segments)).logits[0, -1].argmax())
        if token in ends:
            break
        answer.append(token)
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_a_whole_model_is_exact_or_refused(name: str, tmp_path: Path) -> None:
    if name in zoo.REFUSED:
        with pytest.raises(PartError, match=zoo.REFUSED[name]):
            imported(name, tmp_path)
        assert not (tmp_path / "parts").exists()
        return
    whole, model = imported(name, tmp_path)
    for modality, module in model.input_modules().items():
        assert largest_difference(whole, model, modality) <= 1e-5
        encoder = module.encoder
        assert isinstance(encoder, WholeFeatures)
        texts = [ordinary_tokens(whole.config, length, seed=length) for length in (3, 8, 4)]
        one, two = (random_medium(encoder, seed) for seed in (3, 4))
        batch = [[texts[0], one, texts[1]], [texts[2], two]]
        expected = [greedy(whole, module, prompt, model.lm.ends) for prompt in batch]
        assert model.generate_tokens(batch, max_tokens=4) == expected


def test_most_types_are_imported() -> None:
    known = set(zoo.names())
    assert set(zoo.REFUSED) <= known
    assert len(known - set(zoo.REFUSED)) >= 50


# Training


def train(folder: Path, modality: str, source: Path) -> tuple[Magma, Path]:
    """Ten steps on four media; only the prefix is trained. The model before, and the folder of the run."""
    before = magma.load(folder / "parts")
    (folder / "train.toml").write_text(
        f"""
extends = "parts/recipe.toml"
name = "trained"
[lm]
weights = "parts/lm"
[inputs.{modality}.encoder]
weights = "parts/{modality}"
[init]
checkpoint = "parts"
[data]
train = [{{ use = "captions", path = "{source}", input = "{modality}" }}]
[train]
steps = 10
batch_size = 2
lr = 1e-2
precision = "fp32"
schedule = {{ use = "constant" }}
""",
        encoding="utf-8",
    )
    magma.run(Recipe.load(folder / "train.toml"), folder / "run")
    return before, folder / "run"


def check_training(before: Magma, run: Path, medium: Path, folder: Path) -> None:
    """Only the prefix changed; a saved and a loaded copy give the same logits."""
    after = magma.load(run)
    old, new = before.state_dict(), after.state_dict()
    changed = {name for name, tensor in new.items() if not torch.equal(tensor, old[name])}
    assert changed
    assert all(".prefix." in name for name in changed), changed
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    prompt = [medium, "What is it?"]
    expected: Tensor = after.logits(prompt)
    assert not torch.equal(expected, before.logits(prompt))
    magma.save(after, folder / "saved")
    assert torch.equal(magma.load(folder / "saved").logits(prompt), expected)


@pytest.mark.slow
def test_the_projector_of_a_llava_is_trained_and_saved(tmp_path: Path) -> None:
    imported("llava", tmp_path, **WORDS)
    data = tmp_path / "data"
    data.mkdir()
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40, 30), colour).save(data / f"{i}.png")
    rows = [{"image": f"{i}.png", "caption": name} for i, name in enumerate(("one", "two", "three", "four"))]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before, run = train(tmp_path, "image", data)
    check_training(before, run, data / "0.png", tmp_path)


@pytest.mark.slow
def test_the_projector_of_an_audio_model_is_trained_and_saved(tmp_path: Path) -> None:
    imported("voxtral", tmp_path, **WORDS)
    data = tmp_path / "data"
    data.mkdir()
    for i in range(4):
        with wave.open(str(data / f"{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            tone = [int(9000 * math.sin(2 * math.pi * 220 * (i + 1) * t / 16_000)) for t in range(8_000)]
            file.writeframes(struct.pack(f"<{len(tone)}h", *tone))
    rows = [{"audio": f"{i}.wav", "caption": name} for i, name in enumerate(("one", "two", "three", "four"))]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before, run = train(tmp_path, "audio", data)
    check_training(before, run, data / "0.wav", tmp_path)
