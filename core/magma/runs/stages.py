"""A recipe with [[stages]]: one training after another, in one folder. A recipe without them is one training.

A stage gives bit-identical results to a run of its recipe with `[init] checkpoint`: it starts from the last checkpoint
of the stage before it, with a new optimizer and schedule, and draws its data from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..manifest import CHECKPOINTS, STATE
from ..plan import Plan
from ..recipe.recipe import Recipe
from ..recipe.stages import changes, training_identity
from ..training.checkpoints import latest_checkpoint
from ..training.microbatch import explain_out_of_memory
from ..training.processes import init_distributed
from ..training.progress import Callbacks, Result
from ..training.state import TRAINER, FinishedStage, StageContext, TrainerState
from ..training.train import check_can_train, check_fits, train


def train_stages(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    callbacks: Callbacks | None = None,
    plans: Sequence[Plan] = (),
) -> Result:
    """Train every stage of a recipe.

    Args:
        recipe: With stages or without.
        out: The folder of the run.
        resume: Continue from the newest checkpoint of the run.
        callbacks: What to call while it runs.
        plans: Of each stage, if known.

    Returns:
        The result of all stages together.

    Raises:
        CheckpointError: If this recipe changes a stage that has ended.
        MagmaError: Whatever `train` raises.
    """
    callbacks = callbacks or Callbacks()
    stages = recipe.in_stages()

    def train_stage(number: int, resume: bool, context: StageContext | None = None) -> Result:
        stage, plan = stages[number], plans[number] if plans else None
        costs = plan.costs if plan else None
        with explain_out_of_memory(stage, plan):
            return train(stage, out, resume=resume, callbacks=callbacks, costs=costs, plan=plan, stage=context)

    last = latest_checkpoint(out) if resume else None
    finished = _finished_stages(recipe, stages, last) if last else []
    if not recipe.stages:
        return train_stage(0, resume)
    callbacks.say("loading the trainer")
    for number, stage in enumerate(stages):
        check_can_train(stage, f"stages[{number}]: ")
        check_fits(stage, init_distributed())
    result: Result | None = None
    for number in range(len(finished), len(stages)):
        callbacks.say(f"{recipe.stage_label(number)}, of {len(stages)}")
        start = out / CHECKPOINTS / f"step-{finished[-1].checkpoint:08d}" if finished else None
        later = sum(stage.train.total_steps for stage in stages[number + 1 :] if stage.train)
        context = StageContext(recipe, number, start, tuple(finished), later)
        ended = train_stage(number, resume, context)
        resume = False
        result = _combine(result, ended)
        if not ended.finished:
            break
        finished.append(_finished_stage(stages[number], ended, finished))
    assert result is not None
    earlier = finished[: len(finished) - result.finished]
    return replace(
        result,
        skipped=result.skipped + sum(one.skipped_examples for one in earlier),
        unreadable=result.unreadable + sum(one.unreadable_examples for one in earlier),
        skipped_steps=result.skipped_steps + sum(one.skipped_steps for one in earlier),
    )


def _combine(earlier: Result | None, ended: Result) -> Result:
    """A stage's result, combined with time, memory and changed fingerprints of the stages before it in this process."""
    if earlier is None:
        return ended
    return replace(
        ended,
        seconds=earlier.seconds + ended.seconds,
        changed=sorted({*earlier.changed, *ended.changed}),
        memory=max(earlier.memory, ended.memory),
    )


def _identity(stage: Recipe) -> dict[str, Any]:
    return training_identity(stage.model_dump(mode="json", exclude_none=True))


def _with_current_names(identity: Mapping[str, Any], stage: Recipe) -> dict[str, Any]:
    """A stage's identity, with the current names of its parts' keys."""
    names = {
        f"{path}.{former}": f"{path}.{current}"
        for path, part, _ in stage.parts()
        for former, current in part.Config.renamed_keys.items()
    }
    return {names.get(key, key): value for key, value in identity.items()}


def _finished_stage(stage: Recipe, ended: Result, before: Sequence[FinishedStage]) -> FinishedStage:
    return FinishedStage(
        identity=_identity(stage),
        checkpoint=int(ended.folder.name.rpartition("-")[2]),
        steps=ended.steps - sum(one.steps for one in before),
        skipped_steps=ended.skipped_steps,
        skipped_examples=ended.skipped,
        unreadable_examples=ended.unreadable,
    )


def _finished_stages(recipe: Recipe, stages: Sequence[Recipe], last: Path) -> list[FinishedStage]:
    """The stages that had ended before a checkpoint. Raises `CheckpointError` if this recipe has other ones."""
    finished = TrainerState.read(last / STATE / TRAINER).finished
    if len(finished) >= len(stages):
        raise CheckpointError(
            f"{last} is of stage {len(finished) + 1}, and this recipe has {len(recipe.stages) or 'no'} [[stages]]: "
            "resume with the recipe that the run was started with"
        )
    for number, (one, stage) in enumerate(zip(finished, stages, strict=False)):
        if changed := changes(_with_current_names(one.identity, stage), _identity(stage)):
            lines = "".join(f"\n  - stages[{number}]: {line}" for line in changed)
            raise CheckpointError(
                f"{last}: {recipe.stage_label(number)} has ended, and this recipe changes it:{lines}\n"
                "Resume with the stage as it was, or start another run with --out"
            )
    return finished
