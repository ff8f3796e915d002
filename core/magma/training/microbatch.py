"""The micro-batch size: what fits into memory by the plan's estimate; it becomes smaller if memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import OutOfMemory
from ..plan import Plan, divisors, split_batch, zero_stage
from ..recipe.recipe import Recipe
from ..recipe.schema import Train
from ..system.distributed import DistributedContext
from ..system.memory import available, memory_error_summary, ran_out
from ..system.ranks import ranks

USABLE = 0.9
"""Fraction of the memory that a plan may fill; the allocator, kernels and communication need the rest."""


class Choice(NamedTuple):
    """A micro-batch size, and the reason for it."""

    size: int
    reason: str


def choose_micro_batch(train: Train, processes: int, plan: Plan | None, memory: int) -> Choice:
    """The micro-batch size of a run on devices with `memory` bytes. Raises `TrainingError` if sizes do not divide."""
    largest, _ = split_batch(train, processes)
    share = train.batch_size // processes
    if train.micro_batch_size != "auto":
        return Choice(largest, "set by train.micro_batch_size")
    if train.loss == "micro_batch_mean":
        return Choice(share, 'not chosen by memory, because train.loss = "micro_batch_mean" depends on it')
    if plan is None or plan.needed_memory(share) is None:
        return Choice(share, "the memory cannot be estimated")
    fitting = [n for n in divisors(share) if (plan.needed_memory(n) or 0) <= USABLE * memory]
    size = max(fitting, default=1)
    needed = f"an estimated {_gigabytes(plan.needed_memory(size))} of {_gigabytes(memory)} available"
    if size == share:
        return Choice(share, needed)
    larger = min(n for n in divisors(share) if n > size) if fitting else None
    return Choice(size, f"{needed}; {larger} need {_gigabytes(plan.needed_memory(larger))}" if larger else needed)


def fit_micro_batch(plan: Plan, train: Train, memory: int) -> Plan:
    """A plan with the micro-batch size that a run on devices with `memory` bytes gets."""
    if plan.length is None:
        return plan
    size = choose_micro_batch(train, plan.world, plan, memory).size
    share = train.batch_size // plan.world
    return replace(plan, length=replace(plan.length, micro_batch_size=size, accumulation=share // size))


@dataclass
class MicroBatch:
    """The micro-batch size that all processes of a run use now."""

    train: Train
    processes: int
    size: int
    table: str = ""
    """The plan's estimate of the memory, for errors."""

    @property
    def share(self) -> int:
        """Examples of a global batch that each process gets."""
        return self.train.batch_size // self.processes

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.share // self.size

    def halve(self, failure: str, advice: str) -> None:
        """Use about half of it, a divisor of the share. Raises `OutOfMemory` if it is a single example."""
        if self.size == 1:
            raise OutOfMemory(f"memory ran out with a single example in each process: {failure}{self.table}\n{advice}")
        if self.train.loss == "micro_batch_mean":
            raise OutOfMemory(
                f"memory ran out with {self.size} examples in each process: {failure}{self.table}\n"
                'train.loss = "micro_batch_mean" depends on the micro-batch size, so it is not reduced: '
                "set a smaller train.micro_batch_size"
            )
        self.size = max(n for n in divisors(self.share) if n <= self.size // 2)


def agree_on_micro_batch(recipe: Recipe, world: DistributedContext, plan: Plan | None) -> tuple[MicroBatch, str]:
    """The size that all processes start with, chosen by the first one's plan, and a sentence with the reason."""
    train = recipe.train
    assert train is not None
    memory = min(world.gather(available(world.device)))
    size, reason = world.gather(choose_micro_batch(train, world.size, plan, memory))[0]
    table = _table(plan) if plan else ""
    found = MicroBatch(train, world.size, size, table)
    count = "at once" if found.accumulation == 1 else f"in {found.accumulation} micro-batches of {size}"
    each = " in each process" if world.size > 1 else ""
    return found, f"a step takes {found.share} examples{each} {count}: {reason}"


def memory_advice(recipe: Recipe, processes: int) -> str:
    """Settings that would need less memory and are not used yet."""
    train = recipe.train
    assert train is not None
    ideas = []
    if train.activation_checkpointing != "all":
        ideas.append(f'train.activation_checkpointing = "all" (it is "{train.activation_checkpointing}")')
    if (stage := zero_stage(train, recipe.deepspeed)) < 3:
        where = "" if processes > 1 else " with several GPUs (--nproc)"
        ideas.append(f"deepspeed.zero_optimization.stage = 3{where} (it is {stage})")
    if train.precision == "fp32":
        ideas.append('train.precision = "bf16" (it is "fp32")')
    length = f" (it is {train.max_length})" if train.max_length else " (it is the context)"
    ideas.append(f"shorter sequences: a smaller train.max_length{length}, media with fewer positions")
    return "To need less memory:" + "".join(f"\n  - {idea}" for idea in ideas)


@contextmanager
def explain_out_of_memory(recipe: Recipe, plan: Plan | None = None) -> Iterator[None]:
    """Raise `OutOfMemory` with advice if memory runs out and a smaller micro-batch does not help, as for weights."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        table, processes = _table(plan) if plan else "", ranks().size
        raise OutOfMemory(
            f"memory ran out: {memory_error_summary(error)}{table}\n{memory_advice(recipe, processes)}"
        ) from error


def _table(plan: Plan) -> str:
    """A text table: gigabytes of one GPU at every stage of ZeRO."""
    if plan.length is None:
        return ""
    lines: list[tuple[str, ...]] = [("", "weights", "gradients", "buffers", "optimizer", "one example")]
    for stage in (1, 2, 3):
        row = next(row for row in plan.memory if row.stage == stage)
        name = f"ZeRO {stage}{' (this run)' if stage == plan.length.stage else ''}"
        sizes = (row.weights, row.gradients, row.buffers, row.optimizer, plan.activation_bytes_per_sample)
        lines.append((name, *map(_gigabytes, sizes)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\nThe plan's estimate of each GPU:" + "".join(f"\n  {row}" for row in rows)


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.3g} GB"
