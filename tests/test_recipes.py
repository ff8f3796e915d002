"""Every recipe of the repository: valid, planned, assembled on meta; the paper's own numbers; and one trained small."""

from __future__ import annotations

import json
import os
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from magma_data.digits.written import WORDS, load_images
from PIL import Image
from program import magma as in_process
from program import start

import magma
from magma.plan import Plan, plan
from magma.recipe.loader import bundled

ROOT = Path(__file__).parents[1]
RECIPES = bundled()
ADAPTERS = "paper/adapters"
PARAMS = {  # table 1, column "Params"
    "none": "0.1",
    "ff2": "2",
    "ff4": "1",
    "attn8_ff8": "1",
    "attn12_ff6": "1",
    "parallel_ff4": "1",
    "parallel_learned_attn8_ff8": "1",
}


@cache
def planned(name: str) -> Plan:
    """A plan assembles its recipe on meta and runs it there, forward and backward.

    The paper's language model and encoder are the same in most recipes: they have their full size in magma_long, and
    elsewhere two of 28 equal layers, and an encoder of one block a stage.
    """
    recipe, long = magma.Recipe.load(RECIPES[name]), magma.Recipe.load("magma_long")
    if name == "magma_long":
        return plan(recipe)
    small = ["lm.layers=2"] if recipe.part("lm") == long.part("lm") else []
    encoder = "inputs.image.encoder"
    if (
        not name.startswith("paper/encoders/")
        and "image" in recipe.inputs
        and recipe.part(encoder) == long.part(encoder)
    ):
        small.append(f"{encoder}={{ use = 'clip', layers = [1, 1, 1, 1], width = 16, image_size = 64 }}")
    return plan(magma.Recipe.load(RECIPES[name], small))


def test_every_file_is_a_recipe_by_its_name() -> None:
    assert {str(p.relative_to(ROOT / "recipes").with_suffix("")) for p in (ROOT / "recipes").rglob("*.toml")} == set(
        RECIPES
    )
    assert len({recipe.name for recipe in map(magma.Recipe.load, RECIPES.values())}) == len(RECIPES)


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("frontier/")])  # they have their own
def test_every_recipe_is_assembled_and_run_on_meta(name: str) -> None:
    found = planned(name)
    assert "lm" in {part.path for part in found.parts if not part.trained}
    assert found.totals["trained"] > 0
    assert found.flops_per_sample
    assert found.activation_bytes_per_sample
    assert found.length is not None
    assert json.loads(json.dumps(found.to_dict()))["steps"] == found.length.steps


def test_magma_long() -> None:
    found = planned("magma_long")
    trained = {part.path: part.trained for part in found.parts}
    assert trained == {
        "lm": 0,
        "inputs.image.encoder": 136_202_640,
        "inputs.image.prefix": 12_595_200,
        "adapters.attention": 117_569_536,
        "adapters.mlp": 117_569_536,
    }
    assert found.totals["lm"] == 6_050_882_784
    assert found.totals["adapter"] == 235_139_072
    assert found.inputs["image"].tokens == 144
    assert found.length is not None
    assert (found.length.steps, found.length.samples) == (29_688, 7_600_000)
    rates = {part.path: part.lr for part in found.parts}
    assert rates["inputs.image.encoder"] == 2e-6
    assert rates["inputs.image.prefix"] == rates["adapters.mlp"] == 8e-4
    # 144 + 20 + end-of-text: 4.42 TFLOP by hand, less what the last block need not compute
    assert found.tokens_per_example == {"media": 144, "text": 21, "total": 165}
    assert 0.975 * 4.42e12 < found.flops_per_sample < 4.42e12  # type: ignore[operator]
    assert found.checkpoint_bytes == pytest.approx(2 * found.totals["trained"], rel=1e-3)


