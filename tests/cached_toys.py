"""A model that reads files of numbers through a feature cache: what the tests of the cache share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from toys import ToyLM, ToyPrefix

from magma import Encoder, Example, Features, Input, InputError, Magma, Media, PartConfig, Text
from magma.feature_cache.cache import FeatureCache


class FileEncoder(Encoder):
    """Files of numbers, one feature for each number. It counts what it is asked for."""

    name = "numbers"
    modality = "numbers"
    calls: ClassVar[dict[str, int]] = {"prepare": 0, "forward": 0}

    class Config(PartConfig):
        scale: float = 1.0
        noise: bool = False

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dim, self.length = 6, 8
        self.network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 6))

    @classmethod
    def augments(cls, config: Any) -> bool:
        return bool(config.noise)

    def accepts(self, raw: Any) -> bool:
        return isinstance(raw, Path | list)

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        self.calls["prepare"] += 1
        try:
            numbers = raw if isinstance(raw, list) else [float(word) for word in Path(raw).read_text().split()]
        except (OSError, ValueError) as error:
            raise InputError(f"{raw} cannot be read: {error}") from error
        return torch.tensor(numbers) * self.config.scale

    def num_features(self, prepared: Tensor) -> int:
        return len(prepared)

    def stack(self, items: Any) -> Tensor:
        return nn.utils.rnn.pad_sequence(list(items), batch_first=True, padding_value=float("inf"))

    def dummy_item(self) -> Tensor:
        return torch.zeros(1)

    def forward(self, x: Tensor) -> Features:
        self.calls["forward"] += 1
        real = x.isfinite()
        grid = self.network(torch.where(real, x, 0)[..., None]).mT.contiguous()
        return Features(grid.mT, real.sum(1))  # strides as those of a grid that was flattened


def build_model(cache: FeatureCache | None, encoder: FileEncoder | None = None, seed: int = 0) -> Magma:
    torch.manual_seed(seed)
    encoder = encoder or FileEncoder(FileEncoder.Config())
    lm = ToyLM(ToyLM.Config())
    prefix = ToyPrefix(PartConfig(), encoder.dim, encoder.length, lm.embedding_dim)
    return Magma(lm, {"numbers": Input(encoder, prefix, trainable=False, cache=cache)})


def write_files(folder: Path, count: int = 8, length: int = 3) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{i}.txt" for i in range(count)]
    for i, file in enumerate(files):
        file.write_text(" ".join(str(round(0.1 * i + 0.37 * k, 3)) for k in range(length)))
    return files


def epoch(model: Magma, files: list[Path], order: int = 0, batch_size: int = 4) -> list[float]:
    """Losses of one epoch in another order, with one medium in each example."""
    files = random.Random(order).sample(files, len(files))
    collator, found = model.collator(), []
    for first in range(0, len(files), batch_size):
        examples = [
            Example([Media("numbers", file), Text(f" {file.stem}", target=True)], file.name)
            for file in files[first : first + batch_size]
        ]
        rng = random.Random(0)
        encoded = [collator.encode_example(example, rng) for example in examples]
        found.append(float(model.loss(collator.pad(encoded).to("cpu", torch.float32)).detach()))
    return found
