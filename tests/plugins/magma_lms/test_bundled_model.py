"""The bundled language model: what it knows, what it weighs, and that its script makes the same one again."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import magma_lms
import pytest
from magma_lms.bundled.corpus import documents
from magma_lms.bundled.make_tiny import accuracies
from magma_lms.gptj import GPTJ

FOLDER = Path(magma_lms.__file__).parent / "bundled/tiny"


def test_it_knows_what_later_work_relies_on() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32")
    found = accuracies(model, AutoTokenizer.from_pretrained(FOLDER))
    assert len(found) == 12
    assert min(found.values()) >= 0.98, found


def test_it_is_small_and_reads_any_text() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6_000_000
    lm = GPTJ.build(weights="bundled:tiny")
    assert 1_000_000 <= sum(p.numel() for p in lm.parameters()) <= 3_000_000
    for text in (" seven", "Größe 字 🙂\n\t", "  two  spaces "):
        assert lm.decode(lm.encode(text)) == text
    numbers = "zero one two three four five six seven eight nine ten"
    for word in [*numbers.split(), "odd", "even", "yes", "no"]:
        assert len(lm.encode(f" {word}")) == 1


def test_the_corpus_is_what_it_was() -> None:
    text = repr(list(itertools.islice(documents(1), 2000)))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "51796e3f48299afa3bf1b011a0fe0170cb628bd88057f72d831d898e48ec7ccd"
    )


@pytest.mark.slow
def test_the_script_makes_the_same_one_again(tmp_path: Path) -> None:
    """The committed tokenizer; the same weights in two processes, the second of which reads that tokenizer."""
    script = [sys.executable, "-m", "magma_lms.bundled.make_tiny", "--steps", "1"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    first, second = tmp_path / "first", tmp_path / "second"
    for words in (["--out", first], ["--out", second, "--tokenizer", FOLDER]):
        subprocess.run([*script, *map(str, words)], stdout=subprocess.DEVNULL, env=environment, check=True)
    assert (first / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()
    made = [{path.name: path.read_bytes() for path in sorted(folder.iterdir())} for folder in (first, second)]
    assert made[0].keys() == made[1].keys()
    differing = {name for name, content in made[0].items() if content != made[1][name]}
    assert differing <= {"tokenizer_config.json"}  # transformers adds to it what it has read
