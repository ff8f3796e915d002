"""Train a recipe, or one of its stages: check it, build the model, run the trainer, return the result."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ..activation_checkpointing import checkpoint_activations, lm_blocks
from ..errors import TrainingError
from ..manifest import differing, find_checkpoint
from ..plan import Costs, Plan, split_batch, zero_stage
from ..recipe.assemble import DTYPES, assemble, check_lengths, learning_rates
from ..recipe.recipe import Recipe
from ..system.device import emulates_bf16
from ..system.distributed import DistributedContext
from ..system.signals import stop_requests
from .checkpoints import latest_checkpoint, remove_unfinished
from .initialize import load_initial_weights, restore_frozen
from .microbatch import agree_on_micro_batch
from .processes import init_distributed
from .progress import Callbacks, Result
from .state import StageContext
from .trainer import Trainer

SLOW_BF16 = (
    'train.precision: given "bf16", which this CPU has no instructions for; "fp32" is many times faster here: '
    "--set train.precision=fp32"
)


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    callbacks: Callbacks | None = None,
    costs: Costs | None = None,
    plan: Plan | None = None,
    stage: StageContext | None = None,
) -> Result:
    """Train a recipe without stages, or one stage, and write its checkpoints under `out`.

    This process is the only one, or one of several that a launcher started. A signal that asks for a stop saves a
    checkpoint and ends the training.

    Args:
        recipe: Of the training; a stage's own recipe.
        out: The folder of the run.
        resume: Continue from the newest checkpoint of the run; start again if there is none.
        callbacks: What to call while it runs.
        costs: Of a plan, to compute FLOPs per second.
        plan: Chooses an automatic micro-batch size; the first process's plan counts.
        stage: The stage's position in its run; None for a recipe without stages.

    Returns:
        The result, in every process.

    Raises:
        TrainingError: If it cannot start or resume.
        PartError: If the language model does not support a length of `[train]`.
        CheckpointError: If a checkpoint cannot be loaded or written.
        OutOfMemory: If a single example needs more memory than there is.
    """
    callbacks = callbacks or Callbacks()
    stage = stage or StageContext(recipe)
    callbacks.say("loading the trainer")
    check_can_train(recipe)
    world = init_distributed()
    check_fits(recipe, world)
    assert recipe.train is not None
    micro_batch, reason = agree_on_micro_batch(recipe, world, plan)
    callbacks.note(reason)
    if recipe.train.precision == "bf16" and emulates_bf16(world.device):
        callbacks.note(SLOW_BF16)
    partitioned = zero_stage(recipe.train, recipe.deepspeed) == 3  # each weight moves when it is partitioned
    last = latest_checkpoint(out) if resume else None
    start = None if last else stage.start or (recipe.init.checkpoint and find_checkpoint(recipe.init.checkpoint))
    model = assemble(recipe, device=None if partitioned or start else world.device, say=callbacks.say)
    check_lengths(model.lm, recipe.train)
    dtype = DTYPES[recipe.train.precision]
    if last:
        restore_frozen(model, last, dtype)
    if start:
        load_initial_weights(model, start, dtype, callbacks.say)
        if not partitioned:
            model.to(device=world.device, dtype=dtype)
    checkpoint_activations(model, recipe.train.activation_checkpointing)
    if recipe.train.compile:
        for block in lm_blocks(model, "train.compile"):
            block.compile(dynamic=True)
    torch.manual_seed(recipe.seed + world.rank)
    with stop_requests() as request:
        callbacks.say("starting DeepSpeed")
        trainer = Trainer(recipe, out, world, callbacks, model, micro_batch, costs, stage)
        if resume:
            _resume(trainer, last)
        callbacks.begun()
        callbacks.say("training: the first step takes longer than the others")
        began = time.perf_counter()
        finished = trainer.loop(lambda: bool(request))
        folder = trainer.finish(finished)
        seconds = time.perf_counter() - began
        callbacks.say("comparing the fingerprints of the frozen weights")
        changed = differing(trainer.checkpoints.frozen, trainer.checkpoints.fingerprints())
        stopped_by = next(filter(None, world.gather(request.number)), 0)  # any process may have received it
    if stage.later_steps:
        trainer.engine.release()
    state = trainer.state
    return Result(
        folder=folder,
        steps=state.step,
        seconds=seconds,
        finished=finished and not stopped_by,
        stopped_by=stopped_by,
        frozen=trainer.checkpoints.frozen,
        changed=changed,
        skipped=state.skipped_examples,
        unreadable=state.unreadable_examples,
        skipped_steps=state.done - state.applied,
        memory=world.memory(),
        device=world.device,
    )


def _resume(trainer: Trainer, last: Path | None) -> None:
    """Resume from the newest checkpoint, or from the start if the run ended before it wrote one."""
    if trainer.world.rank == 0:
        remove_unfinished(trainer.out)
    trainer.world.barrier()
    if last:
        trainer.resume(last)
    trainer.callbacks.say(f"resuming from step {trainer.state.step}")


def check_can_train(recipe: Recipe, where: str = "") -> None:
    """Raise `TrainingError` if a recipe, or the stage that `where` names, has nothing to train or no data."""
    if recipe.train is None:
        raise TrainingError(f"{where}the recipe has no [train] table")
    if not recipe.data.train:
        raise TrainingError(f"{where}the recipe has no [[data.train]]: nothing to train on")
    if not learning_rates(recipe):
        raise TrainingError(f"{where}nothing to train: no input and no adapter has a trainable parameter")


def check_fits(recipe: Recipe, world: DistributedContext) -> None:
    """Raise `TrainingError` for a precision or a batch size that these processes do not support."""
    assert recipe.train is not None
    if recipe.train.precision == "fp16" and world.device == "cpu":
        raise TrainingError('train.precision: given "fp16"; allowed on a CPU: "bf16", "fp32"')
    split_batch(recipe.train, world.size)
