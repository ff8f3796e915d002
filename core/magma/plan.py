"""The costs of a recipe, measured on meta: nothing is downloaded, loaded or computed.

FLOPs and activations are those of the model's own forward and backward pass over one example, counted for each
operation on tensors without data. Dimensions that do not match are found there.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .activation_checkpointing import checkpoint_activations
from .data.sequence import Batch, EncodedExample
from .errors import PartError, TooLong, TrainingError
from .manifest import OWN, find_checkpoint, origins, read_manifest
from .measure import EXAMPLES, NotMeasurable, measure
from .model import ALWAYS_STORED, Magma
from .recipe.assemble import assemble, check_lengths, learning_rates
from .recipe.recipe import Recipe
from .recipe.schema import Train
from .schedule import schedule_warnings
from .sites import SUBLAYERS

TEXT_TOKENS = 20
"""Assumed length of an example's text: the actual length depends on the data."""
MICRO_BATCHES = (1, 8, 32, 128)
OPTIMIZER_BYTES = 12
"""Bytes per parameter: the float32 master copy and the two moments of Adam."""
REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default of zero_optimization.reduce_bucket_size, in elements."""


@dataclass(frozen=True)
class PartPlan:
    """One part of the model, all of its copies together."""

    path: str
    kind: str
    name: str
    parameters: int
    trained: int
    frozen: int
    lr: float | None
    """None: it is not trained."""
    start: str | None = None
    """Origin of its weights with an [init] checkpoint or in a later stage. None: its own weights."""
    copies: int = 1
    """Number of adapters; 1 for other parts."""
    blocks: tuple[int, int] | None = None
    """Of adapters: the number of blocks that have some, and of all. None: unknown, or another part."""
    sites: tuple[str, ...] | None = None
    """Of adapters that do not act on the sublayer that their table is called after: the paths where they act."""


@dataclass(frozen=True)
class InputPlan:
    """Sizes of one input."""

    features: int
    """Maximum n."""
    encoder_dim: int
    tokens: int
    """Maximum k: positions that one medium takes."""


@dataclass(frozen=True)
class Memory:
    """Memory of one GPU in bytes, without the overhead of the allocator and of kernels."""

    stage: int
    """ZeRO stage."""
    micro_batch: int
    weights: int
    gradients: int
    buffers: int
    """DeepSpeed's bucket for gradients before their reduction."""
    optimizer: int
    activations: int | None
    total: int | None


@dataclass(frozen=True)
class Length:
    """Length of a run, and how its global batch is split."""

    steps: int
    samples: int
    batch_size: int
    micro_batch_size: int
    accumulation: int
    stage: int


@dataclass(frozen=True)
class Costs:
    """FLOPs of training: per token in the language model, and per medium in its encoder and prefix."""

    per_token: float
    """At the length of the planned example; the cost of attention depends slightly on it."""
    per_medium: dict[str, float]

    def flops(self, tokens: float, media: Mapping[str, float]) -> float:
        """FLOPs of a forward and backward pass over `tokens` positions and `media` items of each input."""
        return self.per_token * tokens + sum(self.per_medium[name] * count for name, count in media.items())


