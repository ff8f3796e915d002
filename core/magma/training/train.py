"""Train a recipe, or one of its stages: check it, build the model, run the trainer, and say how it ended."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ..activation_checkpointing import blocks, recompute
from ..errors import TrainingError
from ..manifest import differing, find
from ..plan import Costs, Plan, micro_batches, zero_stage
from ..recipe.assemble import DTYPES, assemble, learning_rates
from ..recipe.recipe import Recipe
from ..system.signals import stop_requests
from ..system.world import World
from .checkpoints import latest, remove_unfinished
from .initialize import restore_frozen, start_from
from .microbatch import agreed
from .processes import join
from .progress import Result, Watcher
from .state import Place
from .trainer import Trainer


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
        run = Trainer(recipe, out, world, watcher, model, micro_batch, costs, place)
        if resume:
            _resume(run, last)
        watcher.begun()
        watcher.say("training: the first step takes longer than the others")
        began = time.perf_counter()
        finished = run.loop(lambda: bool(request))
        folder = run.checkpoints.finish(run.state, finished)
        seconds = time.perf_counter() - began
        watcher.say("comparing the frozen weights' fingerprints")
        changed = differing(run.checkpoints.frozen, run.checkpoints.fingerprints())
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
        frozen=run.checkpoints.frozen,
        changed=changed,
        skipped=state.skipped_examples,
        unreadable=state.unreadable_examples,
        skipped_steps=state.done - state.applied,
        memory=world.memory(),
        device=world.device,
    )


def _resume(run: Trainer, last: Path | None) -> None:
    """From the newest checkpoint; from the start where the run ended before it wrote one."""
    if run.world.rank == 0:
        remove_unfinished(run.out)
    run.world.barrier()
    if last:
        run.resume(last)
    run.watcher.say(f"going on from step {run.state.step}")


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
