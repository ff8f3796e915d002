"""The tables of a recipe that core itself reads. `recipe.py` combines them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..deprecation import with_current_keys
from ..feature_cache.cache import EncodeBy
from ..feature_cache.store import DEFAULT_MAX_BYTES
from ..names import name_problem
from ..sites import check_blocks, table_name_problem
from .explain import NEEDS
from .paths import LocalPath

MAX_UNREADABLE = 0.01
"""Default for the fraction of examples, or of an evaluation's questions, that may be unreadable."""
Precision = Literal["bf16", "fp16", "fp32"]


class Table(BaseModel):
    """Base of the tables: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Use(BaseModel):
    """A table that names a part. The other keys are those of its `Config`."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)
    use: str
    """Name of the part. The other keys are options of the part."""

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TaskTable(Use):
    """An evaluation of the final checkpoint."""

    shots: tuple[NonNegativeInt, ...] = Field((0,), min_length=1)
    """Numbers of in-context examples. The task is run once for each number."""


class LearnerKeys(Table):
    """Keys of the framework in the table of a prefix, an adapter or a head."""

    trainable: bool = True
    """Train the part."""
    lr: PositiveFloat | None = None
    """Learning rate of the part. Default: `train.lr`."""


def _check_blocks(value: Any) -> Any:
    """Check the value with one message; pydantic would give one for each type."""
    if problem := check_blocks(value):
        raise ValueError(problem.removeprefix("allowed: "))
    return value


def _check_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("inputs, each of them once")
    return names


Blocks = Annotated[str | tuple[int, ...], BeforeValidator(_check_blocks)]


class AdapterUse(Use):
    """Adapters and where they act."""

    at: str | None = Field(None, min_length=1)
    """Where they act: `"attention"`, `"mlp"`, `"block"`, `"linears"` (all linear layers of a block), or the path of a
    linear layer in a block, which may be a glob such as `"self_attn.*_proj"`. Default: the table's name."""
    blocks: Blocks | None = None
    """Blocks that get one: `"all"`, indices from 0 such as `[0, 2, 5]`, `"first 6"`, `"last 6"`, or `"every 4"` (the
    4th, the 8th, ...). Default: all."""
    only_with: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check_once)] | None = None
    """Inputs, such as `["scan"]`. The adapters act only on examples that have one of them; all others are computed as
    by the bare language model, bit by bit. Default: they act on all examples."""


class SourceKeys(Table):
    """Keys of the framework in the table of a data source of [[data.train]]."""

    weight: PositiveFloat = 1.0
    """How often the source is drawn from, relative to the others."""


class Init(Table):
    """Where the trained parts start from."""

    checkpoint: LocalPath | None = None
    """A checkpoint or the folder of a run. Each part that it contains starts from it."""


def _input_name(name: str, info: ValidationInfo) -> str:
    """Check the name of an input. Checkpoints of earlier versions keep their names."""
    problem = name_problem(name)
    if problem and not (info.context or {}).get("checkpoint"):
        raise ValueError(problem)
    return name


InputName = Annotated[str, AfterValidator(_input_name)]


def _table_name(name: str) -> str:
    if problem := table_name_problem(name):
        raise ValueError(problem)
    return name


AdapterName = Annotated[str, AfterValidator(_table_name)]


class FeatureCacheTable(Table):
    """Where the features of a frozen encoder are kept, so that each medium is prepared and encoded once."""

    folder: LocalPath | None = None
    """The folder, which several runs and encoders may share. Default: `features` in `$MAGMA_CACHE`, or in `magma` in
    the cache folder of the platform (`~/.cache`)."""
    max_bytes: PositiveInt = DEFAULT_MAX_BYTES
    """Largest size of the folder. The oldest features are removed when it is exceeded."""
    encode_by: EncodeBy = "batch"
    """What the encoder gets at once. `"batch"`: all media of a micro-batch, as without a cache, with the same losses
    bit by bit; features are used for batches with as many media. `"item"`: one medium, for batches of any size."""


def _cache_table(given: Any) -> Any:
    """`true` is a table with the defaults, `false` none."""
    if isinstance(given, bool):
        return {} if given else None
    if given is None or isinstance(given, Mapping | FeatureCacheTable):
        return given
    raise ValueError("true, false, or a table such as { max_bytes = 10_000_000_000 }")


def _or_boolean(schema: dict[str, Any]) -> None:
    schema["anyOf"].append({"type": "boolean"})


CacheKey = Annotated[FeatureCacheTable | None, BeforeValidator(_cache_table)]


class InputTable(Table):
    """One input of the model: an encoder and the prefix after it."""

    encoder: Use
    """Turns a raw value into features: `use` and the keys of that part."""
    prefix: Use
    """Maps features to word-embedding space: `use`, the keys of that part, and optionally `lr` and `trainable`."""
    trainable: bool = True
    """Train the encoder. It does not affect the prefix, whose own table has a `trainable` key."""
    lr: PositiveFloat | None = None
    """Learning rate of the encoder. Default: `train.lr`."""
    batchnorm: Literal["train", "frozen"] = "train"
    """BatchNorm of a trained encoder: `"train"` uses batch statistics and updates the running averages, `"frozen"` uses
    the pretrained averages."""
    cache: CacheKey = Field(None, json_schema_extra=_or_boolean)
    """Keep the features of a frozen encoder on disk: `true`, or a table. Default: they are computed each time."""


class Data(Table):
    """The data of training and of the evaluation loss."""

    train: tuple[Use, ...] = ()
    """Data sources for training."""
    evaluation: tuple[Use, ...] = ()
    """Data sources on which the evaluation loss is computed."""


class Constant(Table):
    """The peak learning rate in every step."""

    use: Literal["constant"]
    """The learning rate stays at its peak."""


