"""The checkpoints of a run: written with all that a resume needs, pruned, and read again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
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
    find,
    list_state,
    read_manifest,
    tensor_sha256,
)
from ..model import Magma
from ..system.world import World
from .buffers import average_buffers
from .engine import Engine
from .progress import Watcher
from .rng import all_generators, restore_generators
from .state import TRAINER, Place, State

_OPTIMIZER = "optimizer.safetensors"
_RANDOM = "random.safetensors"


class CheckpointManager:
    """Saves and loads the checkpoints of one run, or of one of its stages. All processes call it together."""

    def __init__(
        self, out: Path, place: Place, keep: int, model: Magma, engine: Engine, world: World, watcher: Watcher
    ) -> None:
        """`keep` is how many checkpoints stay, besides the best one and the last ones of earlier stages."""
        self.out, self.place, self.keep = out, place, keep
        self.model, self.engine, self.world, self.watcher = model, engine, world, watcher
        self.saved: Path | None = None
        """The last checkpoint that was written or loaded."""
        self.frozen = self.fingerprints()
        """Of the frozen tensors before the first step."""

    def fingerprints(self) -> dict[str, str]:
        """Of everything that no step may change."""
        return {name: tensor_sha256(t) for name, t in self.engine.whole(self.model.frozen_tensors())}

    def folder(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.out / CHECKPOINTS / f"step-{step:08d}"

    def save(self, state: State) -> Path:
        """A checkpoint with the state to go on from, written aside and renamed; nothing where this step has one."""
        folder = self.folder(state.step)
        if self.saved == folder:
            return folder
        self.watcher.say(f"saving a checkpoint at step {state.step}")
        average_buffers(self.model, self.world)
        tensors = {}
        for name, tensor in self.engine.whole(self.model.stored_tensors()):
            if self.world.rank == 0:
                tensors[name] = tensor.detach().cpu()
        optimizer = self.engine.state(state.applied)
        generators = all_generators(self.world)
        problem = ""
        if self.world.rank == 0:
            try:
                self._write(folder, state, tensors, {_OPTIMIZER: optimizer, _RANDOM: generators})
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

    def _write(
        self, folder: Path, state: State, tensors: Mapping[str, Tensor], files: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        with atomic_folder(folder) as place:
            (place / STATE).mkdir()
            for name, found in files.items():
                save_file(dict(found), place / STATE / name)
            state.scale = self.engine.scale
            text = json.dumps(asdict(state))
            (place / STATE / TRAINER).write_text(text, encoding="utf-8")
            notes = {"step": state.step, "stage": self.place.number, "state": list_state(place)}
            checkpoint.write(place, self.model, self.place.whole, self.frozen, tensors, **notes)
        kept = {self.folder(stage.checkpoint) for stage in state.finished}
        kept |= {self.folder(state.best.step)} if state.best else set()
        for old in sorted(folder.parent.glob("step-*"))[: -self.keep]:
            if old not in kept:
                shutil.rmtree(old)

    def finish(self, state: State, finished: bool) -> Path:
        """The last checkpoint; of a finished run that watches its evaluation loss, the best one: later ones go."""
        if not (finished and state.best):
            return self.save(state)
        best = self.folder(state.best.step)
        if self.world.rank == 0:
            for later in best.parent.glob("step-*"):
                if later > best:
                    shutil.rmtree(later)
        self.world.barrier()
        return best

    def load(self, folder: Path) -> State:
        """Weights, optimizer and random generators of a checkpoint of this run; the rest of its state is returned.

        Raises `CheckpointError` where a file is missing or damaged, or the frozen weights are others.
        """
        place = folder / STATE
        manifest = read_manifest(folder)
        check_state(folder, manifest)
        checkpoint.restore_tokenization(self.model.lm, folder, manifest)
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
        restore_generators(self.world, generators)
        self.engine.scale = state.scale
        self.saved = folder
        return state

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


def latest(out: Path) -> Path | None:
    """The newest checkpoint of a run; None where it ended before it wrote one."""
    return find(out) if any((out / CHECKPOINTS).glob("step-*")) else None


def remove_unfinished(out: Path) -> None:
    """Remove the checkpoints that a sudden end left half-written."""
    for left in (out / CHECKPOINTS).glob(".*"):
        shutil.rmtree(left, ignore_errors=True)