@dataclass(frozen=True)
class Plan:
    """The output of `magma recipe plan`. Sizes in bytes, FLOPs of forward and backward pass, peak learning rates."""

    recipe: str
    precision: str
    world: int
    parts: list[PartPlan]
    totals: dict[str, int]
    """Parameters by kind, and `parameters`, `trained`, `frozen` of all."""
    inputs: dict[str, InputPlan]
    tokens_per_example: dict[str, int]
    """`media`: one item of each input; `text`: the assumed length; `total`."""
    flops_per_sample: int | None
    """None: unknown, see `costs_problem`."""
    costs: Costs | None
    activation_bytes_per_sample: int | None
    memory: list[Memory]
    checkpoint_bytes: int
    state_bytes: int
    """Optimizer state for resuming, in addition to the checkpoint."""
    length: Length | None
    stage: str = ""
    """Label of the stage, if the recipe has [[stages]]."""
    warnings: list[str] = field(default_factory=list)
    """Warnings about a schedule that the run does not complete."""
    costs_problem: str | None = None
    """Why FLOPs and activations are unknown: a part cannot run on meta. None: they are known."""

    def needed_memory(self, micro_batch: int) -> int | None:
        """Memory of one GPU in bytes at the recipe's ZeRO stage; None if activations are unknown."""
        if self.length is None or self.activation_bytes_per_sample is None:
            return None
        row = next(row for row in self.memory if row.stage == max(1, self.length.stage))
        optimizer = row.optimizer * (1 if self.length.stage else self.world)
        return row.weights + row.gradients + row.buffers + optimizer + micro_batch * self.activation_bytes_per_sample

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON; those of `length` are at the top level."""
        found = asdict(self)
        for part in found["parts"]:
            if part["sites"] is None:
                del part["sites"]
        length = found.pop("length") or {}
        return {**found, **length}


def plan(recipe: Recipe, world: int = 1, micro_batches: Sequence[int] = (), text_tokens: int = TEXT_TOKENS) -> Plan:
    """Compute the costs of a recipe.

    Args:
        recipe: The recipe, without [[stages]].
        world: Number of GPUs that share each global batch.
        micro_batches: Micro-batch sizes whose memory is computed, in addition to the recipe's own.
        text_tokens: Assumed length of an example's text.

    Raises:
        PartError: Dimensions do not match, or the language model does not support a length of `[train]`.
        TooLong: There is no room for text.
        TrainingError: The global batch cannot be split among the GPUs.
    """
    length = _length(recipe, world)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of libraries do not matter without data
        model = assemble(recipe, device="meta")
    if recipe.train:
        check_lengths(model.lm, recipe.train)
    rates = learning_rates(recipe) if recipe.train else {}
    starts = _starts(model, recipe)
    parts = [
        PartPlan(
            row.path,
            model.parts()[row.path][0].kind,
            row.name,
            row.parameters,
            row.trained,
            row.frozen,
            rate,
            starts.get(row.path),
            len(model.parts()[row.path]),
            *_placement(model, row.path),
        )
        for row in model.summary()
        for rate in (rates.get(row.path) if row.trained else None,)
    ]
    trained = sum(part.trained for part in parts)
    totals = {kind: sum(p.parameters for p in parts if p.kind == kind) for kind in dict.fromkeys(p.kind for p in parts)}
    totals |= {"parameters": sum(part.parameters for part in parts), "trained": trained}
    totals["frozen"] = totals["parameters"] - trained
    batch = _example(model, recipe, text_tokens)
    kept_inputs = checkpoint_activations(model, recipe.train.activation_checkpointing) if recipe.train else []
    measured = costs_problem = None
    try:
        measured = measure(model, batch, kept_inputs)
    except NotMeasurable as error:
        costs_problem = str(error)
    flops, activations = (measured.flops, measured.activation_bytes) if measured else (None, None)
    positions = batch.tokens.shape[1]
    costs = None
    if measured:
        lm = measured.flops - sum(measured.per_medium.values())
        costs = Costs(lm / positions, {name: float(count) for name, count in measured.per_medium.items()})
    media = sum(input_module.prefix.length for input_module in model.input_modules().values())
    return Plan(
        recipe=recipe.name,
        precision=recipe.train.precision if recipe.train else "fp32",
        world=world,
        parts=parts,
        totals=totals,
        inputs={
            name: InputPlan(input_module.encoder.length, input_module.encoder.dim, input_module.prefix.length)
            for name, input_module in model.input_modules().items()
        },
        tokens_per_example={"media": media, "text": positions - media, "total": positions},
        flops_per_sample=flops,
        costs=costs,
        activation_bytes_per_sample=activations,
        memory=_memory(model, recipe, totals, world, length, micro_batches, activations) if length else [],
        checkpoint_bytes=sum(t.numel() * t.element_size() for t in model.stored_tensors().values()),
        state_bytes=OPTIMIZER_BYTES * trained,
        length=length,
        warnings=schedule_warnings(recipe),
        costs_problem=costs_problem,
    )


def plan_stages(
    recipe: Recipe, world: int = 1, micro_batches: Sequence[int] = (), text_tokens: int = TEXT_TOKENS
) -> list[Plan]:
    """The plan of every stage, or of a recipe without [[stages]]. Errors name the stage."""
    plans: list[Plan] = []
    for number, stage in enumerate(recipe.in_stages()):
        try:
            found = plan(stage, world, micro_batches, text_tokens)
        except (PartError, TooLong, TrainingError) as error:
            raise type(error)(f"{f'stages[{number}]: ' if recipe.stages else ''}{error}") from error
        if number:
            before = plans[-1]
            start = {
                part.path: before.stage if part.trained or part.kind in ALWAYS_STORED else part.start or OWN
                for part in before.parts
            }
            found = replace(found, parts=[replace(part, start=start[part.path]) for part in found.parts])
        plans.append(replace(found, stage=recipe.stage_label(number)))
    return plans


def _placement(model: Magma, path: str) -> tuple[tuple[int, int] | None, tuple[str, ...] | None]:
    """`blocks` and `sites` of a part."""
    lm, name = model.lm, path.removeprefix("adapters.")
    if name == path or not lm.blocks:
        return None, None
    sites = lm.adapter_sites.get(name)
    if sites is None:  # a language model that does not list its sites
        return (lm.site_blocks(name), len(lm.blocks)), None
    table = model.adapter_tables.get(name)
    usual = name in SUBLAYERS and (table is None or (table.at in (None, name) and table.blocks is None))
    paths = tuple(dict.fromkeys(site.path for site in sites))
    return (len({site.block for site in sites}), len(lm.blocks)), None if usual else paths


def _starts(model: Magma, recipe: Recipe) -> dict[str, str]:
    """Origin of each part's weights, by path, if the recipe starts from a checkpoint."""
    folder = recipe.init.checkpoint
    if folder is None:
        return {}
    if not Path(folder).is_dir():  # a plan works without files
        return dict.fromkeys(model.parts(), "unknown")
    return origins({path: model.part_tensors(path) for path in model.parts()}, read_manifest(find_checkpoint(folder)))


