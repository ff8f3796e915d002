"""The training loop: steps, evaluations, checkpoints, and how a run resumes.

A step is one global batch: `batch_size` examples, over all processes and accumulation steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..callbacks import CallbackContext
from ..data.loader import RankBatch, SkippedExample
from ..data.mixture import Mixture
from ..data.sequence import Batch
from ..errors import TrainingError
from ..manifest import STATE
from ..model import Magma
from ..plan import Costs
from ..recipe.assemble import DTYPES, learning_rates
from ..recipe.recipe import Recipe
from ..recipe.schema import Train
from ..schedule import lr_multiplier
from ..system.distributed import DistributedContext, MemoryExhausted
from ..system.memory import free_unused
from .auxiliary import AuxiliaryObjective
from .buffers import Buffers, average_buffers
from .callback_handler import CallbackHandler
from .callback_states import read_states
from .checkpoints import CheckpointManager
from .data import build_sources, make_loader, num_workers
from .engine import Engine
from .metrics import MetricsLogger, StepResult, batch_sizes
from .microbatch import MicroBatch, memory_advice
from .progress import Callbacks
from .rng import get_rng_states, set_rng_states
from .skipped import SkipLog
from .state import StageContext, TrainerState
from .stopping import EarlyStopping, raise_if_too_many_skipped

_LOSS_EMA_DECAY = 0.98
"""Of the moving average of the loss that a spike is compared with."""


class _Counts(NamedTuple):
    """What a step's batch has, summed over the processes."""

    targets: int
    too_long: int
    unreadable: int
    sizes: list[float]
    """What `batch_sizes` gives."""
    items: list[float]
    """Items of each auxiliary loss."""


