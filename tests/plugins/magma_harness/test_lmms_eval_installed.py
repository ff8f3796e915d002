"""The installed lmms-eval scores a folder."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lmms_folders import picture

from magma import Magma

# The real one

TASKS = """\
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent


def visual(document):
    return [Image.open(HERE / document["image"]).convert("RGB")] if document["image"] else []


def target(document):
    return document["answer"]


def right(document, results):
    return {"acc": float(results[0] == document["answer"].strip())}


def likely(document, results):  # lmms-eval's own cannot unpack what it gets
    ((total, greedy),) = results
    return {"perplexity": total, "acc": float(greedy)}
"""

COMMON = """\
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_visual: !function tiny.visual
doc_to_text: question
metadata: {{version: 1.0}}
"""

WRITES = """\
task: magma_tiny_writes
output_type: generate_until
doc_to_target: answer
process_results: !function tiny.right
generation_kwargs: {max_new_tokens: 6, temperature: 0, do_sample: false, until: ["\\n\\n"]}
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""

CHOOSES = """\
task: magma_tiny_chooses
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""

SAYS = """\
task: magma_tiny_says
output_type: loglikelihood
doc_to_target: !function tiny.target
process_results: !function tiny.likely
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_lmms_eval_scores_a_folder(folder: Path, model: Magma, tmp_path: Path) -> None:
    """Its own program, its registry and its evaluator, on tasks whose scores are known: one answer in four is wrong."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows, scored = [], []
    for i in range(4):
        prompt: list[Any] = [picture(i), "Q: what is it? A:"] if i else ["Q: what is it? A:"]
        if i:
            picture(i).save(tasks / f"{i}.png")
        answer = model.generate(prompt, max_tokens=6, stop="\n\n")
        choices = ["dog", "seven of them", "two"]
        scores = [total for total, _ in model.log_likelihood([prompt] * 3, [f" {choice}" for choice in choices])]
        best = scores.index(max(scores))
        rows.append(
            {
                "image": f"{i}.png" if i else None,
                "question": "what is it?",
                "answer": answer if i != 2 else "nothing that it said",
                "choices": choices,
                "gold": best if i != 3 else (best + 1) % 3,
            }
        )
        scored += model.log_likelihood([prompt], [str(rows[-1]["answer"])])
    (tasks / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "tiny.py").write_text(TASKS)
    for name, text in {"writes": WRITES, "chooses": CHOOSES, "says": SAYS}.items():
        (tasks / f"{name}.yaml").write_text(text + COMMON.format(data=tasks / "tiny.jsonl"))
    model_args = f"pretrained={folder},template='{{media}}Q: {{text}} A:'"
    command = ["-m", "lmms_eval", "--model", "magma", "--model_args", model_args, "--include_path", str(tasks)]
    command += ["--tasks", "magma_tiny_writes,magma_tiny_chooses,magma_tiny_says", "--batch_size", "2"]
    command += ["--device", "cpu", "--output_path", str(tmp_path / "out"), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **offline}, capture_output=True, text=True, check=False
    )
    print(done.stdout)
    files = list((tmp_path / "out").rglob("*results.json"))
    assert len(files) == 1, done.stderr  # it exits with 0 whatever happens
    results = json.loads(files[0].read_text())["results"]
    assert results["magma_tiny_writes"]["acc,none"] == 0.75
    assert results["magma_tiny_chooses"]["acc,none"] == 0.75
    mean = sum(total for total, _ in scored) / 4
    assert results["magma_tiny_says"]["perplexity,none"] == pytest.approx(math.exp(-mean), rel=1e-3)
    assert results["magma_tiny_says"]["acc,none"] == sum(greedy for _, greedy in scored) / 4