def split_batch(train: Train, processes: int) -> tuple[int, int]:
    """Micro-batch size of one process and number of accumulation steps, for a global batch.

    "auto" gives the process's whole part of the batch, which `training/microbatch.py` reduces to fit into memory.
    """
    if train.batch_size % processes:
        raise TrainingError(
            f"train.batch_size: given {train.batch_size}; allowed with {processes} processes: a multiple of {processes}"
        )
    share = train.batch_size // processes
    micro = share if train.micro_batch_size == "auto" else train.micro_batch_size
    if share % micro:
        allowed = ", ".join(map(str, divisors(share)))
        raise TrainingError(
            f"train.micro_batch_size: given {micro}; allowed, so that {share} examples a process "
            f"divide evenly: {allowed}"
        )
    return micro, share // micro


def divisors(share: int) -> list[int]:
    """Micro-batch sizes that divide a process's part of the batch evenly, ascending."""
    return [n for n in range(1, share + 1) if share % n == 0]


def zero_stage(train: Train, config: Mapping[str, Any]) -> int:
    """The ZeRO stage of a run with these tables.

    Half precision needs float32 copies of trained parameters, which stage 1 and above keep.
    """
    return max(int(config.get("zero_optimization", {}).get("stage", 0)), int(train.precision != "fp32"))


def reduce_bucket(config: Mapping[str, Any], trained: int) -> int:
    """Elements of DeepSpeed's bucket for the gradients of `trained` parameters.

    By default DeepSpeed allocates 2 GB in float32, even for few parameters.
    """
    return int(config.get("zero_optimization", {}).get("reduce_bucket_size", min(REDUCE_BUCKET, trained)))


def _length(recipe: Recipe, world: int) -> Length | None:
    if recipe.train is None:
        return None
    train = recipe.train
    micro, accumulation = split_batch(train, world)
    samples = train.samples or train.total_steps * train.batch_size
    stage = zero_stage(train, recipe.deepspeed)
    return Length(train.total_steps, samples, train.batch_size, micro, accumulation, stage)


def _example(model: Magma, recipe: Recipe, text_tokens: int) -> Batch:
    """A batch on meta of two equal examples: the largest medium of every input, and text."""
    collator = model.collator(recipe.train.max_length if recipe.train else None)
    encoded = EncodedExample([], [], [], "the planned example", 0 if model.head else None)
    for name, input_module in model.input_modules().items():
        item = input_module.encoder.max_size_item()
        size = input_module.prefix.num_embeddings(input_module.encoder.num_features(item))
        encoded.media.append((name, item, len(encoded), size))
        encoded.tokens += [0] * size
        encoded.targets += [False] * size
    media = len(encoded)
    text = text_tokens + (model.head is None)
    if collator.max_length is not None:
        text = min(text, collator.max_length - media)
        if text < 1:
            raise TooLong(
                f"one medium of each input needs {media} positions; allowed: fewer than {collator.max_length}, to "
                "leave room for text"
            )
    encoded.tokens += [0] * text
    encoded.targets += [True] * text
    return collator.pad([encoded] * EXAMPLES).to("meta", model.dtype)


def _memory(
    model: Magma,
    recipe: Recipe,
    totals: dict[str, int],
    world: int,
    length: Length,
    wanted: Sequence[int],
    activations: int | None,
) -> list[Memory]:
    width = model.dtype.itemsize
    share = length.batch_size // world
    sizes = sorted({*(wanted or [n for n in MICRO_BATCHES if n <= share]), length.micro_batch_size})
    buffers = width * reduce_bucket(recipe.deepspeed, totals["trained"])
    rows = []
    for stage in (1, 2, 3):
        weights = width * totals["parameters"] // (world if stage == 3 else 1)
        gradients = width * totals["trained"] // (world if stage >= 2 else 1)
        optimizer = OPTIMIZER_BYTES * totals["trained"] // world
        for micro in sizes:
            moving = None if activations is None else activations * micro
            total = None if moving is None else weights + gradients + buffers + optimizer + moving
            rows.append(Memory(stage, micro, weights, gradients, buffers, optimizer, moving, total))
    return rows
