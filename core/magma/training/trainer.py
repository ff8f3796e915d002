"""The training loop: steps, evaluations, checkpoints, and resuming after an end of any kind.

A step is one global batch: `batch_size` examples, over all processes and accumulation steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.loader import Share, Unreadable
from ..data.mixture import Mixture
from ..data.sequence import Batch
from ..errors import TrainingError
from ..model import Magma
from ..plan import Costs
from ..recipe.assemble import DTYPES, learning_rates
from ..recipe.recipe import Recipe
from ..recipe.schema import Train
from ..schedule import lr_multiplier
from ..system.memory import free_unused
from ..system.world import MemoryShort, World
from .buffers import Buffers, average_buffers
from .checkpoints import CheckpointManager
from .data import feed_of, sources, workers_of
from .engine import Engine
from .metrics import METRICS, Log, sizes_of, speeds
from .microbatch import MicroBatch, advice
from .progress import Progress, Watcher
from .rng import own_generators, set_own_generators
from .skipped import SkippedExamples
from .state import Place, State
from .stopping import EarlyStopping, check_learning

_SMOOTH = 0.98
"""Share of the old value in the average loss that a spike is measured by."""


class Trainer:
    """One process's side of a run, or of one of its stages."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        world: World,
        watcher: Watcher,
        model: Magma,
        micro_batch: MicroBatch,
        costs: Costs | None,
        place: Place,
    ) -> None:
        assert recipe.train is not None
        self.recipe, self.out, self.world, self.watcher, self.model = recipe, out, world, watcher, model
        self.micro_batch, self.costs, self.place = micro_batch, costs, place
        self.train: Train = recipe.train
        first = sum(stage.steps for stage in place.finished)
        self.state = State(
            step=first,
            first=first,
            finished=list(place.finished),
            processes=world.size,
            micro_batch=micro_batch.size,
        )
        gpu = world.device != "cpu"
        batches = micro_batch.size, micro_batch.accumulation
        self.feed = feed_of(
            recipe,
            model.collator(self.train.max_length, 8 if gpu else 1),
            world.rank,
            world.size,
            *batches,
            workers=workers_of(self.train, gpu),
            pin=gpu,
        )
        self.mixture = Mixture(*sources(recipe, "train"))
        self.state.data = self.mixture.state()
        self.shares: Iterator[Share] = iter(())
        self.evaluation, _ = sources(recipe, "evaluation")
        model.run_all_inputs = world.size > 1
        self.engine = Engine(model, learning_rates(recipe), self.train, recipe.deepspeed, batches, world)
        self.checkpoints = CheckpointManager(
            out, place, self.train.keep_checkpoints, model, self.engine, world, watcher
        )
        self.early_stopping = EarlyStopping(self.train.early_stopping, self.checkpoints.save)
        self.skipped = SkippedExamples(out, self.train, world)
        self.buffers = Buffers(model)

    # Steps

    def step(self, share: Share, began: float) -> dict[str, Any]:
        """One optimizer step; its row of the metrics. `began` is when its input was asked for."""
        waited = time.perf_counter() - began
        rates = self.engine.rates(lr_multiplier(self.train, self.state.done))
        inputs = list(self.feed.collator.inputs)
        sizes: Sequence[float] = sizes_of(share.batches, inputs)
        targets, too_long, unreadable, *sizes = self.world.sum(
            sum(len(batch.labels) for batch in share.batches), share.too_long, len(share.unreadable), *sizes
        )
        self.skipped.leave_out(self.state, share, int(unreadable))
        if not targets and not unreadable:
            raise TrainingError(f"step {self.state.step + 1}: none of its {share.samples} examples has a target token")
        before = self.buffers.copies()
        # Where everything is left out there is no step: a gradient of zero would still move what has momentum.
        summed = self._gradients(share, targets, before) if targets else torch.zeros(())
        applied = bool(targets) and self.engine.step()
        if not applied:  # BatchNorm has averaged what nobody learns from
            self.buffers.restore(before)
        (total,) = self.world.sum(float(summed))
        mean = total / targets if targets else math.nan
        self._count(mean, share, int(too_long), applied, empty=not targets)
        took = time.perf_counter() - began
        return {
            "step": self.state.step,
            **self.place.mark,
            "loss": mean if math.isfinite(mean) else None,
            "gradient_norm": self.engine.norm if applied and math.isfinite(self.engine.norm) else None,
            "lr": rates,
            "samples": share.samples,
            **({} if applied else {"skipped": True}),
            "waited_s": waited,
            "samples_per_s": share.samples / took,
            **speeds(self.costs, inputs, sizes, took, self.world.size),
        }

    def _gradients(self, share: Share, targets: float, buffers: Sequence[Tensor]) -> Tensor:
        """Forward and backward of all micro-batches: the loss, summed over this process's targets.

        When memory runs out, the step begins again with smaller micro-batches in all processes, from the `buffers` that
        it began with.
        """
        generators = own_generators(self.world)
        while True:
            try:
                with self.world.abandoned_together():
                    return self._accumulate(share.batches, targets)
            except MemoryShort as short:
                failure = str(short)
            self.buffers.restore(buffers)
            set_own_generators(generators)
            self._halve(failure)
            share = next(self.shares)

    def _accumulate(self, batches: Sequence[Batch], targets: float) -> Tensor:
        device, dtype = self.world.device, DTYPES[self.train.precision]
        summed = torch.zeros((), dtype=torch.float64, device=device)
        for i, batch in enumerate(batches):
            loss = self.engine(batch.to(device, dtype))
            summed += loss.detach()
            # DeepSpeed divides by the accumulation steps and averages over the processes.
            if self.train.loss == "token_mean":
                loss = loss * (len(batches) * self.world.size / targets)
            else:
                loss = loss / max(1, len(batch.labels))
            if i + 1 == len(batches) and self._is_spike(summed, targets):
                loss = loss * math.nan  # a gradient that is not finite changes nothing
            self.engine.backward(loss)
        return summed

    def _halve(self, failure: str) -> None:
        """Go on with smaller micro-batches from the state as it is. Raises `OutOfMemory`."""
        size = self.micro_batch.size
        self.micro_batch.halve(failure, advice(self.recipe, self.world.size))
        self.watcher.note(
            f"step {self.state.step + 1}: memory ran out with {size} examples at once ({failure}); "
            f"it is repeated with {self.micro_batch.size}"
        )
        self._use_micro_batch()

    def _use_micro_batch(self) -> None:
        """Bring the engine and what it is fed to the size of micro-batches, at the beginning of a step."""
        size, accumulation = self.micro_batch.size, self.micro_batch.accumulation
        self.engine.restart(size, accumulation)
        free_unused()
        self.state.micro_batch = size
        self.feed = replace(self.feed, micro=size, accumulation=accumulation)
        self.mixture.restore(self.state.data)
        self.shares = self.feed.training(self.mixture, self.state.done)

    def _is_spike(self, summed: Tensor, targets: float) -> bool:
        """Is this loss, summed over this process's targets, too far above those of late? All processes agree."""
        average, limit = self.state.average, self.train.spike_factor
        if limit is None or average is None:
            return False  # without waiting for the GPU
        return self.world.sum(float(summed))[0] / targets > limit * average

    def _count(self, loss: float, share: Share, too_long: int, applied: bool, empty: bool) -> None:
        """Keep book of a step."""
        state = self.state
        state.step += 1
        state.data = share.state
        state.skipped_examples += too_long
        state.applied += applied
        state.skipped_in_a_row = 0 if applied else state.skipped_in_a_row + 1
        state.empty_in_a_row = 0 if applied else state.empty_in_a_row + empty
        if applied:
            state.average = loss if state.average is None else _SMOOTH * state.average + (1 - _SMOOTH) * loss

    # Beside the steps

    @torch.no_grad()
    def evaluate_loss(self) -> float | None:
        """Mean loss per target over the evaluation sets; None where there are none.

        Raises `TrainingError`, after a checkpoint, where too many of their examples cannot be read.
        """
        if not self.evaluation:
            return None
        average_buffers(self.model, self.world)
        while True:
            try:
                with self.world.abandoned_together(), self.model.eval_mode():
                    total, targets, samples, unreadable = self._evaluated()
                break
            except MemoryShort as short:
                failure = str(short)
            self._halve(failure)
        total, counted, count = self.world.sum(total, targets, len(unreadable))
        if count:
            self.skipped.check_evaluated(
                self.state, unreadable, int(count), samples, self.checkpoints.save, self.watcher.say
            )
        return total / counted if counted else None

    def _evaluated(self) -> tuple[float, int, int, list[Unreadable]]:
        """The summed loss of this process's examples, their targets, all examples, and what cannot be read."""
        total, targets, samples = 0.0, 0, 0
        unreadable: list[Unreadable] = []
        for source in self.evaluation:
            for share in self.feed.evaluation(source):
                samples += share.samples
                unreadable += share.unreadable
                for batch in share.batches:
                    loss = self.model(batch.to(self.world.device, DTYPES[self.train.precision]))
                    total, targets = total + float(loss), targets + len(batch.labels)
        return total, targets, samples, unreadable

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint of this run, with as many processes as it had or another number."""
        state = self.checkpoints.load(folder)
        if state.processes != self.world.size:
            self.watcher.say(f"{folder} was written by {state.processes} processes, and {self.world.size} go on")
        self.mixture.restore(state.data)
        same, size = state.processes == self.world.size, state.micro_batch
        state.processes, state.micro_batch = self.world.size, self.micro_batch.size
        self.state = state
        other = size not in (None, self.micro_batch.size)
        if same and size and other and self.train.micro_batch_size == "auto" and not self.micro_batch.share % size:
            self.micro_batch.size = size  # whatever memory is free now, sums keep their order
            self._use_micro_batch()

    def loop(self, stopped: Callable[[], bool]) -> bool:
        """Train to the end, or until all agree to stop; True where the end was reached."""
        total = self.train.total_steps
        first, begun = self.world.rank == 0, self.state.step
        skips = first and self.train.unreadable == "skip"
        with Log(self.out / METRICS, first, begun) as metrics, Log(self.skipped.path, skips, begun) as self.skipped.log:
            self.model.train()
            self.shares = self.feed.training(self.mixture, self.state.done)
            while share := self._next():
                row = self.step(*share)
                metrics.write(row)
                self._tell(row)
                check_learning(self.state, self.train, self.skipped, self.checkpoints.save)
                step, every = self.state.done, self.train.evaluate_every
                if step == total or (every and step % every == 0):
                    value = self.evaluate_loss()
                    if value is not None:
                        metrics.write({"step": self.state.step, **self.place.mark, "evaluation_loss": value})
                        self.watcher.say(f"step {self.state.step}: evaluation loss {value:.4f}")
                        if self.train.early_stopping:
                            metrics.sync()
                            self.skipped.log.sync()
                            if not self.early_stopping.improves(self.state, value):
                                return True
                (end,) = self.world.sum(float(stopped()))
                if end and step < total:
                    return False
                every = self.train.checkpoint_every
                if every and step % every == 0 and step < total:
                    metrics.sync()
                    self.skipped.log.sync()
                    self.checkpoints.save(self.state)
        return True

    def _next(self) -> tuple[Share, float] | None:
        """The input of a step, and when it was asked for."""
        began = time.perf_counter()
        share = next(self.shares, None)
        return None if share is None else (share, began)

    def _tell(self, row: Mapping[str, Any]) -> None:
        told = Progress(
            step=row["step"],
            steps=self.state.first + self.train.total_steps + self.place.later,
            loss=math.nan if row["loss"] is None else row["loss"],
            rates=row["lr"],
            samples_per_s=row["samples_per_s"],
            tokens_per_s=row["tokens_per_s"],
            flops_per_s=row.get("flops_per_s"),
            useful_flops_per_s=row.get("useful_flops_per_s"),
            peak_flops_per_s=self.world.peak if self.train.precision != "fp32" else None,
            memory=self.world.memory(),
            skipped="skipped" in row,
        )
        self.watcher.step(told)
