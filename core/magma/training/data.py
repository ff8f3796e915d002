"""Data sources and loader of a recipe, for one process."""

from __future__ import annotations

import os

from ..data.collator import Collator
from ..data.loader import RankLoader
from ..interfaces import DataSource
from ..recipe.recipe import Recipe
from ..recipe.schema import Train


def build_sources(recipe: Recipe, use: str) -> tuple[list[DataSource], list[float]]:
    """The data sources of one use (`train` or `evaluation`), and their weights."""
    found, weights = [], []
    for i, table in enumerate(getattr(recipe.data, use)):
        part, config = recipe.part(f"data.{use}.{i}")
        found.append(part(config, recipe.seed))
        weights.append(float(table.fields.get("weight", 1.0)))
    return found, weights


def num_workers(train: Train, gpu: bool) -> int:
    """Number of worker processes; by default, with a GPU, this process's part of the CPU cores, up to 8."""
    if train.workers is not None:
        return train.workers
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(1, share - 1)) if gpu else 0


def make_loader(
    recipe: Recipe,
    collator: Collator,
    rank: int,
    size: int,
    micro: int,
    accumulation: int,
    workers: int,
    pin: bool,
) -> RankLoader:
    """The loader of one of `size` processes; a step has `accumulation` micro-batches of `micro` examples."""
    train = recipe.train
    assert train is not None
    return RankLoader(
        collator,
        seed=recipe.seed,
        batch_size=train.batch_size,
        samples=train.samples or train.total_steps * train.batch_size,
        rank=rank,
        size=size,
        micro=micro,
        accumulation=accumulation,
        packing=train.packing,
        skip_too_long=train.too_long == "skip",
        skip_unreadable=train.unreadable == "skip",
        evaluate_samples=train.evaluate_samples,
        workers=workers,
        pin=pin,
    )
