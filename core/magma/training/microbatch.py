"""The size of a micro-batch: what fits into memory by the plan's estimate, and less of it when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import OutOfMemory
from ..plan import Plan, divisors, micro_batches, zero_stage
from ..recipe.recipe import Recipe
from ..recipe.schema import Train
from ..system.memory import available, first_line, ran_out
from ..system.ranks import ranks
from ..system.world import World

USABLE = 0.9
"""Share of the memory that a plan may fill: the allocator, kernels and communication need some more."""


class Choice(NamedTuple):
    """Examples that a process takes at once, and why."""

    size: int
    reason: str


def choose(train: Train, processes: int, plan: Plan | None, memory: int) -> Choice:
    """The micro-batch size of a run on devices of so many bytes. Raises `TrainingError` where shares do not divide."""
    largest, _ = micro_batches(train, processes)
    share = train.batch_size // processes
    if train.micro_batch_size != "auto":
        return Choice(largest, "train.micro_batch_size says so")
    if train.loss == "micro_batch_mean":
        return Choice(share, 'train.loss = "micro_batch_mean" depends on it, so that memory does not decide it')
    if plan is None or plan.needed(share) is None:
        return Choice(share, "its memory cannot be estimated")
    fitting = [n for n in divisors(share) if (plan.needed(n) or 0) <= USABLE * memory]
    size = max(fitting, default=1)
    needed = f"an estimated {_gigabytes(plan.needed(size))} of {_gigabytes(memory)} available"
    if size == share:
        return Choice(share, needed)
    larger = min(n for n in divisors(share) if n > size) if fitting else None
    return Choice(size, f"{needed}; {larger} need {_gigabytes(plan.needed(larger))}" if larger else needed)


def fitted(plan: Plan, train: Train, memory: int) -> Plan:
    """A plan with the micro-batch size that a run on such devices gets."""
    if plan.length is None:
        return plan
    size = choose(train, plan.world, plan, memory).size
    share = train.batch_size // plan.world
    return replace(plan, length=replace(plan.length, micro_batch_size=size, accumulation=share // size))


@dataclass
class MicroBatch:
    """The size that all processes of a run use at this moment."""

    train: Train
    processes: int
    size: int
    table: str = ""
    """What the plan says of the memory, for errors."""

    @property
    def share(self) -> int:
        """Examples of a global batch that each process gets."""
        return self.train.batch_size // self.processes

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.share // self.size

    def halve(self, failure: str, advice: str) -> None:
        """About half of it, so that the share divides evenly. Raises `OutOfMemory` where it is a single example."""
        if self.size == 1:
            raise OutOfMemory(f"memory ran out with a single example in each process: {failure}{self.table}\n{advice}")
        if self.train.loss == "micro_batch_mean":
            raise OutOfMemory(
                f"memory ran out with {self.size} examples in each process: {failure}{self.table}\n"
                'train.loss = "micro_batch_mean" depends on the size of a micro-batch, which therefore stays: '
                "set a smaller train.micro_batch_size"
            )
        self.size = max(n for n in divisors(self.share) if n <= self.size // 2)


def agreed(recipe: Recipe, world: World, plan: Plan | None) -> tuple[MicroBatch, str]:
    """The size that all processes start with, and a sentence that says why: the first one's plan decides."""
    train = recipe.train
    assert train is not None
    memory = min(world.gather(available(world.device)))
    size, reason = world.gather(choose(train, world.size, plan, memory))[0]
    table = _table(plan) if plan else ""
    found = MicroBatch(train, world.size, size, table)
    times = "at once" if found.accumulation == 1 else f"in {found.accumulation} micro-batches of {size}"
    each = " in each process" if world.size > 1 else ""
    return found, f"a step takes {found.share} examples{each} {times}: {reason}"


def advice(recipe: Recipe, processes: int) -> str:
    """What would need less memory, and is not done yet."""
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
    ideas.append(f"shorter sequences: a smaller train.max_length{length}, media of fewer positions")
    return "What needs less:" + "".join(f"\n  - {idea}" for idea in ideas)


@contextmanager
def explained(recipe: Recipe, plan: Plan | None = None) -> Iterator[None]:
    """Memory that runs out where no smaller micro-batch helps: for weights or the optimizer's state."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        table, processes = _table(plan) if plan else "", ranks().size
        raise OutOfMemory(f"memory ran out: {first_line(error)}{table}\n{advice(recipe, processes)}") from error


def _table(plan: Plan) -> str:
    """Gigabytes of one GPU at every stage of ZeRO, for a text."""
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
