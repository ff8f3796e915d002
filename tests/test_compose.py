"""Models that were trained separately become one: `magma compose`, with pictures and sounds of digits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from magma_data.digits.written import load_images
from torch import Tensor
from typer.testing import CliRunner

import magma
from magma import CheckpointError, Example, InputError, Magma, Media, RecipeError
from magma.cli.app import cli
from magma.compose import compose
from magma.verify import verify

TABLES = {
    "attention": {"use": "sequential", "downsample": 8},
    "mlp": {"use": "parallel", "downsample": 8},
    "last": {"use": "sequential", "downsample": 8, "at": "block", "blocks": "last 1"},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "image": {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "audio": {"use": "spectrogram", "rate": 8000, "seconds": 0.3, "bands": 16, "width": 16, "heads": 2},
}
QUESTION = "Q: Which number is this? A:"
Segments = list[Any]


def tables(name: str, **changes: Any) -> dict[str, Any]:
    """A recipe with this input, whose adapters act only with it."""
    return {
        "name": f"with_{name}",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {name: {"encoder": ENCODERS[name], "prefix": {"use": "linear", "layernorm": True}}},
        "adapters": {key: {**table, "only_with": [name]} for key, table in copy.deepcopy(TABLES).items()},
        **changes,
    }


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones of every digit."""
    folder = tmp_path_factory.mktemp("fsdd")
    for digit in range(10):
        for take in (0, 7):
            t = np.arange(1600 + 40 * take) / 8000
            soundfile.write(folder / f"{digit}_ann_{take}.wav", 0.3 * np.sin(2 * np.pi * (200 + 90 * digit) * t), 8000)
    return folder


def saved(folder: Path, name: str, **changes: Any) -> Path:
    """A checkpoint with random adapters that have an effect."""
    recipe = tables(name, **changes)
    model = magma.assemble(recipe)
    draw = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for adapter in model.lm.all_adapters():
            for parameter in adapter.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    return magma.save(model, folder, magma.Recipe.load(recipe))


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    return [saved(folder / name, name) for name in ENCODERS]


@pytest.fixture(scope="module")
def composed(parents: list[Path]) -> Path:
    out = parents[0].parent / "both"
    done = CliRunner().invoke(cli, ["compose", *map(str, parents), "--out", str(out)])
    assert done.exit_code == 0, done.output
    names = "attention_image, mlp_image, last_image, attention_audio, mlp_audio, last_audio"
    assert f"inputs image, audio; adapters {names}" in done.output
    return out


@pytest.fixture(scope="module")
def prompts(recordings: Path) -> dict[str, list[Segments]]:
    """Of each input, with words before and after the medium."""
    pictures = load_images("test")[0][:6]
    sounds = sorted(recordings.glob("*_0.wav"))[:6]
    return {
        "image": [["Look: ", Media("image", one), QUESTION] for one in pictures] + [[Media("image", pictures[0])]],
        "audio": [[Media("audio", one), f"The number {QUESTION}"] for one in sounds],
    }


@torch.no_grad()
def logits(model: Magma, prompts: Sequence[Segments]) -> Tensor:
    """[b, t, v] of all positions of a batch."""
    collator = model.collator()
    examples = [Example([collator.segment(one) for one in prompt]) for prompt in prompts]
    batch = collator.pad([collator.encode_example(one, truncate=False) for one in examples])
    embeddings, layout = model.lm_inputs(batch)
    layout = replace(layout, scored=torch.arange(batch.tokens.numel()), first_scored=0)
    return model.lm.lm_head(model.lm(embeddings, layout))


def test_prompts_with_one_input_are_answered_as_before(
    parents: list[Path], composed: Path, prompts: dict[str, list[Segments]]
) -> None:
    assert_answers_are_kept(parents, composed, prompts)


@pytest.mark.slow
def test_trained_models_are_combined(recordings: Path, prompts: dict[str, list[Segments]], tmp_path: Path) -> None:
    """The same after training, with all that a run writes."""
    data = {"image": {"use": "digits"}, "audio": {"use": "spoken_digits", "path": str(recordings)}}
    train = {"steps": 4, "batch_size": 8, "lr": 1e-2, "precision": "fp32", "workers": 0}
    for name, source in data.items():
        magma.run(tables(name, data={"train": [{**source, "split": "train"}]}, train=train), tmp_path / name)
    runs = [tmp_path / name for name in data]
    compose(runs, tmp_path / "both")
    assert_answers_are_kept(runs, tmp_path / "both", prompts)


