"""The tables of a recipe that core knows; `recipe.py` puts them together."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    model_validator,
)

from ..names import name_problem
from .paths import LocalPath

MAX_UNREADABLE = 0.01
"""The share of examples, or of an evaluation's questions, that need not be readable."""
Precision = Literal["bf16", "fp16", "fp32"]


class Table(BaseModel):
    """Base of the tables: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Use(BaseModel):
    """A table that names a part; the other keys are for its `Config`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TaskTable(Use):
    """An evaluation of the finished checkpoint."""

    shots: tuple[NonNegativeInt, ...] = Field((0,), min_length=1)
    """How many completed examples stand before each question; the task is asked once for each."""


class Init(Table):
    """Where the trained weights start."""

    checkpoint: LocalPath | None = None
    """A MAGMA folder to start the trained weights from."""


def _input_name(name: str, info: ValidationInfo) -> str:
    """A checkpoint of an earlier version keeps the names that it has."""
    problem = name_problem(name)
    if problem and not (info.context or {}).get("checkpoint"):
        raise ValueError(problem)
    return name


InputName = Annotated[str, AfterValidator(_input_name)]


class InputTable(Table):
    """One way into the language model."""

    encoder: Use
    prefix: Use
    trainable: bool = True
    """Of the encoder only; the prefix's table has a `trainable`, too."""
    lr: PositiveFloat | None = None
    """The encoder's learning rate; [train].lr where it is not given."""
    batchnorm: Literal["train", "frozen"] = "train"
    """A trained encoder's BatchNorm: batch statistics, averaged for later, or the pretrained ones throughout."""


class Data(Table):
    """What is trained on, and what the loss is watched on."""

    train: tuple[Use, ...] = ()
    """Each may have a `weight`: how often it is drawn from, relative to the others."""
    evaluation: tuple[Use, ...] = ()


class Constant(Table):
    """The highest learning rate, always."""

    use: Literal["constant"]


class Cosine(Table):
    """Half a cosine from the highest learning rate down to a fraction of it."""

    use: Literal["cosine"]
    final: float = Field(0.1, ge=0, le=1)
    """The last step's learning rate, as a fraction of the highest."""


class Linear(Table):
    """A straight line from the highest learning rate down to a fraction of it."""

    use: Literal["linear"]
    final: float = Field(0.0, ge=0, le=1)


_Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Table):
    """As torch.optim has it."""

    use: Literal["adam", "adamw"] = "adam"
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(0.0, ge=0)


def _check_micro_batch(value: Any) -> Any:
    """One message, where pydantic has one for each type."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError('"auto", or a whole number above 0')


class Train(Table):
    """How to train."""

    lr: PositiveFloat
    batch_size: PositiveInt
    """Examples a step, over all processes."""
    samples: PositiveInt | None = None
    steps: PositiveInt | None = None
    micro_batch_size: Annotated[int | Literal["auto"], BeforeValidator(_check_micro_batch)] = "auto"
    """Examples that one process takes at once. auto: as many of its share as fit into memory by the plan's estimate."""
    warmup_steps: int = Field(0, ge=0)
    schedule: Constant | Cosine | Linear = Field(Cosine(use="cosine"), discriminator="use")
    optimizer: Optimizer = Optimizer()
    precision: Precision = "bf16"
    gradient_clipping: float = Field(0.0, ge=0)
    """Largest norm of the gradient; 0: not clipped."""
    loss: Literal["token_mean", "micro_batch_mean"] = "token_mean"
    """token_mean: over the targets of the global batch. micro_batch_mean: the authors' code's mean of means."""
    max_length: PositiveInt | None = None
    """Longest example in positions; the language model's context where it is not given."""
    packing: PositiveInt | None = None
    """Positions of a row that several examples share, each seeing itself alone; one example a row without it."""
    too_long: Literal["error", "skip"] = "error"
    """What to do with an example that does not fit even when its text is cut."""
    unreadable: Literal["error", "skip"] = "error"
    """What to do with an example whose row or medium cannot be read; skipped ones are listed in skipped.jsonl."""
    max_unreadable: float = Field(MAX_UNREADABLE, ge=0, le=1)
    """More than this share of the examples drawn so far, of at least 100, cannot be read: the run ends."""
    evaluate_every: int = Field(0, ge=0)
    """Steps between evaluations of the loss; 0: at the end alone."""
    early_stopping: PositiveInt | None = None
    """End after so many evaluations without a new lowest loss, and keep the checkpoint of the lowest one."""
    evaluate_samples: PositiveInt | None = None
    """Most examples of each evaluation set; all where it is not given."""
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0: at the end alone."""
    keep_checkpoints: PositiveInt = 2
    spike_factor: float | None = Field(None, gt=1)
    """A step whose loss is more than so many times that of late is skipped; without it, one that is not finite."""
    max_skipped_steps: PositiveInt = 20
    """So many skipped steps in a row end the run, with a checkpoint."""
    activation_checkpointing: Literal["none", "encoder", "lm", "all"] = "none"
    """Parts that run a second time in the backward pass instead of keeping their activations."""
    compile: bool = False
    """Compile the language model's blocks with torch.compile: minutes at the start."""
    workers: int | None = Field(None, ge=0)
    """Processes that decode and collate ahead of each training process; where there is a GPU, up to 8 by default."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.samples is None) == (self.steps is None):
            raise ValueError("give either `samples` or `steps`")
        if self.early_stopping and not self.evaluate_every:
            raise ValueError("early_stopping with evaluate_every: the loss has to be watched")
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; a last partial batch counts as one."""
        if self.steps is not None:
            return self.steps
        assert self.samples is not None
        return -(-self.samples // self.batch_size)


def is_trained(table: Use) -> bool:
    """Whether a prefix, an adapter or a head is trained: by default it is."""
    return bool(table.fields.get("trainable", True))