class _Decay(Table):
    """A schedule that ends at a fraction of the peak learning rate."""

    @model_validator(mode="before")
    @classmethod
    def _accept_former_key(cls, given: Any) -> Any:
        return with_current_keys(given, {"final": "final_lr_ratio"}) if isinstance(given, dict) else given


class Cosine(_Decay):
    """Half a cosine from the peak learning rate to a fraction of it."""

    use: Literal["cosine"]
    """Half a cosine from the peak to `final_lr_ratio` times the peak."""
    final_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate of the last step, as a fraction of the peak."""


class Linear(_Decay):
    """A straight line from the peak learning rate to a fraction of it."""

    use: Literal["linear"]
    """A straight line from the peak to `final_lr_ratio` times the peak."""
    final_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate of the last step, as a fraction of the peak."""


_Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Table):
    """The optimizer and its options, as in `torch.optim`."""

    use: Literal["adam", "adamw"] = "adam"
    """Adam, or AdamW with decoupled weight decay, as in `torch.optim`."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    """Decay rates of the two moment estimates."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator for numerical stability."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay coefficient."""


def _fill_schedule(given: Any) -> Any:
    """A schedule without `use` changes the default one."""
    return {"use": "cosine", **given} if isinstance(given, dict) and "use" not in given else given


def _check_micro_batch(value: Any) -> Any:
    """Check the value with one message; pydantic would give one for each type."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError('"auto", or a whole number above 0')


class Train(Table):
    """Optimizer, length, batch size and everything else about training."""

    lr: PositiveFloat
    """Peak learning rate of every part without its own `lr`."""
    batch_size: PositiveInt
    """Examples per optimizer step, over all processes and accumulation steps."""
    samples: PositiveInt | None = None
    """Length of the run in examples. Give either `samples` or `steps`. A partial last batch is a step."""
    steps: PositiveInt | None = None
    """Length of the run in optimizer steps."""
    micro_batch_size: Annotated[int | Literal["auto"], BeforeValidator(_check_micro_batch)] = "auto"
    """Examples that one process computes at once; the rest of its share is done by gradient accumulation. `"auto"`: the
    largest size that fits into memory by the plan's estimate."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    schedule: Annotated[Constant | Cosine | Linear, BeforeValidator(_fill_schedule)] = Field(
        Cosine(use="cosine"), discriminator="use"
    )
    """Learning rate after the warm-up: `cosine`, `linear` or `constant`."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and its options."""
    precision: Precision = "bf16"
    """Precision of training."""
    gradient_clipping: float = Field(0.0, ge=0)
    """Maximum norm of the gradient; 0 disables clipping."""
    loss: Literal["token_mean", "micro_batch_mean"] = "token_mean"
    """`"token_mean"`: mean over the target tokens of the global batch. `"micro_batch_mean"`: mean of the micro-batches'
    means, as in the authors' code."""
    loss_weights: dict[str, NonNegativeFloat] | None = None
    """Weights of auxiliary losses by their names, such as `{ contrast = 0.1 }`. Default: 1 for each loss that a trained
    part of the recipe has."""
    max_length: PositiveInt | None = None
    """Maximum length of an example in positions. Default: the language model's context. Required if the language model
    has no limit."""
    packing: PositiveInt | None = None
    """Pack several examples into rows of this many tokens; attention does not cross examples. Default: one example per
    row."""
    too_long: Literal["error", "skip"] = "error"
    """What happens with an example that does not fit even when its text is truncated: the run stops, or the example is
    skipped and counted."""
    unreadable: Literal["error", "skip"] = "error"
    """What happens with an example that cannot be read: the run stops, or the example is skipped and listed in
    `skipped.jsonl`."""
    max_unreadable: float = Field(MAX_UNREADABLE, ge=0, le=1)
    """The run stops when more than this fraction of the examples was unreadable. It is checked from the 100th example
    on."""
    evaluate_every: int = Field(0, ge=0)
    """Steps between evaluations of the loss; 0: only at the end."""
    early_stopping: PositiveInt | None = None
    """Stop after this many evaluations without a new lowest loss, and keep the best checkpoint. Needs `evaluate_every`
    and `[[data.evaluation]]`."""
    evaluate_samples: PositiveInt | None = None
    """Maximum number of examples per evaluation source. Default: all."""
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints are kept."""
    spike_factor: float | None = Field(None, gt=1)
    """Skip a step whose loss exceeds `spike_factor` times the running mean loss. Default: skip only steps whose loss or
    gradient is not finite."""
    max_skipped_steps: PositiveInt = 20
    """The run stops, with a checkpoint, after this many skipped steps in a row."""
    activation_checkpointing: Literal["none", "encoder", "lm", "all"] = "none"
    """Parts whose activations are recomputed in the backward pass. This saves memory and costs up to 44 % more
    FLOPs."""
    compile: bool = False
    """Compile the language model's blocks with `torch.compile`, which takes minutes at the start."""
    workers: int | None = Field(None, ge=0)
    """Processes per training process that decode and collate examples in advance. Default: up to 8 with a GPU,
    otherwise 0."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.samples is None) == (self.steps is None):
            raise ValueError("give either `samples` or `steps`")
        if self.early_stopping and not self.evaluate_every:
            raise PydanticCustomError(NEEDS, "train.early_stopping needs train.evaluate_every > 0")
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run. A partial last batch counts as a step."""
        if self.steps is not None:
            return self.steps
        assert self.samples is not None
        return -(-self.samples // self.batch_size)


def is_trained(table: Use) -> bool:
    """Whether a prefix, an adapter or a head is trained. Default: it is."""
    return bool(table.fields.get("trainable", True))