def test_the_params_column_of_table_1() -> None:
    def added(row: str) -> int:
        model = magma.assemble(magma.Recipe.load(f"{ADAPTERS}/{row}"), device="meta")
        return sum(p.parameters for p in model.summary() if model.parts()[p.path][0].kind in ("prefix", "adapter"))

    found = {row: added(row) for row in PARAMS}
    ratios = {row: found[row] / found["ff4"] for row in PARAMS}
    assert {row: f"{x:.0f}" if x >= 0.95 else f"{x:.1f}" for row, x in ratios.items()} == PARAMS
    assert {name for name in RECIPES if name.startswith(ADAPTERS)} == {f"{ADAPTERS}/{row}" for row in PARAMS}


def test_the_encoder_rows() -> None:
    """Section 3.1: grids of 7, 7 and 12; Frozen's two embeddings."""
    rows = {"vit_b32": 49, "rn50x4": 49, "rn50x16": 144, "nfresnet": 2}
    assert {row: planned(f"paper/encoders/{row}").inputs["image"].tokens for row in rows} == rows
    for row in rows:
        adapters = [part.path for part in planned(f"paper/encoders/{row}").parts if part.kind == "adapter"]
        assert adapters == ["adapters.mlp"]
    frozen = planned("paper/frozen")
    assert "adapter" not in frozen.totals
    assert {part.lr for part in frozen.parts if part.trained} == {3e-4}
    assert frozen.length is not None
    assert frozen.length.samples == planned("magma_base").length.samples == 3_840_000  # type: ignore[union-attr]


def test_the_finetuning_of_appendix_a() -> None:
    names = {name.rpartition("/")[2] for name in RECIPES if name.startswith("paper/finetune/")}
    assert names == {"vqa", "okvqa", "gqa", "vizwiz", "snli_ve", "nocaps", "coco"}
    for name in names:
        recipe = magma.Recipe.load(f"paper/finetune/{name}")
        assert recipe.train is not None
        assert recipe.train.early_stopping
        assert recipe.inputs["image"].lr == 1.5e-6
        assert recipe.train.lr == (3e-4 if name == "snli_ve" else 7e-4)
        assert (recipe.head is not None) == (name == "snli_ve")
        assert recipe.init.checkpoint == "runs/magma_long"


def test_the_authors_code() -> None:
    for name in ("magma_v1", "magma_v2"):
        train = magma.Recipe.load(f"released/{name}").train
        assert train is not None
        assert (train.schedule.use, train.optimizer.use, train.optimizer.betas) == ("linear", "adamw", (0.9, 0.95))
        assert (train.gradient_clipping, train.loss) == (1.0, "micro_batch_mean")


def test_dimensions_that_do_not_fit_are_found_by_the_plan() -> None:
    long = magma.Recipe.load("magma_long", ["train.max_length=144"])
    with pytest.raises(magma.TooLong, match="needs 144 positions; allowed: fewer than 144"):
        plan(long)
    with pytest.raises(magma.TrainingError, match=r"allowed with 3 processes: a multiple of 3"):
        plan(magma.Recipe.load("magma_long"), world=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('inputs.image.prefix={ use = "transformer", heads = 7 }', r"^inputs\.image\.prefix: .*heads: given 7"),
        ("adapters.mlp.downsample=5000", r"^adapters\.mlp: .*downsample: given 5000"),
        ("inputs.image.encoder.model=RN50x17", r'^inputs\.image\.encoder: .*Did you mean "RN50x16"'),
    ],
)
def test_a_part_that_cannot_be_built_is_named_by_its_path(change: str, message: str) -> None:
    with pytest.raises(magma.PartError, match=message):
        plan(magma.Recipe.load("magma_long", [change]))


