"""The trainer: DeepSpeed around any assembled model. The only file that imports deepspeed.

A step is one global batch: `batch_size` examples, over all processes and accumulation steps.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import checkpoint
from .assemble import DTYPES, assemble, learning_rates
from .errors import CheckpointError, TooLong, TrainingError
from .interfaces import DataSource
from .mixture import Mixture
from .model import Magma
from .plan import micro_batches
from .recipe import Constant, Recipe, Train
from .segments import Batch, Collator, Encoded, Example

METRICS = "metrics.jsonl"
_TAG = "deepspeed"
_TRAINER = "trainer.json"


@dataclass
class Progress:
    """What a step tells whoever watches."""

    step: int
    steps: int
    loss: float
    samples_per_s: float


@dataclass
class Watcher:
    """Who is told what happens; all do nothing by default."""

    say: Callable[[str], None] = lambda _: None
    step: Callable[[Progress], None] = lambda _: None


@dataclass
class Result:
    """How a run ended."""

    folder: Path
    """The last checkpoint."""
    steps: int
    seconds: float
    """Wall-clock seconds of the training loop of this process, evaluations and checkpoints included."""
    finished: bool
    """False where a signal ended it early."""
    frozen: dict[str, str]
    """Fingerprints of the frozen tensors before training."""
    changed: list[str]
    """Frozen tensors whose fingerprints are others after it: none, or something is badly wrong."""
    skipped: int
    """Examples of this process that did not fit."""
    device: str
    """Where this process trained."""


# Processes


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def sum(self, *values: float) -> list[float]:
        """Each value, summed over the processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            torch.distributed.barrier()


