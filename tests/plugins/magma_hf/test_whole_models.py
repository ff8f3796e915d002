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
from magma_hf import import_whole
from magma_hf.import_whole import to_folder
from magma_hf.whole_encoder import WholeFeatures
from magma_hf.whole_frame import Frame, chat_prompt, find_frame
from magma_hf.whole_probe import library_arguments, ordinary_tokens, prompts, random_medium
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import magma
from magma import CheckpointError, Input, Magma, PartError, Recipe

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
@pytest.mark.parametrize("name", sorted({**zoo.IMPORTED, **zoo.REFUSED}))
def test_a_whole_model_is_exact_or_refused(name: str, tmp_path: Path) -> None:
    if name in zoo.REFUSED:
        with pytest.raises(PartError, match=zoo.REFUSED[name]):
            imported(name, tmp_path)
        assert not (tmp_path / "parts").exists()
        return
    whole, model = imported(name, tmp_path)
    parts = {modality: module.prefix.name for modality, module in model.input_modules().items()}
    assert parts == zoo.IMPORTED[name]
    for modality, module in model.input_modules().items():
        assert largest_difference(whole, model, modality) <= 1e-5
        encoder = module.encoder
        assert isinstance(encoder, WholeFeatures)
        texts = [ordinary_tokens(whole.config, length, seed=length) for length in (3, 8, 4)]
        one, two = (random_medium(encoder, seed) for seed in (3, 4))
        batch = [[texts[0], one, texts[1]], [texts[2], two]]
        expected = [greedy(whole, module, prompt, model.lm.ends) for prompt in batch]
        assert model.generate_tokens(batch, max_tokens=4) == expected


def test_the_tables_have_every_type() -> None:
    names = zoo.names()
    assert sorted([*zoo.IMPORTED, *zoo.REFUSED, *zoo.UNTRIED]) == sorted(names)
    assert len(zoo.IMPORTED) >= 45


# Training


def train(folder: Path, modality: str, source: Path, *more: str) -> tuple[Magma, Path]:
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
{chr(10).join(more)}
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
    before, run = train(tmp_path, "audio", data, "[inputs.audio.prefix]", 'weights = "parts/audio"')
    check_training(before, run, data / "0.wav", tmp_path)


# Tokens around media


class Words:
    """A tokenizer with BOS."""

    bos_token = "<s>"

    def __call__(self, _: str) -> dict[str, list[int]]:
        return {"input_ids": [1]}

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return f"<{ids}>" if isinstance(ids, int) else [f"<{one}>" for one in ids]


class Processor:
    """A processor of text and images: `row` has what it makes of one image, -1 for a feature."""

    chat_template = "user <image> question assistant"
    tokenizer = Words()

    def __init__(self, row: list[int], token: int) -> None:
        self.row = [token if one == -1 else one for one in row]

    def __call__(self, **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [self.row]}

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> str:
        assert messages[0]["content"][0] == {"type": "image"}
        return f"<s>user <90> {messages[0]['content'][1]['text']} assistant"


def test_tokens_around_a_medium() -> None:
    images = zoo.processor("llava", zoo.configuration("llava"))
    frame = find_frame(Processor([1, 40, -1, -1, 41, 42], 90), "image", 90, images)
    assert frame == Frame([40], [41, 42])
    assert chat_prompt(Processor([], 90), "image", 90) == ("user ", " {question} assistant")
    with pytest.raises(PartError, match="puts tokens between the features of one image: <43>"):
        find_frame(Processor([1, -1, 43, -1], 90), "image", 90, images)
    frame = find_frame(Processor([1, 5], 90), "image", 90, images)
    assert frame == Frame(problem="it does not put the token '<90>' where the image is")


