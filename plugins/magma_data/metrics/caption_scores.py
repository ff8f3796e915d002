"""CIDEr and BLEU@4 of the official package, pycocoevalcap. They need Java."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from magma import PartError

NO_JAVA = (
    "java: not found in PATH. CIDEr and BLEU use the tokenizer of pycocoevalcap, which needs Java. Install a Java "
    "runtime, version 8 or later (`apt install default-jre-headless`, `conda install openjdk`)"
)


def tokenize_captions(sentences: Sequence[str]) -> list[str]:
    """Sentences with Penn Treebank tokenization, in lower case and without punctuation.

    The official package calls the same program with a temporary file in its own folder, which remains there after an
    error. Here the program reads its standard input. A line break in a sentence becomes a space. Raises `PartError`.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer as official

    jar = Path(official.__file__).with_name(official.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = "".join(" ".join(sentence.split()) + "\n" for sentence in sentences)
    try:
        process = subprocess.run(command, input=lines.encode(errors="replace"), capture_output=True, check=True)
    except FileNotFoundError as error:
        raise PartError(NO_JAVA) from error
    except subprocess.CalledProcessError as error:
        raise PartError(
            f"the tokenizer for captions failed: {error.stderr.decode(errors='replace').strip()}"
        ) from error
    found = process.stdout.decode().split("\n")[:-1]
    if len(found) != len(sentences):
        raise PartError(f"the tokenizer for captions returned {len(found)} lines for {len(sentences)} captions")
    return [" ".join(word for word in line.split() if word not in official.PUNCTUATIONS) for line in found]


def cider_and_bleu(pairs: Sequence[tuple[str, list[str]]]) -> dict[str, float]:
    """CIDEr and BLEU@4, times 100, of pairs (caption, references), tokenized; these are also CIDEr's corpus."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    candidates = {i: [caption] for i, (caption, _) in enumerate(pairs)}
    references = {i: captions for i, (_, captions) in enumerate(pairs)}
    cider, _ = Cider().compute_score(references, candidates)
    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    return {"cider": 100 * float(cider), "bleu4": 100 * float(bleu[3])}
