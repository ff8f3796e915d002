"""The paper's evaluations of captions (section 4.1.2): CIDEr and BLEU@4, as the official package computes them."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from magma import LocalPath, PartError, Prediction, Text

from ..formats.order import Row
from .question_answering import right
from .rows import Asked, RowsConfig, RowsTask

_NO_JAVA = (
    "java: not found in PATH. CIDEr and BLEU are computed on the tokens of pycocoevalcap's tokenizer, which needs "
    "Java: install a Java runtime, 8 or later (`apt install default-jre-headless`, `conda install openjdk`)"
)


class _DescribedConfig(RowsConfig):
    """`prompt` stands behind the image and is no part of the caption (section 4.1.2)."""

    names = ("id", "caption", "captions", "domain")
    aliases: ClassVar = {"text": "caption"}
    prompt: str = "A picture of"


class _Described(RowsTask):
    """One caption an image, compared with all that people gave it."""

    config: _DescribedConfig
    primary = "cider"
    max_tokens = 32
    stop = ("\n",)

    @classmethod
    def problems(cls, config: RowsConfig) -> list[str]:
        """No rows, or no Java: that is told before a caption is written."""
        return [*super().problems(config), *([] if shutil.which("java") else [_NO_JAVA])]

    def prompt(self, row: Row) -> Text:
        return Text.fill(self.config.prompt)

    def answers(self, row: Row) -> list[str]:
        return [text for text in row.texts("caption", "captions") if text]

    def read(self, split: str) -> Iterator[Asked]:
        """Image by image: rows with a caption each are one, with all captions."""
        for _, rows in groupby(super().read(split), lambda asked: asked.medium.value):
            first, *more = rows
            captions = (caption for one in (first, *more) for caption in one.answers)
            yield replace(first, answers=tuple(captions), group=first.group.removesuffix("-domain"))

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`cider` and `bleu4` times 100, and `cider_<group>`, `bleu4_<group>` of every group's images by themselves."""
        sentences = [[prediction.text, *right(prediction.question)] for prediction in predictions]
        tokens = iter(tokenised([sentence for some in sentences for sentence in some]))
        pairs = [(next(tokens), [next(tokens) for _ in some[1:]]) for some in sentences]
        found: dict[str, float] = {}
        for part, members in _parts(predictions).items():
            found |= {f"{name}{part}": value for name, value in _measured([pairs[i] for i in members]).items()}
        return found

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        """CIDEr weighs a word by how few of the images have it: of a single image every weight is 0."""
        single = [part for part, members in _parts(predictions).items() if len(members) == 1]
        return {f"cider{part}": "of a single image: meaningless, always 0" for part in single}


def _parts(predictions: Sequence[Prediction]) -> dict[str, list[int]]:
    """What a score's name ends with, to the numbers of the predictions that it is of: "" for all, and each group."""
    parts: dict[str, list[int]] = defaultdict(list)
    for i, prediction in enumerate(predictions):
        parts[""].append(i)
        if group := prediction.question.group:
            parts[f"_{group}"].append(i)
    return parts


class CocoCaptionsTask(_Described):
    """Captions of COCO's images: CIDEr and BLEU@4 of the official package, times 100; needs Java."""

    name = "coco_captions"

    class Config(_DescribedConfig):
        """Karpathy's test split; the official ones have `val`."""

        path: LocalPath = Field("coco_captions", validate_default=True)
        split: str = "test"


class NocapsTask(_Described):
    """Captions of nocaps' images, also by domain (in, near, out): CIDEr and BLEU@4, times 100; needs Java."""

    name = "nocaps"
    group_field = "domain"

    class Config(_DescribedConfig):
        """The set has no training split: shots are other images of the same one."""

        path: LocalPath = Field("nocaps", validate_default=True)
        split: str = "val"
        shots_split: str = "val"


def tokenised(sentences: Sequence[str]) -> list[str]:
    """Words of the Penn Treebank in lower case, without punctuation, a space between them.

    The official package calls the same program, through a file in its own folder that is left there on errors; here it
    reads its input. A line break within a sentence is a space. Raises `PartError` where Java fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer as official

    jar = Path(official.__file__).with_name(official.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = "".join(" ".join(sentence.split()) + "\n" for sentence in sentences)
    try:
        done = subprocess.run(command, input=lines.encode(errors="replace"), capture_output=True, check=True)
    except FileNotFoundError as error:
        raise PartError(_NO_JAVA) from error
    except subprocess.CalledProcessError as error:
        raise PartError(f"the tokenizer of captions failed: {error.stderr.decode(errors='replace').strip()}") from error
    found = done.stdout.decode().split("\n")[:-1]
    if len(found) != len(sentences):
        raise PartError(f"the tokenizer of captions gave {len(found)} lines of {len(sentences)}")
    return [" ".join(word for word in line.split() if word not in official.PUNCTUATIONS) for line in found]


def _measured(pairs: Sequence[tuple[str, list[str]]]) -> dict[str, float]:
    """CIDEr and BLEU@4 of (caption, what people said of the image), all in tokens; rarity is counted among these."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    said = {i: [caption] for i, (caption, _) in enumerate(pairs)}
    wanted = {i: captions for i, (_, captions) in enumerate(pairs)}
    cider, _ = Cider().compute_score(wanted, said)
    bleu, _ = Bleu(4).compute_score(wanted, said, verbose=0)
    return {"cider": 100 * float(cider), "bleu4": 100 * float(bleu[3])}
