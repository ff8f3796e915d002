"""The training loop: steps, evaluations, checkpoints, and going on after an end of any kind.

A step is one global batch: `batch_size` examples, over all processes and accumulation steps.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import checkpoint
from ..activation_checkpointing import blocks, recompute
from ..data.loader import Feed, Share, Unreadable
from ..data.mixture import Mixture
from ..data.sequence import Batch
from ..errors import CheckpointError, TrainingError, first_of
from ..manifest import (
    CHECKPOINTS,
    STATE,
    Manifest,
    check_state,
    differing,
    dtype_of,
    find,
    fingerprint,
    list_state,
    read_manifest,
)
from ..model import Magma
from ..plan import Costs, Plan, micro_batches, zero_stage
from ..recipe.assemble import DTYPES, assemble, learning_rates
from ..recipe.recipe import Recipe
from ..recipe.schema import Train
from ..schedule import factor
from ..system.memory import free_unused
from ..system.signals import stop_requests
from ..system.world import MemoryShort, World
from .engine import Engine
from .initialize import restore_frozen, start_from
from .inputs import sources, workers_of
from .metrics import METRICS, SKIPPED, Log, sizes_of
from .microbatch import MicroBatch, advice, agreed
from .processes import join
from .progress import Progress, Result, Watcher
from .state import TRAINER, Best, Place, State

_OPTIMIZER = "optimizer.safetensors"
_RANDOM = "random.safetensors"
_ENOUGH = 100
"""Of fewer examples the share that cannot be read says nothing."""
_KEPT = 3
"""Reasons that are remembered for an error."""
_SMOOTH = 0.98
"""Share of the old value in the average loss that a spike is measured by."""


class _Run:
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
        self.saved: Path | None = None  # the checkpoint of this very state
        self.reasons: list[str] = []
        """Why examples could not be read, the first few."""
        gpu = world.device != "cpu"
        batches = micro_batch.size, micro_batch.accumulation
        self.feed = Feed(
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
        model.lockstep = world.size > 1
        self.engine = Engine(model, learning_rates(recipe), self.train, recipe.deepspeed, batches, world)
        self.frozen = self.fingerprints()
        self.buffers = [t for t in model.trained_tensors().values() if not isinstance(t, nn.Parameter)]

    def fingerprints(self) -> dict[str, str]:
        """Of everything that no step may change."""
        return {name: fingerprint(t) for name, t in self.engine.whole(self.model.frozen_tensors())}

    # Steps

    def step(self, share: Share, began: float) -> dict[str, Any]:
        """One optimizer step; its row of the metrics. `began` is when its input was asked for."""
        waited = time.perf_counter() - began
        rates = self.engine.rates(factor(self.train, self.state.done))
        sizes = [
            sum(counts)
            for counts in zip(
                *(sizes_of(batch, list(self.feed.collator.inputs)) for batch in share.batches), strict=True
            )
        ]
        targets, too_long, unreadable, *sizes = self.world.sum(
            sum(len(batch.labels) for batch in share.batches), share.too_long, len(share.unreadable), *sizes
        )
        self._leave_out(share, int(unreadable))
        if not targets and not unreadable:
            raise TrainingError(f"step {self.state.step + 1}: none of its {share.samples} examples has a target token")
        before = [t.clone() for t in self.buffers]
        # Where everything is left out there is no step: a gradient of zero would still move what has momentum.
        summed = self._gradients(share, targets, before) if targets else torch.zeros(())
        applied = bool(targets) and self.engine.step()
        if not applied:  # BatchNorm has averaged what nobody learns from
            for buffer, old in zip(self.buffers, before, strict=True):
                buffer.copy_(old)
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
            **self._speeds(sizes, took),
        }

    def _gradients(self, share: Share, targets: float, buffers: Sequence[Tensor]) -> Tensor:
        """Forward and backward of all micro-batches: the loss, summed over this process's targets.

        When memory runs out, the step begins again with smaller micro-batches in all processes, from the `buffers` that
        it began with.
        """
        generators = self._own_generators()
        while True:
            try:
                with self.world.abandoned_together():
                    return self._accumulate(share.batches, targets)
            except MemoryShort as short:
                failure = str(short)
            for buffer, old in zip(self.buffers, buffers, strict=True):
                buffer.copy_(old)
            self._set_own_generators(generators)
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

    def _leave_out(self, share: Share, count: int) -> None:
        """List this step's examples that cannot be read, `count` over all processes; too many of them end the run.

        They end it before the step: nothing is saved, and what was saved before is good.
        """
        step, state = self.state.step + 1, self.state
        if count:
            found = sorted(itertools.chain(*self.world.gather(share.unreadable)))
            for one in found:
                self.skipped.write({"step": step, **one._asdict()})
            self.reasons += [one.reason for one in found][: _KEPT - len(self.reasons)]
        state.unreadable_examples += count
        drawn = state.done * self.train.batch_size + share.samples
        if drawn >= _ENOUGH and state.unreadable_examples > self.train.max_unreadable * drawn:
            raise TrainingError(
                f"step {step}: {state.unreadable_examples} of the {drawn} examples so far cannot be read, and "
                f"train.max_unreadable allows a share of {self.train.max_unreadable:g}; {self.out / SKIPPED} lists all:"
                f"{first_of(self.reasons)}"
            )

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

    def _speeds(self, sizes: Sequence[float], took: float) -> dict[str, float]:
        """Tokens, and FLOPs of each process, a second; `sizes` are those of `sizes_of`."""
        useful, positions, *media = sizes
        found = {"tokens_per_s": useful / took}
        if self.costs:
            for name, tokens in (("flops_per_s", positions), ("useful_flops_per_s", useful)):
                counted = self.costs.flops(tokens, dict(zip(self.feed.collator.inputs, media, strict=True)))
                found[name] = counted / took / self.world.size
        return found

    # Beside the steps

    @torch.no_grad()
    def evaluate_loss(self) -> float | None:
        """Mean loss per target over the evaluation sets; None where there are none.

        Raises `TrainingError`, after a checkpoint, where too many of their examples cannot be read.
        """
        if not self.evaluation:
            return None
        self.average_buffers()
        while True:
            try:
                with self.world.abandoned_together(), self.model.evaluating():
                    total, targets, samples, unreadable = self._evaluated()
                break
            except MemoryShort as short:
                failure = str(short)
            self._halve(failure)
        total, counted, count = self.world.sum(total, targets, len(unreadable))
        if count:
            self._check_evaluated(unreadable, int(count), samples)
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

    def _check_evaluated(self, unreadable: Sequence[Unreadable], count: int, samples: int) -> None:
        """Say which of the `samples` evaluation examples cannot be read; `count` over all processes."""
        reasons = [one.reason for one in sorted(itertools.chain(*self.world.gather(list(unreadable))))]
        said = f"{count} of the {samples} evaluation examples cannot be read"
        if count == samples or (samples >= _ENOUGH and count > self.train.max_unreadable * samples):
            folder = self.save()
            raise TrainingError(
                f"step {self.state.step}: {said}, and train.max_unreadable allows a share of "
                f"{self.train.max_unreadable:g}; the weights are in {folder}:{first_of(reasons)}"
            )
        self.watcher.say(f"step {self.state.step}: {said} and are left out:{first_of(reasons)}")

    def average_buffers(self) -> None:
        """Each process's BatchNorm saw its own share: the model's statistics are their mean."""
        if self.world.size == 1:
            return
        for tensor in self.model.trained_tensors().values():
            if not isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                torch.distributed.all_reduce(tensor)
                tensor /= self.world.size

    def save(self) -> Path:
        """A checkpoint with the state to go on from, written aside and renamed; nothing where this step has one."""
        folder = self.folder(self.state.step)
        if self.saved == folder:
            return folder
        self.watcher.say(f"saving a checkpoint at step {self.state.step}")
        self.average_buffers()
        tensors = {}
        for name, tensor in self.engine.whole(self.model.stored_tensors()):
            if self.world.rank == 0:
                tensors[name] = tensor.detach().cpu()
        optimizer = self.engine.state(self.state.applied)
        generators = self._generators()
        problem = ""
        if self.world.rank == 0:
            try:
                self._write(folder, tensors, {_OPTIMIZER: optimizer, _RANDOM: generators})
            except Exception as error:  # the disk is full, or no longer there: all processes have to know
                problem = f"{type(error).__name__}: {error}"
        (failed,) = self.world.sum(bool(problem))
        if failed:
            last = f"{self.saved} is the last good one" if self.saved else "there is none yet"
            raise CheckpointError(
                f"{folder} could not be written, and is gone{': ' + problem if problem else ''}; {last}: "
                "make room, then go on with --resume"
            )
        self.saved = folder
        return folder

    def _write(self, folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]) -> None:
        with checkpoint.written_aside(folder) as place:
            (place / STATE).mkdir()
            for name, found in state.items():
                save_file(dict(found), place / STATE / name)
            self.state.scale = self.engine.scale
            text = json.dumps(asdict(self.state))
            (place / STATE / TRAINER).write_text(text, encoding="utf-8")
            notes = {"step": self.state.step, "stage": self.place.number, "state": list_state(place)}
            checkpoint.write(place, self.model, self.place.whole, self.frozen, tensors, **notes)
        kept = {self.folder(stage.checkpoint) for stage in self.state.finished}
        kept |= {self.folder(self.state.best.step)} if self.state.best else set()
        for old in sorted(folder.parent.glob("step-*"))[: -self.train.keep_checkpoints]:
            if old not in kept:
                shutil.rmtree(old)

    def _generators(self) -> dict[str, Tensor]:
        """The random generators of every process, by rank."""
        own = self._own_generators()
        kinds = ("cpu", "device")
        return {f"{kinds[i]}.{rank}": t for rank, one in enumerate(self.world.gather(own)) for i, t in enumerate(one)}

    def _own_generators(self) -> list[Tensor]:
        """Of the CPU, and of this process's GPU."""
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self.world.device != "cpu" else [])]

    def _set_own_generators(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state)

    def folder(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.out / CHECKPOINTS / f"step-{step:08d}"

    def finish(self, finished: bool) -> Path:
        """The last checkpoint; of a finished run that watches its evaluation loss, the best one: later ones go."""
        if not (finished and self.state.best):
            return self.save()
        best = self.folder(self.state.best.step)
        if self.world.rank == 0:
            for later in best.parent.glob("step-*"):
                if later > best:
                    shutil.rmtree(later)
        self.world.barrier()
        return best

    def improves(self, loss: float) -> bool:
        """Keep book of the evaluation loss, and save what is better than all before; False where it is time to end."""
        best = self.state.best
        if best is None or loss < best.loss:
            self.state.best = Best(loss, self.state.step)
            self.save()
            return True
        best.waited += 1
        return best.waited < (self.train.early_stopping or math.inf)

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint of this run, with as many processes as it had or another number."""
        place = folder / STATE
        manifest = read_manifest(folder)
        check_state(folder, manifest)
        checkpoint.keep_text(self.model.lm, folder, manifest)
        self._check_frozen(folder, manifest)
        state = State.read(place / TRAINER)
        trained = self.model.trained_tensors()
        tensors = {name: t for name, t in checkpoint.read_trained(self.model, folder).items() if name in trained}
        try:
            with safe_open(place / _OPTIMIZER, framework="pt") as optimizer:
                self.engine.load(tensors, optimizer, state.applied)
            generators = load_file(place / _RANDOM)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder} has no state to go on from: {error}") from error
        if f"cpu.{self.world.rank}" in generators:
            torch.set_rng_state(generators[f"cpu.{self.world.rank}"])
        if self.world.device != "cpu" and f"device.{self.world.rank}" in generators:
            torch.cuda.set_rng_state(generators[f"device.{self.world.rank}"])
        if state.processes != self.world.size:
            self.watcher.say(f"{folder} was written by {state.processes} processes, and {self.world.size} go on")
        self.engine.scale = state.scale
        self.mixture.restore(state.data)
        same, size = state.processes == self.world.size, state.micro_batch
        state.processes, state.micro_batch = self.world.size, self.micro_batch.size
        self.state, self.saved = state, folder
        other = size not in (None, self.micro_batch.size)
        if same and size and other and self.train.micro_batch_size == "auto" and not self.micro_batch.share % size:
            self.micro_batch.size = size  # whatever memory is free now, sums keep their order
            self._use_micro_batch()

    def _check_frozen(self, folder: Path, manifest: Manifest) -> None:
        """Raise `CheckpointError` unless the frozen weights are those that the run began with, in its precision."""
        if dtype_of(manifest) != self.model.dtype:
            return
        if changed := differing(manifest.frozen, self.frozen):
            for path, entry in manifest.parts.items():
                learns = any(p.requires_grad for p in self.model.part_parameters(path))
                if learns != bool(entry.trained):
                    was, now = ("trained", "frozen") if entry.trained else ("frozen", "trained")
                    raise CheckpointError(
                        f"{folder}: {path} was {was} until now, and this recipe has it {now}: a run that has begun, "
                        "and a stage, trains the same parts to its end"
                    )
            raise CheckpointError(
                f"{folder}: {len(changed)} of {len(self.frozen)} frozen tensors are not what they were, the first is "
                f"{changed[0]}: resume with the weights and the seed that the run began with"
            )

    def loop(self, stopped: Callable[[], bool]) -> bool:
        """Train to the end, or until all agree to stop; True where the end was reached."""
        total = self.train.total_steps
        first, begun = self.world.rank == 0, self.state.step
        skips = first and self.train.unreadable == "skip"
        with Log(self.out / METRICS, first, begun) as metrics, Log(self.out / SKIPPED, skips, begun) as self.skipped:
            self.model.train()
            self.shares = self.feed.training(self.mixture, self.state.done)
            while share := self._next():
                row = self.step(*share)
                metrics.write(row)
                self._tell(row)
                self._stop_where_nothing_is_learnt()
                step, every = self.state.done, self.train.evaluate_every
                if step == total or (every and step % every == 0):
                    value = self.evaluate_loss()
                    if value is not None:
                        metrics.write({"step": self.state.step, **self.place.mark, "evaluation_loss": value})
                        self.watcher.say(f"step {self.state.step}: evaluation loss {value:.4f}")
                        if self.train.early_stopping:
                            metrics.sync()
                            self.skipped.sync()
                            if not self.improves(value):
                                return True
                (end,) = self.world.sum(float(stopped()))
                if end and step < total:
                    return False
                every = self.train.checkpoint_every
                if every and step % every == 0 and step < total:
                    metrics.sync()
                    self.skipped.sync()
                    self.save()
        return True

    def _next(self) -> tuple[Share, float] | None:
        """The input of a step, and when it was asked for."""
        began = time.perf_counter()
        share = next(self.shares, None)
        return None if share is None else (share, began)

    def _stop_where_nothing_is_learnt(self) -> None:
        state, count = self.state, self.state.skipped_in_a_row
        enough = count >= self.train.max_skipped_steps
        if state.empty_in_a_row == count and count and (enough or state.done == self.train.total_steps == count):
            kept = f"the weights from before them are in {self.save()}; " if state.applied else ""
            raise TrainingError(
                f"step {state.step}: no example of the last {count} steps could be read, so that nothing was learnt; "
                f"{kept}{self.out / SKIPPED} lists all {state.unreadable_examples}:{first_of(self.reasons)}"
            )
        if enough:
            folder = self.save()
            empty = f"; of {state.empty_in_a_row} of them no example could be read" if state.empty_in_a_row else ""
            raise TrainingError(
                f"step {self.state.step}: the last {count} steps were skipped, their loss or gradient not finite or a "
                f"spike (train.max_skipped_steps is {self.train.max_skipped_steps}); the weights from before them are "
                f"in {folder}{empty}. Lower train.lr or set train.gradient_clipping, and look at the data"
            )

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


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
    costs: Costs | None = None,
    plan: Plan | None = None,
    place: Place | None = None,
) -> Result:
    """Train a recipe without stages, or one stage at its `place`, and leave its checkpoint under `out`.

    One process, or one of several that a launcher started; `costs` are a plan's, to tell FLOPs a second, and the first
    process's `plan` decides an automatic micro-batch size. Raises `TrainingError`, `CheckpointError`, `OutOfMemory` or
    what a part raises; a signal saves a checkpoint and returns.
    """
    watcher = watcher or Watcher()
    place = place or Place(recipe)
    watcher.say("loading the trainer")
    check_can_train(recipe)
    world = join()
    check_fits(recipe, world)
    assert recipe.train is not None
    micro_batch, said = agreed(recipe, world, plan)
    watcher.note(said)
    partitioned = zero_stage(recipe.train, recipe.deepspeed) == 3  # then each weight moves when its turn comes
    last = latest(out) if resume else None
    start = None if last else place.start or (recipe.init.checkpoint and find(recipe.init.checkpoint))
    model = assemble(recipe, device=None if partitioned or start else world.device, say=watcher.say)
    dtype = DTYPES[recipe.train.precision]
    if last:
        restore_frozen(model, last, dtype)
    if start:
        start_from(model, start, dtype, watcher.say)
        if not partitioned:
            model.to(device=world.device, dtype=dtype)
    recompute(model, recipe.train.activation_checkpointing)
    if recipe.train.compile:
        for block in blocks(model, "train.compile"):
            block.compile(dynamic=True)
    torch.manual_seed(recipe.seed + world.rank)
    with stop_requests() as request:
        watcher.say("starting DeepSpeed")
        run = _Run(recipe, out, world, watcher, model, micro_batch, costs, place)
        if resume:
            _resume(run, last)
        watcher.begun()
        watcher.say("training: the first step takes longer than the others")
        began = time.perf_counter()
        finished = run.loop(lambda: bool(request))
        folder = run.finish(finished)
        seconds = time.perf_counter() - began
        watcher.say("comparing the frozen weights' fingerprints")
        changed = differing(run.frozen, run.fingerprints())
        stopped_by = next(filter(None, world.gather(request.number)), 0)  # any process may have received it
    if place.later:
        run.engine.release()
    state = run.state
    return Result(
        folder=folder,
        steps=state.step,
        seconds=seconds,
        finished=finished and not stopped_by,
        stopped_by=stopped_by,
        frozen=run.frozen,
        changed=changed,
        skipped=state.skipped_examples,
        unreadable=state.unreadable_examples,
        skipped_steps=state.done - state.applied,
        memory=world.memory(),
        device=world.device,
    )


def _resume(run: _Run, last: Path | None) -> None:
    """From the newest checkpoint; from the start where the run ended before it wrote one."""
    if run.world.rank == 0:
        for left in (run.out / CHECKPOINTS).glob(".*"):  # what a sudden end left half-written
            shutil.rmtree(left, ignore_errors=True)
    run.world.barrier()
    if last:
        run.resume(last)
    run.watcher.say(f"going on from step {run.state.step}")


def latest(out: Path) -> Path | None:
    """The newest checkpoint of a run; None where it ended before it wrote one."""
    return find(out) if any((out / CHECKPOINTS).glob("step-*")) else None


def check_can_train(recipe: Recipe, where: str = "") -> None:
    """Raise `TrainingError` where a recipe, or the stage that `where` names, has nothing to train or to train on."""
    if recipe.train is None:
        raise TrainingError(f"{where}the recipe has no [train] table")
    if not recipe.data.train:
        raise TrainingError(f"{where}the recipe has no [[data.train]]: nothing to train on")
    if not learning_rates(recipe):
        raise TrainingError(f"{where}nothing to train: no input and no adapter has a trainable parameter")


def check_fits(recipe: Recipe, world: World) -> None:
    """Raise `TrainingError` for a precision or a batch that these processes cannot have."""
    assert recipe.train is not None
    if recipe.train.precision == "fp16" and world.device == "cpu":
        raise TrainingError('train.precision: given "fp16"; allowed on a CPU: "bf16", "fp32"')
    micro_batches(recipe.train, world.size)
