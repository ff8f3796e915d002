"""What a recipe says of its data, as the loader of one process takes it."""

from __future__ import annotations

import os

from ..interfaces import DataSource
from ..recipe.recipe import Recipe
from ..recipe.schema import Train


def sources(recipe: Recipe, use: str) -> tuple[list[DataSource], list[float]]:
    sources, weights = [], []
    for i, table in enumerate(getattr(recipe.data, use)):
        part, config = recipe.part(f"data.{use}.{i}")
        sources.append(part(config, recipe.seed))
        weights.append(float(table.fields.get("weight", 1.0)))
    return sources, weights


def workers_of(train: Train, gpu: bool) -> int:
    """Processes that prepare batches; where a GPU waits for them, this process's share of the cores, up to 8."""
    if train.workers is not None:
        return train.workers
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(1, share - 1)) if gpu else 0