def assert_answers_are_kept(parents: list[Path], composed: Path, prompts: dict[str, list[Segments]]) -> None:
    both = magma.load(composed)
    for folder, (name, asked) in zip(parents, prompts.items(), strict=True):
        parent = magma.load(folder)
        expected = logits(parent, asked)
        assert torch.equal(logits(both, asked), expected), name
        with parent.adapters_disabled():
            assert not torch.equal(logits(parent, asked), expected), "its adapters have no effect"
        assert both.generate_tokens(asked, max_tokens=8) == parent.generate_tokens(asked, max_tokens=8)
        texts = [" seven"] * len(asked)
        assert both.log_likelihood(asked, texts) == parent.log_likelihood(asked, texts)


def test_inputs_may_be_mixed(composed: Path, prompts: dict[str, list[Segments]]) -> None:
    both = magma.load(composed)
    mixed = [[*image[:2], *audio] for image, audio in zip(prompts["image"], prompts["audio"], strict=False)]
    whole = logits(both, mixed[:1])
    for table in both.lm.adapters:
        with both.adapters_disabled(table):
            assert not torch.equal(logits(both, mixed[:1]), whole), f"{table} has no effect"
    together = both.generate_tokens([*mixed, ["Only text"]], max_tokens=4)
    assert together[:2] == [both.generate_tokens(one, max_tokens=4) for one in mixed[:2]]
    with both.adapters_disabled():
        assert together[-1] == both.generate_tokens(["Only text"], max_tokens=4)


