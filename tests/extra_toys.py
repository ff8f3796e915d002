"""Toy parts with auxiliary losses, and toy callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import ToyAdapter, ToyEncoder, ToyHead, ToyPrefix

from magma import Callback, CallbackContext, LossContext, PartConfig, hookimpl


class Near(ToyPrefix):
    """Embeddings near the caption's words. A parameter of the part itself scales the distance."""

    name = "near"
    auxiliary_losses = ("distance",)

    def __init__(self, config: PartConfig, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.scale = nn.Parameter(torch.ones(3))
        self.projection = nn.Linear(dim, dim)

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        caption = context.caption_embeddings()
        found = self.projection(context.embeddings[context.input].values.mean(1))
        return {"distance": F.mse_loss(found, caption) * self.scale.square().sum()}


class Spread(ToyEncoder):
    """Features of unit variance, in training mode only."""

    name = "spread"
    auxiliary_losses = ("variance",)

    def __init__(self, config: ToyEncoder.Config) -> None:
        super().__init__(config)
        self.own_norm = nn.BatchNorm1d(config.dim)

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        return {"variance": self.own_norm(context.features[context.input].values[:, 0]).square().mean()}


class Quiet(ToyAdapter):
    """Its last output is small: a loss from what `forward` has kept."""

    name = "quiet"
    auxiliary_losses = ("size",)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        h = sublayer(x)
        self.last = self.up(self.down(h).relu())
        return h + self.last

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        return {"size": self.last.square().mean()}


class SmallWeights(ToyHead):
    name = "small_weights"
    auxiliary_losses = ("norm",)

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        return {"norm": self.linear.weight.square().sum() + 0 * context.hidden.sum()}


class Wrong(ToyPrefix):
    """Returns what it is configured to return."""

    name = "wrong"
    auxiliary_losses = ("one", "two")

    class Config(PartConfig):
        fault: str

    def auxiliary_loss(self, context: LossContext) -> Any:
        one = self.linear.weight.sum()
        faults = {"list": [one], "missing": {"one": one}, "vector": {"one": one, "two": self.linear.bias}}
        return {**faults, "number": {"one": one, "two": 1.0}}[self.config.fault]


class Diary(Callback):
    """Writes a line for each call; its state is the sum of the losses, and their moving average as a tensor."""

    name = "diary"

    class Config(PartConfig):
        key: str = "a"

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.total, self.mean = 0.0, torch.zeros(1)

    def write(self, hook: str, context: CallbackContext, *more: Any) -> None:
        torch.rand(3)  # does not change the run
        context.run_folder.mkdir(exist_ok=True)
        with (context.run_folder / f"diary-{context.rank}.txt").open("a") as file:
            print(self.config.key, hook, context.step, context.samples, *more, file=file)

    def on_train_begin(self, context: CallbackContext) -> None:
        self.write("begin", context, context.total_steps, len(context.learning_rates))

    def on_step_begin(self, context: CallbackContext) -> None:
        self.write("step", context, len(context.metrics))

    def on_step_end(self, context: CallbackContext) -> None:
        self.total += context.metrics["loss"]
        self.mean = 0.5 * self.mean + 0.5 * context.metrics["loss"]
        self.write("stepped", context, context.learning_rates == context.metrics["lr"])

    def on_evaluate(self, context: CallbackContext) -> None:
        self.total += context.metrics["evaluation_loss"]
        self.write("evaluated", context)

    def on_save(self, context: CallbackContext) -> None:
        assert context.checkpoint is not None
        self.write("saved", context, context.checkpoint.name, (context.checkpoint / "manifest.json").is_file())

    def on_train_end(self, context: CallbackContext) -> None:
        assert context.checkpoint is not None
        self.write("end", context, context.checkpoint.name)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "mean": self.mean, "seen": {"key": [self.config.key]}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.mean = state["total"], state["mean"]


class Asks(Callback):
    """Requests a stop or a checkpoint at a step, or raises, in one process only."""

    name = "asks"

    class Config(PartConfig):
        step: int = 3
        what: Literal["stop", "checkpoint", "error"]
        hook: str = "on_step_end"
        rank: int = 0

    config: Config

    def _act(self, hook: str, context: CallbackContext) -> None:
        if (self.config.hook, self.config.step, self.config.rank) != (hook, context.step, context.rank):
            return
        if self.config.what == "stop":
            context.request_stop("seen enough")
        elif self.config.what == "checkpoint":
            context.request_checkpoint()
        else:
            raise ZeroDivisionError("the callback divides")

    def on_train_begin(self, context: CallbackContext) -> None:
        self._act("on_train_begin", context)

    def on_step_begin(self, context: CallbackContext) -> None:
        self._act("on_step_begin", context)

    def on_step_end(self, context: CallbackContext) -> None:
        self._act("on_step_end", context)

    def on_evaluate(self, context: CallbackContext) -> None:
        self._act("on_evaluate", context)

    def on_save(self, context: CallbackContext) -> None:
        self._act("on_save", context)

    def on_train_end(self, context: CallbackContext) -> None:
        self._act("on_train_end", context)


class Unsaved(Callback):
    """Its state is what its config says, and cannot be saved."""

    name = "unsaved"

    class Config(PartConfig):
        kind: str

    config: Config

    def state_dict(self) -> Any:
        kinds: dict[str, Any] = {"set": {"x": {1}}, "tuple": {"x": (1, 2)}, "nan": {"x": float("nan")}, "list": [1]}
        return {**kinds, "keys": {"x": {1: 2}}}[self.config.kind]


@hookimpl
def magma_parts() -> list[type]:
    return [Near, Spread, Quiet, SmallWeights, Wrong, Diary, Asks, Unsaved]
