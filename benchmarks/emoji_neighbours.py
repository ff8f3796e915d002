"""A yardstick for recipes/emoji.toml: the name of the most similar training picture, by the encoder's mean feature.

`python -m benchmarks.emoji_neighbours data/emoji` prints how often that name is right, without any language model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from magma_data.formats import open_rows
from magma_data.formats.row import Row
from magma_data.metrics.short_answers import same_words, word_f1
from magma_vision.timm_features import Timm
from torch import Tensor
from torch.nn.functional import normalize

from magma import Recipe

BATCH = 64


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Lists of `size` rows, the last one perhaps shorter."""
    return iter(lambda: list(islice(rows, size)), [])


@torch.no_grad()
def embed(encoder: Timm, shards: Path, split: str, style: str) -> tuple[list[str], Tensor]:
    """Names of the pictures of a style that are no flags, and their mean features [n, e] of length 1."""
    rows = open_rows(str(shards), split, None).iter_in_stored_order()
    names, features = [], []
    for batch in _batches((row for row in rows if row.value("style") == style and row.value("country") is None), BATCH):
        names += [row.text("name") for row in batch]
        features.append(encoder(torch.stack([encoder.prepare(row.medium) for row in batch])).values.mean(1))
    return names, normalize(torch.cat(features), dim=1)


def main() -> None:
    """Print the scores as JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("shards", type=Path, help="A folder that `magma data convert emoji` wrote.")
    arguments.add_argument("--image-size", type=int, help="Pixels per side. Default: that of the recipe.")
    given = arguments.parse_args()
    fields = dict(Recipe.load("emoji").inputs["image"].encoder.model_dump(exclude={"use"}))
    if given.image_size:
        fields["image_size"] = given.image_size
    encoder = Timm.build(**fields).eval()
    asked, questions = embed(encoder, given.shards, "style", "twemoji")
    trained = {style: embed(encoder, given.shards, "train", style) for style in ("noto", "openmoji")}
    for styles in (["noto"], ["openmoji"], ["noto", "openmoji"]):
        known = [name for style in styles for name in trained[style][0]]
        memory = torch.cat([trained[style][1] for style in styles])
        answers = [known[i] for i in (questions @ memory.T).argmax(1)]
        pairs = list(zip(answers, asked, strict=True))
        scores = {
            "exact": sum(same_words(answer, [name]) for answer, name in pairs) / len(pairs),
            "word_f1": sum(word_f1(answer, [name]) for answer, name in pairs) / len(pairs),
        }
        print(json.dumps({"memory": styles, "pictures": len(pairs), **{k: round(v, 3) for k, v in scores.items()}}))


if __name__ == "__main__":
    main()