def join() -> World:
    """Join the processes that a launcher started, or be the only one."""
    with _quiet():
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        accelerator = get_accelerator()
    backend = accelerator.communication_backend_name()
    if accelerator.device_name() == "cpu":
        # It is compiled at the first use, for minutes and only where there is a compiler; results are the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local = int(os.environ.get("LOCAL_RANK", 0))
    if accelerator.device_name() != "cpu":
        accelerator.set_device(local)
    if "RANK" not in os.environ and not torch.distributed.is_initialized():
        # alone: no port, and nothing in the environment that a child of this process would take for its own
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]  # public, but not in its __all__
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    device = accelerator.device_name(local) if accelerator.device_name() != "cpu" else "cpu"
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for an end after the current step; one second later they end the process as usual."""
    asked: list[float] = []

    def handler(*_: Any) -> None:
        if asked and time.monotonic() - asked[0] > 1:
            raise KeyboardInterrupt
        asked.append(time.monotonic())

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# Data


def _sources(recipe: Recipe, use: str) -> tuple[list[DataSource], list[float]]:
    sources, weights = [], []
    for i, table in enumerate(getattr(recipe.data, use)):
        part, config = recipe.part(f"data.{use}.{i}")
        sources.append(part(config, recipe.seed))
        weights.append(float(table.fields.get("weight", 1.0)))
    return sources, weights


def by_length(encoded: Sequence[Encoded]) -> list[Encoded]:
    """Examples of about one length beside each other, so that little of a micro-batch is padding.

    The global batch is the same, and with it a loss over its targets.
    """
    return sorted(encoded, key=len)


# Learning rate


def factor(train: Train, step: int) -> float:
    """The learning rate of a step (counted from 0), as a fraction of the highest."""
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    if isinstance(train.schedule, Constant):
        return 1.0
    done = (step - train.warmup_steps) / max(1, train.total_steps - 1 - train.warmup_steps)
    done = min(1.0, done)
    final = train.schedule.final
    shape = (1 + math.cos(math.pi * done)) / 2 if train.schedule.use == "cosine" else 1 - done
    return final + (1 - final) * shape


# The run


@dataclass
class Best:
    """The lowest evaluation loss of a run that stops early."""

    loss: float
    step: int
    waited: int = 0
    """Evaluations since then."""


@dataclass
class _Run:
    """One process's side of a run."""

    recipe: Recipe
    out: Path
    world: World
    watcher: Watcher
    model: Magma
    engine: Any = None
    step: int = 0
    skipped: int = 0
    frozen: dict[str, str] = field(default_factory=dict)
    best: Best | None = None
    saved: Path | None = None
    """The checkpoint of this very state."""

    def __post_init__(self) -> None:
        assert self.recipe.train is not None
        self.train: Train = self.recipe.train
        self.micro, self.accumulation = micro_batches(self.train, self.world.size)
        self.collator: Collator = self.model.collator(self.train.max_length, 8 if self.world.device != "cpu" else 1)
        self.mixture = Mixture(*_sources(self.recipe, "train"))
        self.evaluation, _ = _sources(self.recipe, "evaluation")

    # Set-up

    def start(self) -> None:
        """Wrap the model in a DeepSpeed engine."""
        import deepspeed

        rates = learning_rates(self.recipe)
        groups = [
            {"params": [p for p in self.model.part_parameters(path) if p.requires_grad], "lr": rate, "name": path}
            for path, rate in rates.items()
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise TrainingError("nothing to train: no input and no adapter has a trainable parameter")
        declared = {id(p) for group in groups for p in group["params"]}  # type: ignore[attr-defined]
        stray = [name for name, p in self.model.named_parameters() if p.requires_grad and id(p) not in declared]
        if stray:
            raise TrainingError(
                f"{len(stray)} trainable parameters belong to no declared part, the first is {stray[0]}"
            )
        self.frozen = checkpoint.fingerprints(self.model.frozen_tensors())
        wanted = self.train.optimizer
        make = torch.optim.AdamW if wanted.use == "adamw" else torch.optim.Adam
        optimizer = make(groups, betas=wanted.betas, eps=wanted.eps, weight_decay=wanted.weight_decay, foreach=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(self.train, step))
        with _quiet():
            self.engine, *_ = deepspeed.initialize(
                model=self.model,
                optimizer=optimizer,
                lr_scheduler=schedule,
                config=self._config(),
                dist_init_required=False,
            )

    def _config(self) -> dict[str, Any]:
        return {
            "train_batch_size": self.micro * self.accumulation * self.world.size,
            "train_micro_batch_size_per_gpu": self.micro,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": self.train.gradient_clipping,
            "bf16": {"enabled": self.train.precision == "bf16"},
            "fp16": {"enabled": self.train.precision == "fp16"},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            **self.recipe.deepspeed,
        }

    # One step

    def encode(self, examples: Sequence[Example], first: int) -> list[Encoded]:
        """This process's share of a global batch whose first example is the run's `first`-th."""
        encoded: list[Encoded] = []
        for i in range(self.world.rank, len(examples), self.world.size):
            encoded += self.encode_one(examples[i], random.Random(f"{self.recipe.seed} {first + i}"))
        return encoded

    def encode_one(self, example: Example, rng: random.Random | None = None) -> list[Encoded]:
        """One example, or none where it does not fit and the recipe says to skip those."""
        try:
            return [self.collator.sequence(example, rng)]
        except TooLong:
            if self.train.too_long == "error":
                raise
            self.skipped += rng is not None
            return []

    def batches(self, examples: Sequence[Example]) -> list[Batch]:
        """One batch for each accumulation step."""
        encoded = by_length(self.encode(examples, self.step * self.train.batch_size))
        return [self.batch(encoded, i) for i in range(self.accumulation)]

    def batch(self, encoded: Sequence[Encoded], i: int) -> Batch:
        """The i-th micro-batch; where examples have run out, one without targets, so that ranks do the same."""
        chunk = encoded[i * self.micro : (i + 1) * self.micro]
        chunk = chunk or [Encoded([self.collator.lm.eos], [False], [], "filler")]
        packing = self.train.packing
        return self.collator.pack(chunk, packing) if packing else self.collator.pad(chunk)

    def train_step(self) -> tuple[float, int]:
        """One optimizer step; the mean loss over the global batch, and its examples."""
        count = self.train.batch_size
        if self.train.samples is not None:
            count = min(count, self.train.samples - self.step * count)
        batches = self.batches(self.mixture.take(count))
        (targets,) = self.world.sum(sum(len(batch.labels) for batch in batches))
        if not targets:
            raise TrainingError(f"step {self.step + 1}: none of its {count} examples has a target token")
        total = 0.0
        for batch in batches:
            loss = self.engine(batch.to(self.world.device, DTYPES[self.train.precision]))
            total += float(loss.detach())
            # DeepSpeed divides by the accumulation steps and averages over the processes.
            if self.train.loss == "token_mean":
                loss = loss * (self.accumulation * self.world.size / targets)
            else:
                loss = loss / max(1, len(batch.labels))
            self.engine.backward(loss)
            self.engine.step()
        self.step += 1
        (total,) = self.world.sum(total)
        return total / targets, count

    # Beside the steps

    @torch.no_grad()
    def evaluate_loss(self) -> float | None:
        """Mean loss per target over the evaluation sets; None where there are none."""
        if not self.evaluation:
            return None
        self.average_buffers()
        self.model.eval()
        total, targets = 0.0, 0
        for source in self.evaluation:
            mine: list[Encoded] = []
            count = 0
            for example, _ in itertools.islice(source.iterate(), self.train.evaluate_samples):
                if count % self.world.size == self.world.rank:
                    mine += self.encode_one(example)
                count += 1
            for i in range(math.ceil(math.ceil(count / self.world.size) / self.micro)):
                batch = self.batch(mine, i)
                loss = self.model(batch.to(self.world.device, DTYPES[self.train.precision]))
                total, targets = total + float(loss), targets + len(batch.labels)
        self.model.train()
        total, counted = self.world.sum(total, targets)
        return total / counted if counted else None

    def average_buffers(self) -> None:
        """Each process's BatchNorm saw its own share: the model's statistics are their mean."""
        if self.world.size == 1:
            return
        for tensor in self.model.trained_tensors().values():
            if not isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                torch.distributed.all_reduce(tensor)
                tensor /= self.world.size

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors in full on every process, also those that ZeRO-3 has partitioned."""
        import deepspeed
        from deepspeed.runtime.zero.partition_parameters import is_zero_param

        if not any(is_zero_param(t) for t in tensors.values()):
            return tensors
        found = {}
        for name, tensor in tensors.items():
            with deepspeed.zero.GatheredParameters([tensor], enabled=is_zero_param(tensor)):
                found[name] = tensor.detach().cpu().clone()
        return found

    def save(self) -> Path:
        """A checkpoint with the state to go on from, written aside and renamed; nothing where this step has one."""
        if self.saved == self.folder(self.step):
            return self.saved
        self.watcher.say(f"saving a checkpoint at step {self.step}")
        self.average_buffers()
        folder = self.folder(self.step)
        aside = folder.with_name(f".{folder.name}.shared")
        tensors = self.whole(self.model.trained_tensors())
        if self.world.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            (aside / checkpoint.STATE).mkdir(parents=True)
        self.world.barrier()
        with _quiet():
            self.engine.save_checkpoint(
                str(aside / checkpoint.STATE), tag=_TAG, save_latest=False, exclude_frozen_parameters=True
            )
        generators = {"cpu": torch.get_rng_state()}
        if self.world.device != "cpu":
            generators["device"] = torch.cuda.get_rng_state()
        save_file(generators, aside / checkpoint.STATE / f"random-{self.world.rank}.safetensors")
        self.world.barrier()
        if self.world.rank == 0:
            state = {
                "step": self.step,
                "processes": self.world.size,
                "data": self.mixture.state(),
                "best": self.best and asdict(self.best),
            }
            (aside / checkpoint.STATE / _TRAINER).write_text(json.dumps(state), encoding="utf-8")
            with checkpoint.written_aside(folder) as place:
                checkpoint.write(place, self.model, self.recipe, self.frozen, tensors, step=self.step)
                (aside / checkpoint.STATE).rename(place / checkpoint.STATE)
            shutil.rmtree(aside, ignore_errors=True)
            for old in sorted(folder.parent.glob("step-*"))[: -self.train.keep_checkpoints]:
                if not self.best or old != self.folder(self.best.step):
                    shutil.rmtree(old)
        self.world.barrier()
        self.saved = folder
        return folder

    def folder(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.out / checkpoint.CHECKPOINTS / f"step-{step:08d}"

    def finish(self, finished: bool) -> Path:
        """The last checkpoint; of a finished run that watches its evaluation loss, the best one: later ones go."""
        if not (finished and self.best):
            return self.save()
        best = self.folder(self.best.step)
        if self.world.rank == 0:
            for later in best.parent.glob("step-*"):
                if later > best:
                    shutil.rmtree(later)
        self.world.barrier()
        return best

    def improves(self, loss: float) -> bool:
        """Keep book of the evaluation loss, and save what is better than all before; False where it is time to end."""
        if self.best is None or loss < self.best.loss:
            self.best = Best(loss, self.step)
            self.save()
            return True
        self.best.waited += 1
        return self.best.waited < (self.train.early_stopping or math.inf)

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint of this run."""
        state_folder = folder / checkpoint.STATE
        try:
            state = json.loads((state_folder / _TRAINER).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{folder} has no state to go on from: {error}") from error
        if state["processes"] != self.world.size:
            raise CheckpointError(
                f"{folder} was written by {state['processes']} processes and this run has {self.world.size}: "
                f"resume with --nproc {state['processes']}, or start another run with --set init.checkpoint={folder}"
            )
        checkpoint.load_trained(self.model, folder)
        with _quiet():
            self.engine.load_checkpoint(str(state_folder), tag=_TAG, load_module_strict=False)
        generators = load_file(state_folder / f"random-{self.world.rank}.safetensors")
        torch.set_rng_state(generators["cpu"])
        if "device" in generators:
            torch.cuda.set_rng_state(generators["device"])
        self.mixture.restore(state["data"])
        self.step = state["step"]
        self.best = Best(**state["best"]) if state.get("best") else None
        self.saved = folder

    def changed(self) -> list[str]:
        """Frozen tensors that are not what they were."""
        return checkpoint.differing(self.frozen, checkpoint.fingerprints(self.whole(self.model.frozen_tensors())))

    def loop(self, stopped: Callable[[], bool]) -> bool:
        """Train to the end, or until all agree to stop; True where the end was reached."""
        total = self.train.total_steps
        with _Metrics(self.out / METRICS, self.world.rank == 0, self.step) as metrics:
            self.model.train()
            while self.step < total:
                began = time.perf_counter()
                rates = self._rates()
                loss, samples = self.train_step()
                took = time.perf_counter() - began
                metrics.write(
                    {"step": self.step, "loss": loss, "lr": rates, "samples": samples, "samples_per_s": samples / took}
                )
                self.watcher.step(Progress(self.step, total, loss, samples / took))
                every = self.train.evaluate_every
                if self.step == total or (every and self.step % every == 0):
                    value = self.evaluate_loss()
                    if value is not None:
                        metrics.write({"step": self.step, "evaluation_loss": value})
                        self.watcher.say(f"step {self.step}: evaluation loss {value:.4f}")
                        if self.train.early_stopping:
                            metrics.sync()
                            if not self.improves(value):
                                return True
                (end,) = self.world.sum(float(stopped()))
                if end and self.step < total:
                    return False
                every = self.train.checkpoint_every
                if every and self.step % every == 0 and self.step < total:
                    metrics.sync()
                    self.save()
        return True

    def _rates(self) -> dict[str, float]:
        return {group["name"]: group["lr"] for group in self.engine.optimizer.param_groups}


class _Metrics:
    """metrics.jsonl, a line a step; a resumed run goes on behind the step it starts from."""

    def __init__(self, path: Path, active: bool, step: int) -> None:
        self.file: IO[str] | None = None
        if not active:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if step and path.is_file():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        aside = path.with_name(f".{path.name}.partial")
        aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        aside.rename(path)
        self.file = path.open("a", encoding="utf-8", buffering=1)  # whoever watches sees whole lines

    def __enter__(self) -> _Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def write(self, row: dict[str, Any]) -> None:
        """One line."""
        if self.file:
            self.file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Everything so far is on disk."""
        if self.file:
            os.fsync(self.file.fileno())


def _step_of(line: str) -> float:
    """The step of a row; a line that a sudden end cut short belongs to none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed warns about itself, and says on a CPU that it found no GPU."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def train(recipe: Recipe, out: Path, *, resume: bool = False, watcher: Watcher | None = None) -> Result:
    """Train a recipe and leave its checkpoint under `out`.

    One process, or one of several that a launcher started. Raises `TrainingError`, `CheckpointError` or what a part
    raises; a signal saves a checkpoint and returns.
    """
    watcher = watcher or Watcher()
    if recipe.train is None:
        raise TrainingError("the recipe has no [train] table")
    if not recipe.data.train:
        raise TrainingError("the recipe has no [[data.train]]: nothing to train on")
    watcher.say("loading the trainer")
    world = join()
    _check_precision(recipe.train, world)
    micro_batches(recipe.train, world.size)
    model = assemble(recipe, device=world.device, say=watcher.say)
    if recipe.init.checkpoint is not None and not resume:
        watcher.say(f"starting from {recipe.init.checkpoint}")
        checkpoint.load_trained(model, checkpoint.find(recipe.init.checkpoint), new_parts=True)
    torch.manual_seed(recipe.seed + world.rank)
    run = _Run(recipe, out, world, watcher, model)
    with interruptible() as stopped:
        run.start()
        if resume:
            _resume(run)
        began = time.perf_counter()
        finished = run.loop(stopped)
        folder = run.finish(finished)
        seconds = time.perf_counter() - began
        watcher.say("comparing the frozen weights' fingerprints")
        changed = run.changed()
    return Result(folder, run.step, seconds, finished, run.frozen, changed, run.skipped, world.device)


def _resume(run: _Run) -> None:
    """From the newest checkpoint; from the start where the run ended before it wrote one."""
    folder = run.out / checkpoint.CHECKPOINTS
    if run.world.rank == 0:
        for left in folder.glob(".*"):  # what a sudden end left half-written
            shutil.rmtree(left, ignore_errors=True)
    run.world.barrier()
    if any(folder.glob("step-*")):
        run.resume(checkpoint.find(run.out))
    run.watcher.say(f"going on from step {run.step}")


def _check_precision(train: Train, world: World) -> None:
    if train.precision == "fp16" and world.device == "cpu":
        raise TrainingError('train.precision: given "fp16"; allowed on a CPU: "bf16", "fp32"')