class Trainer:
    """Trains one recipe, or one of its stages, in one of several processes."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        world: DistributedContext,
        callbacks: Callbacks,
        model: Magma,
        micro_batch: MicroBatch,
        costs: Costs | None,
        stage: StageContext,
    ) -> None:
        assert recipe.train is not None
        self.recipe, self.world, self.callbacks, self.model = recipe, world, callbacks, model
        self.micro_batch, self.out = micro_batch, out
        self.train: Train = recipe.train
        first = sum(earlier.steps for earlier in stage.finished)
        self.state = TrainerState(
            step=first,
            first=first,
            finished=list(stage.finished),
            processes=world.size,
            micro_batch=micro_batch.size,
        )
        gpu = world.device != "cpu"
        batches = micro_batch.size, micro_batch.accumulation
        self.loader = make_loader(
            recipe,
            model.collator(self.train.max_length, 8 if gpu else 1),
            world.rank,
            world.size,
            *batches,
            workers=num_workers(self.train, gpu),
            pin=gpu,
        )
        self.mixture = Mixture(*build_sources(recipe, "train"))
        self.state.data = self.mixture.state_dict()
        self.batches: Iterator[RankBatch] = iter(())
        self.evaluation, _ = build_sources(recipe, "evaluation")
        model.run_all_inputs = world.size > 1
        self.engine = Engine(model, learning_rates(recipe), self.train, recipe.deepspeed, batches, world)
        self.checkpoints = CheckpointManager(
            out, stage, self.train.keep_checkpoints, model, self.engine, world, callbacks
        )
        self.handler = CallbackHandler(recipe, world, self.checkpoints)
        self.learning_rates: dict[str, float] = {}
        """Of the current step, or of the last one."""
        self.early_stopping = EarlyStopping(self.train.early_stopping)
        self.skipped = SkipLog(out, self.train, world)
        self.metrics = MetricsLogger(out, stage, self.train, list(self.loader.collator.inputs), costs, world, callbacks)
        self.buffers = Buffers(model)
        self.auxiliary = AuxiliaryObjective(model, self.train.loss_weights or {})

    # The loop

    def loop(self, stop_requested: Callable[[], bool]) -> bool:
        """Train to the end, or until a process is asked to stop; True if the end was reached."""
        total = self.train.total_steps
        with self.metrics.log.open(self.state.step), self.skipped.log.open(self.state.step):
            self.model.train()
            self.batches = self.loader.training(self.mixture, self.state.done)
            self._call("on_train_begin")
            self.handler.state_dicts(self.state.step)  # a mistake in it is found before the first step
            while True:
                began = time.perf_counter()
                batch = next(self.batches, None)
                if batch is None:
                    return True
                row = self.metrics.log_step(self.state, self.step(batch, began))
                self._call("on_step_end", metrics=row)
                raise_if_too_many_skipped(self.state, self.train, self.skipped, self.save)
                done = self.state.done
                if (done == total or _is_due(done, self.train.evaluate_every)) and not self._evaluate():
                    return True
                end, save = self.world.sum(stop_requested() or bool(self.handler.stop), self.handler.checkpoint)
                if end and done < total:
                    return False
                if (save or _is_due(done, self.train.checkpoint_every)) and done < total:
                    self._sync_logs()
                    self.save()

    def _evaluate(self) -> bool:
        """Compute and record the evaluation loss; False where training has to stop early."""
        value = self.evaluate_loss()
        if value is None:
            return True
        self._call("on_evaluate", metrics=self.metrics.log_evaluation(self.state.step, value))
        if not self.train.early_stopping:
            return True
        self._sync_logs()
        if self.early_stopping.update(self.state.step, value):
            self.save()
        return not self.early_stopping.should_stop

    def _sync_logs(self) -> None:
        """Before a checkpoint, the rows up to its step are on disk."""
        self.metrics.log.sync()
        self.skipped.log.sync()

    def _call(
        self, hook: str, step: int | None = None, metrics: dict[str, Any] | None = None, checkpoint: Path | None = None
    ) -> None:
        """Call a hook of the recipe's callbacks."""
        if not self.handler:
            return
        drawn = self.state.done * self.train.batch_size
        context = CallbackContext(
            model=self.model,
            run_folder=self.out,
            step=self.state.step if step is None else step,
            total_steps=self.metrics.total_steps,
            samples=min(drawn, self.train.samples or drawn),
            metrics=MappingProxyType(metrics or {}),
            learning_rates=MappingProxyType(self.learning_rates),
            checkpoint=checkpoint,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        self.handler.call(hook, context)

    # Steps

    def step(self, batch: RankBatch, began: float) -> StepResult:
        """One optimizer step. `began` is the time when its batch was requested."""
        waited = time.perf_counter() - began
        rates = self.learning_rates = self.engine.set_lr(lr_multiplier(self.train, self.state.done))
        counts = self._sum_counts(batch)
        self.skipped.record(self.state, batch, counts.unreadable)
        if not counts.targets and not counts.unreadable:
            raise TrainingError(f"step {self.state.step + 1}: none of its {batch.samples} examples has a target token")
        self._call("on_step_begin", self.state.step + 1)
        buffers = self.buffers.copies()
        # Without any target there is no step: a gradient of zero would still move what has momentum.
        summed = self._forward_backward(batch, counts, buffers) if counts.targets else torch.zeros(1)
        applied = bool(counts.targets) and self.engine.step()
        if not applied:
            self.buffers.restore(buffers)  # BatchNorm's statistics must not include a skipped batch
        total, *means = self.world.sum(*summed.tolist())
        loss = total / counts.targets if counts.targets else math.nan
        auxiliary = self.auxiliary.by_name(means, counts.items) if means else {}
        self._update_state(batch, loss, counts, applied)
        return StepResult(loss, auxiliary, self.engine.norm, applied, rates, batch.samples, counts.sizes, began, waited)

    def _sum_counts(self, batch: RankBatch) -> _Counts:
        """What all processes have of this step."""
        items = self.auxiliary.count_items(batch.batches)
        targets, too_long, unreadable, *others = self.world.sum(
            sum(len(micro.labels) for micro in batch.batches),
            batch.too_long,
            len(batch.unreadable),
            *items,
            *batch_sizes(batch.batches, self.metrics.inputs),
        )
        return _Counts(int(targets), int(too_long), int(unreadable), others[len(items) :], others[: len(items)])

    def _forward_backward(self, batch: RankBatch, counts: _Counts, buffers: Sequence[Tensor]) -> Tensor:
        """Forward and backward pass of all micro-batches.

        If memory runs out in any process, all of them repeat the step with smaller micro-batches, from the `buffers`
        and random generators that it began with.

        Returns:
            What `_accumulate` returns.
        """
        generators = get_rng_states(self.world)
        while True:
            try:
                with self.world.abort_together():
                    return self._accumulate(batch.batches, counts)
            except MemoryExhausted as error:
                failure = str(error)
            self.buffers.restore(buffers)
            set_rng_states(generators)
            self._halve_micro_batch(failure)
            batch = next(self.batches)

    def _accumulate(self, batches: Sequence[Batch], counts: _Counts) -> Tensor:
        """Forward and backward pass of some micro-batches.

        Returns:
            The loss, summed over this process's targets, and what they add to the mean of each auxiliary loss.
        """
        device, dtype = self.world.device, DTYPES[self.train.precision]
        summed = torch.zeros(1 + len(counts.items), dtype=torch.float64, device=device)
        # DeepSpeed divides by the accumulation steps and averages over the processes.
        parts = len(batches) * self.world.size
        for i, batch in enumerate(batches):
            loss, found = self.engine(batch.to(device, dtype), bool(self.auxiliary))
            summed[0] += loss.detach()
            if self.train.loss == "token_mean":
                loss = loss * (parts / counts.targets)
            else:
                loss = loss / max(1, len(batch.labels))
            if self.auxiliary:
                means = self.auxiliary.means(found, batch, counts.items)
                summed[1:] += means.detach()
                loss = loss + parts * self.auxiliary.weighted(means)
            is_last = i + 1 == len(batches)
            self.engine.backward(loss, skip=is_last and self._is_spike(summed[0], counts.targets))
        return summed

    def _is_spike(self, summed: Tensor, targets: int) -> bool:
        """Whether the step's loss is too far above the moving average; `summed` is over this process's targets.

        All processes get the same answer.
        """
        average, limit = self.state.loss_ema, self.train.spike_factor
        if limit is None or average is None:
            return False  # without waiting for the GPU
        return self.world.sum(float(summed))[0] / targets > limit * average

    def _update_state(self, batch: RankBatch, loss: float, counts: _Counts, applied: bool) -> None:
        """Count a step."""
        state = self.state
        state.step += 1
        state.data = batch.state
        state.skipped_examples += counts.too_long
        state.applied += applied
        state.skipped_in_a_row = 0 if applied else state.skipped_in_a_row + 1
        state.empty_in_a_row = 0 if applied else state.empty_in_a_row + (not counts.targets)
        if applied:
            before = state.loss_ema
            state.loss_ema = loss if before is None else _LOSS_EMA_DECAY * before + (1 - _LOSS_EMA_DECAY) * loss

    # Memory

    def _halve_micro_batch(self, failure: str) -> None:
        """Use smaller micro-batches from now on. Raises `OutOfMemory` if that is not possible."""
        size = self.micro_batch.size
        self.micro_batch.halve(failure, memory_advice(self.recipe, self.world.size))
        self.callbacks.note(
            f"step {self.state.step + 1}: memory ran out with {size} examples at once ({failure}); "
            f"it is repeated with {self.micro_batch.size}"
        )
        self._apply_micro_batch()

    def _apply_micro_batch(self) -> None:
        """Set the size of micro-batches in engine and loader, at the start of a step."""
        size, accumulation = self.micro_batch.size, self.micro_batch.accumulation
        self.engine.restart(size, accumulation)
        free_unused()
        self.state.micro_batch = size
        self.loader = replace(self.loader, micro=size, accumulation=accumulation)
        self.mixture.load_state_dict(self.state.data)
        self.batches = self.loader.training(self.mixture, self.state.done)

    # Evaluation

    @torch.no_grad()
    def evaluate_loss(self) -> float | None:
        """Mean loss per target over the evaluation sets; None if there are none.

        Raises:
            TrainingError: If too many of their examples cannot be read, after saving a checkpoint.
        """
        if not self.evaluation:
            return None
        average_buffers(self.model, self.world)
        while True:
            try:
                with self.world.abort_together(), self.model.eval_mode():
                    total, targets, samples, unreadable = self._sum_evaluation()
                break
            except MemoryExhausted as error:
                failure = str(error)
            self._halve_micro_batch(failure)
        total, counted, count = self.world.sum(total, targets, len(unreadable))
        if count:
            self.skipped.check_evaluation(
                self.state.step, unreadable, int(count), samples, self.save, self.callbacks.say
            )
        return total / counted if counted else None

    def _sum_evaluation(self) -> tuple[float, int, int, list[SkippedExample]]:
        """The summed loss of this process's examples, their targets, all examples, and what cannot be read."""
        total, targets, samples = 0.0, 0, 0
        unreadable: list[SkippedExample] = []
        for source in self.evaluation:
            for found in self.loader.evaluation(source):
                samples += found.samples
                unreadable += found.unreadable
                for batch in found.batches:
                    loss = self.model(batch.to(self.world.device, DTYPES[self.train.precision]))
                    total, targets = total + float(loss), targets + len(batch.labels)
        return total, targets, samples, unreadable

    # Checkpoints

    def save(self) -> Path:
        """Save a checkpoint of the current step."""
        self.state.early_stopping = self.early_stopping.state_dict()
        best, before = self.early_stopping.best, self.checkpoints.last
        states = self.handler.state_dicts(self.state.step)
        folder = self.checkpoints.save(self.state, best.step if best else None, states)
        self.handler.checkpoint = False
        if folder != before:
            self._call("on_save", checkpoint=folder)
        return folder

    def finish(self, finished: bool) -> Path:
        """The run's result: the last checkpoint, or the best one of a finished run with early stopping.

        Checkpoints after the best one are removed.
        """
        best = self.early_stopping.best
        folder = self.checkpoints.remove_after(best.step) if finished and best else self.save()
        self._call("on_train_end", checkpoint=folder)
        return folder

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint of this run, with the same number of processes or another one."""
        state = self.checkpoints.load(folder)
        if state.processes != self.world.size:
            self.callbacks.say(
                f"{folder} was written by {state.processes} processes; {self.world.size} processes continue"
            )
        self.mixture.load_state_dict(state.data)
        self.early_stopping.load_state_dict(state.early_stopping)
        for label in self.handler.load_state_dicts(read_states(folder / STATE), state.step):
            self.callbacks.note(f"callback {label}: the recipe has it no longer; its state is not loaded")
        same, size = state.processes == self.world.size, state.micro_batch
        state.processes, state.micro_batch = self.world.size, self.micro_batch.size
        self.state = state
        differs = size not in (None, self.micro_batch.size)
        if same and size and differs and self.train.micro_batch_size == "auto" and not self.micro_batch.share % size:
            self.micro_batch.size = size  # the order of sums stays the same, whatever memory is free now
            self._apply_micro_batch()


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps is due after this one; 0: never."""
    return bool(every) and step % every == 0
