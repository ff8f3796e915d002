"""A recipe's [deepspeed] table: DeepSpeed's own configuration, without the keys that [train] sets.

DeepSpeed checks it when training starts, because its import takes seconds. Keys of the plan are checked earlier.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWNED_BY_TRAIN = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
    "gradient_clipping": "train.gradient_clipping",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "zero_allow_untested_optimizer": "train.optimizer",
}
"""Keys of DeepSpeed, and the keys of a recipe that set them."""


def problems(table: Mapping[str, Any]) -> list[str]:
    """Mistakes in the table, one line each."""
    found = [
        f"deepspeed.{key}: given {table[key]!r}, but [train] sets it; allowed: {owner} instead"
        for key, owner in OWNED_BY_TRAIN.items()
        if key in table
    ]
    zero = table.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        return [*found, f"deepspeed.zero_optimization: given {zero!r}; allowed: a table, such as {{ stage = 2 }}"]
    stage, bucket = zero.get("stage", 0), zero.get("reduce_bucket_size", 1)
    if not isinstance(stage, int) or stage not in range(4):
        found.append(f"deepspeed.zero_optimization.stage: given {stage!r}; allowed: 0, 1, 2, 3")
    if isinstance(bucket, bool) or not isinstance(bucket, int | float) or not 1 <= bucket < float("inf"):
        found.append(f"deepspeed.zero_optimization.reduce_bucket_size: given {bucket!r}; allowed: a number >= 1")
    return found
