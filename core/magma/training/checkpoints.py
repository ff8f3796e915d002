"""The checkpoints of a run: written with everything that a resume needs, pruned, and loaded again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import checkpoint
from ..errors import CheckpointError
from ..io import atomic_folder
from ..manifest import (
    CHECKPOINTS,
    STATE,
    Manifest,
    check_state,
    differing,
    dtype_of,
    find_checkpoint,
    list_state,
    read_manifest,
    tensor_sha256,
)
from ..model import Magma
from ..system.distributed import DistributedContext
from .buffers import average_buffers
from .callback_states import States, write_states
from .engine import Engine
from .progress import Callbacks
from .rng import gather_rng_states, load_rng_states
from .state import TRAINER, StageContext, TrainerState

_OPTIMIZER = "optimizer.safetensors"
_RANDOM = "random.safetensors"


class CheckpointManager:
    """Saves, prunes and loads the checkpoints of one run, or of one of its stages. All processes call it together."""

    def __init__(
        self,
        out: Path,
        stage: StageContext,
        keep: int,
        model: Magma,
        engine: Engine,
        world: DistributedContext,
        callbacks: Callbacks,
    ) -> None:
        """`keep` is the number of checkpoints to keep, besides the best one and the last ones of earlier stages."""
        self.out, self.stage, self.keep = out, stage, keep
        self.model, self.engine, self.world, self.callbacks = model, engine, world, callbacks
        self.last: Path | None = None
        """The last checkpoint that was written or loaded."""
        self.frozen = self.fingerprints()
        """Of the frozen tensors before the first step."""

    def fingerprints(self) -> dict[str, str]:
        """Of everything that no step may change."""
        return {name: tensor_sha256(t) for name, t in self.engine.iter_full_tensors(self.model.frozen_tensors())}

    def folder(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.out / CHECKPOINTS / f"step-{step:08d}"

    def save(self, state: TrainerState, best: int | None = None, callbacks: States | None = None) -> Path:
        """Write a checkpoint with everything that a resume needs, unless the last one is of this step.

        Args:
            state: Of the trainer. The state of the loss scaler is added to it.
            best: The step of the best checkpoint, which is not pruned.
            callbacks: The states of the recipe's callbacks.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointError: In all processes, if it cannot be written; its folder is removed.
        """
        folder = self.folder(state.step)
        if self.last == folder:
            return folder
        self.callbacks.say(f"saving a checkpoint at step {state.step}")
        average_buffers(self.model, self.world)
        tensors = {}
        for name, tensor in self.engine.iter_full_tensors(self.model.stored_tensors()):
            if self.world.rank == 0:
                tensors[name] = tensor.detach().cpu()
        optimizer = self.engine.optimizer_state(state.applied)
        generators = gather_rng_states(self.world)
        problem = ""
        if self.world.rank == 0:
            try:
                self._write(folder, state, tensors, {_OPTIMIZER: optimizer, _RANDOM: generators}, callbacks or {})
                self._prune(state, best)
            except Exception as error:  # such as a full disk: the other processes have to know
                problem = f"{type(error).__name__}: {error}"
        (failed,) = self.world.sum(bool(problem))
        if failed:
            last = f"{self.last} is the last good one" if self.last else "there is none yet"
            raise CheckpointError(
                f"{folder} could not be written, and was removed{': ' + problem if problem else ''}; {last}: "
                "free some space, then resume with --resume"
            )
        self.last = folder
        return folder

    def _write(
        self,
        folder: Path,
        state: TrainerState,
        tensors: Mapping[str, Tensor],
        files: Mapping[str, Mapping[str, Tensor]],
        callbacks: States,
    ) -> None:
        with atomic_folder(folder) as partial:
            (partial / STATE).mkdir()
            for name, found in files.items():
                save_file(dict(found), partial / STATE / name)
            write_states(partial / STATE, callbacks)
            state.loss_scaler = self.engine.loss_scaler_state()
            text = json.dumps(state.state_dict())
            (partial / STATE / TRAINER).write_text(text, encoding="utf-8")
            notes = {"step": state.step, "stage": self.stage.number, "state": list_state(partial)}
            checkpoint.write(partial, self.model, self.stage.recipe, self.frozen, tensors, **notes)

    def _prune(self, state: TrainerState, best: int | None) -> None:
        """Remove all but the newest checkpoints, the best one and the last ones of earlier stages."""
        kept = {self.folder(stage.checkpoint) for stage in state.finished}
        kept |= set() if best is None else {self.folder(best)}
        for old in sorted((self.out / CHECKPOINTS).glob("step-*"))[: -self.keep]:
            if old not in kept:
                shutil.rmtree(old)

    def remove_after(self, step: int) -> Path:
        """Remove the checkpoints after this step; the checkpoint of the step."""
        folder = self.folder(step)
        if self.world.rank == 0:
            for later in folder.parent.glob("step-*"):
                if later > folder:
                    shutil.rmtree(later)
        self.world.barrier()
        return folder

    def load(self, folder: Path) -> TrainerState:
        """Load weights, optimizer and random generators of a checkpoint of this run.

        Returns:
            The state of the trainer, for the caller to restore.

        Raises:
            CheckpointError: If a file is missing or damaged, or the frozen weights differ.
        """
        state_folder = folder / STATE
        manifest = read_manifest(folder)
        check_state(folder, manifest)
        checkpoint.restore_tokenization(self.model.lm, folder, manifest)
        self._check_frozen(folder, manifest)
        state = TrainerState.read(state_folder / TRAINER)
        trained = self.model.trained_tensors()
        tensors = {name: t for name, t in checkpoint.read_trained(self.model, folder).items() if name in trained}
        try:
            with safe_open(state_folder / _OPTIMIZER, framework="pt") as optimizer:
                self.engine.load(tensors, optimizer, state.applied)
            generators = load_file(state_folder / _RANDOM)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder} has no state to resume from: {error}") from error
        load_rng_states(self.world, generators)
        self.engine.load_loss_scaler_state(state.loss_scaler)
        self.last = folder
        return state

    def _check_frozen(self, folder: Path, manifest: Manifest) -> None:
        """Raise `CheckpointError` unless the frozen weights are those of the run's start, in the run's precision."""
        if dtype_of(manifest) != self.model.dtype:
            return
        if changed := differing(checkpoint.frozen_hashes(manifest, self.model), self.frozen):
            for path, entry in manifest.parts.items():
                trainable = any(p.requires_grad for p in self.model.part_parameters(path))
                if trainable != bool(entry.trained):
                    before, now = ("trained", "frozen") if entry.trained else ("frozen", "trained")
                    raise CheckpointError(
                        f"{folder}: {path} was {before} until now, and is {now} in this recipe: the trained parts of a "
                        "run, or of a stage, cannot change before its end"
                    )
            raise CheckpointError(
                f"{folder}: {len(changed)} of {len(self.frozen)} frozen tensors differ from those of the run's start, "
                f"the first is {changed[0]}: resume with the same weights and seed"
            )


def latest_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of a run; None if it ended before it wrote one."""
    return find_checkpoint(out) if any((out / CHECKPOINTS).glob("step-*")) else None


def remove_unfinished(out: Path) -> None:
    """Remove the checkpoints that a sudden end left half-written."""
    for left in (out / CHECKPOINTS).glob(".*"):
        shutil.rmtree(left, ignore_errors=True)