def test_memory_is_shared_as_zero_does() -> None:
    recipe = magma.Recipe.load("quickstart")
    alone, shared = plan(recipe, 1, [1, 4]), plan(recipe, 4, [1, 4])
    trained, every = alone.totals["trained"], alone.totals["parameters"]
    for one, four in zip(alone.memory, shared.memory, strict=False):
        assert one.weights + one.gradients + one.optimizer == 4 * every + 16 * trained
        assert one.buffers == four.buffers == 4 * trained  # of both: an example's gradients are gathered whole
        assert four.optimizer == 12 * trained // 4
        assert four.gradients == 4 * trained // (1 if four.stage == 1 else 4)
        assert four.weights == 4 * every // (4 if four.stage == 3 else 1)
        assert one.activations == alone.activation_bytes_per_sample * one.micro_batch  # type: ignore[operator]
    assert sorted({row.micro_batch for row in shared.memory}) == [1, 4, 8]


# The program


def program(*arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    """With an empty cache, and a hub that nobody reaches."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "MAGMA_DATA": str(home)}
    return start(*arguments, env=environment, cwd=home)


def test_a_plan_needs_neither_data_nor_weights(tmp_path: Path) -> None:
    shown = program("recipe", "plan", "magma_long", "--memory", "80", home=tmp_path).stdout
    assert " ".join(shown.split()).count("lm gptj 6,050,882,784 frozen") == 1
    assert "144 image + 21 text (assumed) = 165 tokens an example; 4.34 TFLOP a sample" in shown
    assert "29,688 steps of 256 examples (7,600,000 samples), bf16" in shown
    assert "ZeRO 2 *" in shown
    assert "1 GPU, 4 x 64 examples each a step" in shown  # 256 at once would need 228 GB


def test_a_plan_is_json_for_programs() -> None:
    words = ["--json", "--nproc", "8", "--set", "lm.layers=2"]
    done = in_process("recipe", "plan", ROOT / "recipes/magma_long.toml", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] == 29_688
    assert found["world"] == 8


def test_all_that_is_missing_is_said_at_once_and_how_to_get_it(tmp_path: Path) -> None:
    began = time.perf_counter()
    done = program("recipe", "run", ROOT / "recipes/magma_long.toml", home=tmp_path)
    assert time.perf_counter() - began < 30
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("  - ")]
    assert len(lines) == 14
    assert "lm: weights: EleutherAI/gpt-j-6b is not in the cache" in lines[0]
    assert "`hf download EleutherAI/gpt-j-6b`" in lines[0]
    assert "inputs.image.encoder: weights: timm/resnet50x16_clip.openai is not in the cache" in lines[1]
    for i, path in enumerate(["laion", "wit", "cc3m", "visual_genome"]):
        assert f"data.train.{i}: path: given '{path}', which is neither" in lines[2 + i]
        assert "download it from https://" in lines[2 + i]
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The paper's data sets, in the paper's forms, of handwritten digits."""
    pixels, labels = load_images("train")
    for name in ("captions", "questions"):
        (tmp_path / name).mkdir()
    for i in range(64):
        image = Image.fromarray(255 - np.kron(pixels[i], np.ones((8, 8), np.uint8)))
        image.save(tmp_path / f"{i}.png")
        image.save(tmp_path / f"captions/{i}.png")
        image.save(tmp_path / f"questions/{i}.png")
    words = [WORDS[label] for label in labels[:64]]
    captions: list[dict[str, Any]] = [
        {"image": f"{i}.png", "caption": f"A picture of a {w}."} for i, w in enumerate(words)
    ]
    asked = [{"image": f"{i}.png", "question": "Which number is this?", "answer": w} for i, w in enumerate(words)]
    for split in ("train", "val"):
        (tmp_path / f"captions/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
        (tmp_path / f"questions/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return tmp_path


def test_magma_long_trains_small_from_end_to_end(digits: Path, tmp_path: Path) -> None:
    """The same recipe: its parts, both kinds of data, its schedule and optimizer; small by `--set` alone."""
    changes = [
        "lm.weights=bundled:tiny",
        'inputs.image.encoder={ use = "clip", layers = [1, 1, 1, 1], width = 16, image_size = 64 }',
        *(f"data.train.{i}.path={digits / 'captions'}" for i in range(7)),
        *(f"data.train.{i}.path={digits / 'questions'}" for i in range(7, 11)),
        f"data.evaluation.0.path={digits / 'captions'}",
        *("train.samples=512", "train.batch_size=8", "train.precision=fp32", "train.lr=2e-3", "inputs.image.lr=2e-3"),
        *("train.evaluate_every=16", "train.evaluate_samples=32", "train.warmup_steps=4"),
    ]
    sets = [word for change in changes for word in ("--set", change)]
    done = in_process("recipe", "run", "magma_long", "--out", tmp_path / "run", *sets)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["evaluation_loss"] for row in rows if "evaluation_loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert (report["steps"], report["frozen_unchanged"], report["finished"]) == (64, True, True)
    assert "512 samples" in done.stderr
    model = magma.load(tmp_path / "run")
    assert model.generate([tmp_path / "3.png"], max_tokens=4).startswith("A picture of")


def test_magma_long_with_small_sizes_and_random_weights(digits: Path) -> None:
    """No file of weights at all: the same recipe with other numbers."""
    recipe = magma.Recipe.load(
        "magma_long",
        [
            *("lm.weights=false", "lm.tokenizer=bundled:tiny", "lm.layers=2", "lm.dim=64", "lm.heads=4"),
            *("lm.rotary_dim=8", "lm.context=64", "lm.vocab=768", "lm.eos=0"),
            *("inputs.image.encoder.model=false", "inputs.image.encoder.weights=false"),
            *("inputs.image.encoder.layers=[1, 1, 1, 1]", "inputs.image.encoder.width=8"),
            *("inputs.image.encoder.image_size=64", "train.precision=fp32", "train.batch_size=8", "train.samples=24"),
            f'data.train=[{{ use = "captions", path = "{digits / "captions"}", split = "train" }}]',
            f'data.evaluation=[{{ use = "captions", path = "{digits / "captions"}", split = "val", limit = 8 }}]',
        ],
    )
    report = magma.run(recipe, digits / "run")
    assert report["steps"] == 3
    assert report["parts"]["lm"]["parameters"] == plan(recipe).totals["lm"] < 300_000


@pytest.mark.slow
def test_the_classification_recipe_trains_small(digits: Path, tmp_path: Path) -> None:
    """SNLI-VE's recipe, from a checkpoint that has no head yet: is the number odd or even?"""
    rows = [json.loads(line) for line in (digits / "captions/train.jsonl").read_text().splitlines()]
    odd = {"one", "three", "five", "seven", "nine"}
    for row in rows:
        row["text"] = "The number is odd."
        row["label"] = "entailment" if any(word in row["caption"] for word in odd) else "contradiction"
    for split in ("train", "val"):
        (digits / f"captions/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = [
        "lm.weights=bundled:tiny",
        'inputs.image.encoder={ use = "clip", layers = [1, 1, 1, 1], width = 16, image_size = 64 }',
    ]
    base = magma.Recipe.load("magma_base", [*small, "train.precision=fp32"])
    magma.save(magma.assemble(base), tmp_path / "base", base)
    recipe = magma.Recipe.load(
        "paper/finetune/snli_ve",
        [
            *small,
            f"init.checkpoint={tmp_path / 'base'}",
            f"data.train.0.path={digits / 'captions'}",
            f"data.evaluation.0.path={digits / 'captions'}",
            *("train.steps=120", "train.batch_size=8", "train.precision=fp32", "train.evaluate_every=20"),
            *("train.lr=2e-3", "inputs.image.lr=2e-3", "train.warmup_steps=4"),
            "train.early_stopping=9",  # a BatchNorm of few steps makes the loss jump before it falls
        ],
    )
    magma.run(recipe, tmp_path / "run")
    model = magma.load(tmp_path / "run")
    found = model.classify([[digits / f"captions/{i}.png", "The number is odd."] for i in range(64)])
    right = sum(max(p, key=p.__getitem__) == row["label"] for p, row in zip(found, rows, strict=True))
    assert right / 64 > 0.75