def test_the_folder_is_a_checkpoint(composed: Path, tmp_path: Path) -> None:
    assert all(not one.unchecked for one in verify(composed))
    assert magma.Recipe.load(composed / "recipe.toml").adapters["last_audio"].only_with == ("audio",)
    again = magma.save(magma.load(composed), tmp_path / "again", magma.Recipe.load(composed / "recipe.toml"))
    assert all(not one.unchecked for one in verify(again))
    done = CliRunner().invoke(cli, ["verify", str(composed), "--text-neutral", "--prompts", "32", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "text is bit by bit as in the bare language model" in done.output


def test_text_of_a_file_is_compared(tmp_path: Path) -> None:
    adapters = {**tables("image")["adapters"], "mlp": TABLES["mlp"]}
    saved(tmp_path / "changed", "image", adapters=adapters)
    (tmp_path / "text").write_text("The quick brown fox is a number. " * 60)
    options = ["--text-neutral", "--text", str(tmp_path / "text"), "--device", "cpu", "--dtype", "bf16"]
    done = CliRunner().invoke(cli, ["verify", str(tmp_path / "changed"), *options])
    assert done.exit_code == 1
    assert "rows of text: prompt 0, position 0: the logit of token " in done.output
    assert "adapters without only_with act on text: mlp" in done.output
    done = CliRunner().invoke(cli, ["verify", str(tmp_path / "changed"), *options[:-1], "bf32"])
    assert isinstance(done.exception, InputError)
    assert "--dtype: given 'bf32'; allowed: bf16, fp16, fp32" in str(done.exception)


# What is refused


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("image") / "run", "image")


def test_a_model_becomes_text_neutral_without_training(prompts: dict[str, list[Segments]], tmp_path: Path) -> None:
    plain = {name: dict(table) for name, table in TABLES.items()}
    former = saved(tmp_path / "plain", "image", adapters=plain)
    out = tmp_path / "neutral"
    done = CliRunner().invoke(cli, ["compose", str(former), "--text-neutral", "--out", str(out)])
    assert done.exit_code == 0, done.output
    before, after = magma.load(former), magma.load(out)
    assert torch.equal(logits(before, prompts["image"]), logits(after, prompts["image"]))
    words: list[Segments] = [[QUESTION]]
    with after.adapters_disabled():
        bare = logits(after, words)
    assert torch.equal(logits(after, words), bare)
    assert not torch.equal(logits(before, words), bare)
    with pytest.raises(InputError, match="number of models: given 1; allowed: 2 to 26"):
        compose([out], tmp_path / "again")


def test_two_models_with_one_name_get_new_names(image: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "other", "image", seed=1)
    with pytest.raises(CheckpointError, match="both have an input image, with different weights; allowed: one name"):
        compose([image, other], tmp_path / "both")
    with pytest.raises(CheckpointError, match="with equal weights; .* B.image=NAME"):
        compose([image, image], tmp_path / "both")
    assert [one.name for one in tmp_path.iterdir()] == ["other"]
    recipe = compose([image, other], tmp_path / "both", {"B.image": "picture"})
    assert list(recipe.inputs) == ["image", "picture"]
    assert recipe.adapters["mlp_picture"].only_with == ("picture",)
    both, alone = magma.load(tmp_path / "both"), magma.load(other)
    pixels = load_images("test")[0][0]
    found = logits(both, [[Media("picture", pixels), QUESTION]])
    assert torch.equal(found, logits(alone, [[Media("image", pixels), QUESTION]]))
    three = compose([tmp_path / "both", saved(tmp_path / "audio", "audio")], tmp_path / "three")
    assert list(three.inputs) == ["image", "picture", "audio"]
    assert list(three.adapters)[-3:] == ["attention", "mlp", "last"]
    assert torch.equal(logits(magma.load(tmp_path / "three"), [[Media("picture", pixels), QUESTION]]), found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapters": {"mlp": TABLES["mlp"]}}, "adapters.mlp acts on every prompt"),
        ({"lm": {"use": "gptj", "weights": "bundled:tiny", "bos": True}}, "differ in lm.bos: 'auto' and True"),
        ({"head": {"use": "linear", "classes": ["odd", "even"]}}, "has a classification head"),
    ],
)
def test_models_that_do_not_fit_are_refused(image: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    other = saved(tmp_path / "other", "audio", **changes)
    with pytest.raises(CheckpointError, match=message):
        compose([image, other], tmp_path / "both")
    assert [one.name for one in tmp_path.iterdir()] == ["other"]


def test_other_language_models_are_refused(image: Path, tmp_path: Path) -> None:
    small = {"use": "gptj", "tokenizer": "bundled:tiny", "layers": 1, "dim": 32, "heads": 2, "rotary_dim": 4}
    small |= {"vocab": 768, "eos": 0, "context": 64}
    one = saved(tmp_path / "one", "audio", lm=small)
    with pytest.raises(CheckpointError, match=r"different language models: \d+ tensors differ, the first is lm\."):
        compose([image, one], tmp_path / "both")
    half = magma.assemble(tables("audio"), dtype=torch.bfloat16)
    magma.save(half, tmp_path / "half", magma.Recipe.load(tables("audio")))
    with pytest.raises(CheckpointError, match="float32 and .* bfloat16; allowed: the same precision"):
        compose([image, tmp_path / "half"], tmp_path / "both")


def test_wrong_arguments(image: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rename C.image: given 'C.image'; allowed: A.image, B.image"):
        compose([image, image], tmp_path / "both", {"C.image": "picture"})
    with pytest.raises(InputError, match="rename B.image: given 'a-b'; allowed: a letter"):
        compose([image, image], tmp_path / "both", {"B.image": "a-b"})
    with pytest.raises(InputError, match="exists already"):
        compose([image, image], tmp_path)
    with pytest.raises(InputError, match="number of models: given 1; allowed: 2"):
        compose([image], tmp_path / "both")
    twice = ["--rename", "A.image=one", "--rename", "A.image=two"]
    done = CliRunner().invoke(cli, ["compose", "a", "b", "--out", "c", *twice])
    assert "--rename A.image: given one and two; allowed: one new name" in f"{done.output}{done.exception}"
    done = CliRunner().invoke(cli, ["verify", str(image), "--prompts", "5"])
    assert "given --prompts 5; allowed only with --text-neutral" in f"{done.output}{done.exception}"
    done = CliRunner().invoke(cli, ["compose", "a", "b", "--out", "c", "--rename", "image"])
    assert "--rename image: allowed: A.INPUT=NAME" in str(done.exception)


def test_the_key_names_inputs_of_the_recipe() -> None:
    for value, message in (
        (["picture"], 'adapters.mlp.only_with: given "picture"; allowed: the inputs of the recipe: image'),
        ([], "adapters.mlp.only_with: given"),
        (["image", "image"], "each of them once"),
    ):
        recipe = tables("image")
        recipe["adapters"]["mlp"]["only_with"] = value
        with pytest.raises(RecipeError, match=message):
            magma.Recipe.load(recipe)


def test_the_key_is_kept_without_a_recipe(tmp_path: Path) -> None:
    magma.save(magma.assemble(tables("image")), tmp_path / "run")
    assert magma.Recipe.load(tmp_path / "run" / "recipe.toml").adapters["last"].only_with == ("image",)