@pytest.mark.slow
def test_their_embeddings_are_in_the_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zoo.save("llava", tmp_path / "whole")
    token = whole.config.image_token_index
    processor = Processor([1, 40, *[-1] * 16, 41, 42], token)
    monkeypatch.setattr(import_whole, "load_full_processor", lambda _: processor)
    import_whole.to_folder(tmp_path / "whole", tmp_path / "parts", zoo.LIMITS)
    model = magma.load(tmp_path / "parts")
    module = model.input_modules()["image"]
    assert module.prefix.name == "framed"
    encoder = module.encoder
    assert isinstance(encoder, WholeFeatures)
    prompt = [torch.tensor([5, 6]), random_medium(encoder, 1), torch.tensor([7]), random_medium(encoder, 2)]
    given = library_arguments(whole, module, prompt, Frame([40], [41, 42]))
    assert given["input_ids"][0].tolist() == [5, 6, 40, *[token] * 16, 41, 42, 7, 40, *[token] * 16, 41, 42]
    with torch.no_grad():
        torch.testing.assert_close(model.logits(prompt), whole(**given).logits[0], atol=1e-5, rtol=1e-5)


# Checkpoints of LLaVA's own code


@pytest.mark.slow
@pytest.mark.parametrize("trained_tower", [False, True])
def test_a_checkpoint_of_the_code_of_llava(tmp_path: Path, trained_tower: bool) -> None:
    """The tiny LLaVA of transformers under the names of LLaVA's own code gives the same logits."""
    whole = zoo.save("llava", tmp_path / "whole")
    tower, original = tmp_path / "clip", tmp_path / "original"
    whole.model.vision_tower.save_pretrained(tower)
    zoo.processor("llava", whole.config).save_pretrained(tower)
    original.mkdir()
    projector = whole.model.multi_modal_projector
    tensors = {f"model.{name}": tensor for name, tensor in whole.model.language_model.state_dict().items()}
    tensors["lm_head.weight"] = whole.lm_head.weight
    for ours, theirs in ((0, projector.linear_1), (2, projector.linear_2)):
        tensors |= {f"model.mm_projector.{ours}.{name}": tensor for name, tensor in theirs.state_dict().items()}
    if trained_tower:
        inside = load_file(tower / "model.safetensors")
        tensors |= {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in inside.items()}
        with torch.no_grad():  # the tower that it started from is another one
            save_file(
                {name: 0.5 * tensor for name, tensor in inside.items()}, tower / "model.safetensors", {"format": "pt"}
            )
    save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, original / "model.safetensors")
    text = whole.config.text_config.to_dict()
    own = {"mm_vision_tower": str(tower), "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    (original / "config.json").write_text(json.dumps({**text, **own, "model_type": "llava"}), encoding="utf-8")
    import_whole.to_folder(original, tmp_path / "parts")
    model = magma.load(tmp_path / "parts")
    module = model.input_modules()["image"]
    assert (module.encoder.name, module.prefix.name) == ("hf_vision", "mlp")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.cat(list(whole.model.get_image_features(pixels).pooler_output))
        found = module.prefix(module.encoder(pixels)).values[0]
    torch.testing.assert_close(found, expected.reshape(found.shape), atol=1e-5, rtol=1e-5)
    ids = torch.tensor([5, 6, 7])
    with torch.no_grad():
        torch.testing.assert_close(model.logits([ids]), whole(input_ids=ids[None]).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "sva"}, "mm_projector_type: given 'sva'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "several tiles"),
        ({"model_type": "llava_mpt"}, "model_type: given 'llava_mpt'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
    ],
)
def test_other_checkpoints_of_llava_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    fields = {"model_type": "llava", "mm_vision_tower": "clip", "hidden_size": 32, **change}
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(PartError, match=message):
        import_whole.to_folder(tmp_path, tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PartError, match="a folder with config.json"):
        import_whole.to_folder(tmp_path, tmp_path / "parts")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(PartError, match='a model of type "gpt2"; allowed: a type for which transformers writes text'):
        import_whole.to_folder(tmp_path, tmp_path / "parts")
    (tmp_path / "parts").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        import_whole.to_folder(tmp_path, tmp_path / "parts")
