"""Checks of a callback: it watches a simulated training, whose model is made of the templates of new plugins."""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...callbacks import Callback, CallbackContext, copy_state
from ...inputs import Input
from ...model import Magma
from ..scaffold import TEMPLATES
from .subject import Check, PartUnderTest, require

_LOSSES = (4.0, 3.5, 3.0, 2.5, None, 2.0, 1.8, 90.0, 1.5, 80.0, 1.2, 1.0)
"""Of the simulated steps: one is skipped, two are spikes."""
_EVALUATE_EVERY, _SAVE_EVERY = 4, 3
_RATE = 1e-3
_BATCH = 4


@dataclass
class _Training:
    """A simulated training that a callback watches, from the step after `first`."""

    callback: Callback
    first: int = 0
    after: Callable[[str], None] = lambda _: None
    """Called after each hook, with its name."""
    model: Magma = field(default_factory=lambda: _model())
    requests: list[tuple[int, bool, bool]] = field(default_factory=list)
    """In order: the step, whether a stop was requested, and whether a checkpoint was."""
    states: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Of the callback in each checkpoint, by step."""

    def run(self) -> _Training:
        """Call the hooks as a training does."""
        with tempfile.TemporaryDirectory() as folder:
            self.folder = Path(folder)
            self._call("on_train_begin", self.first)
            for step, loss in enumerate(_LOSSES[self.first :], self.first + 1):
                self._step(step, loss)
            self._call("on_train_end", len(_LOSSES), checkpoint=self.folder)
        return self

    def _step(self, step: int, loss: float | None) -> None:
        rates = {"inputs.input.prefix": _RATE}
        self._call("on_step_begin", step, done=step - 1, learning_rates=rates)
        skipped = {"skipped": True} if loss is None else {}
        row = {"step": step, "loss": loss, "gradient_norm": loss, "lr": rates, "samples": _BATCH, **skipped}
        row |= {"waited_s": 0.0, "samples_per_s": 1.0, "tokens_per_s": 9.0}
        self._call("on_step_end", step, metrics=row, learning_rates=rates)
        if step % _EVALUATE_EVERY == 0:
            self._call("on_evaluate", step, metrics={"step": step, "evaluation_loss": 1.0}, learning_rates=rates)
        if step % _SAVE_EVERY == 0:
            self.states[step] = copy_state(self.callback)
            self._call("on_save", step, checkpoint=self.folder, learning_rates=rates)

    def _call(self, hook: str, step: int, done: int | None = None, **fields: Any) -> None:
        context = CallbackContext(
            *(self.model, self.folder, step, len(_LOSSES), _BATCH * (step if done is None else done)), **fields
        )
        getattr(self.callback, hook)(context)
        if context.requests.stop or context.requests.checkpoint:
            self.requests.append((step, bool(context.requests.stop), context.requests.checkpoint))
        self.after(hook)


@cache
def _template(kind: str) -> Any:
    return runpy.run_path(str(TEMPLATES / f"{kind}.py"))["NewPart"]


def _model() -> Magma:
    torch.manual_seed(0)
    lm, encoder = _template("lm").build(), _template("encoder").build()
    prefix = _template("prefix").build(encoder.dim, encoder.length, lm.embedding_dim)
    return Magma(lm, {"input": Input(encoder, prefix)}).train()


def hooks_run(subject: PartUnderTest) -> None:
    """Every hook runs in a training with a skipped step, whose loss is None, an evaluation and checkpoints."""
    _Training(subject.make()).run()


def hooks_change_no_model(subject: PartUnderTest) -> None:
    """No hook changes the model: its tensors, what is trained, its mode."""
    training = _Training(subject.make())
    model = training.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def facts() -> list[tuple[bool, ...]]:
        modes = [(module.training,) for module in model.modules()]
        return modes + [(p.requires_grad, p.grad is None) for p in model.parameters()]

    expected = facts()

    def check(hook: str) -> None:
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
        require(not changed, f"{hook} changed the model's {', '.join(changed[:3])}")
        require(facts() == expected, f"{hook} changed the model's mode, its gradients, or what is trained")

    training.after = check
    training.run()


def state_is_saved_and_loaded(subject: PartUnderTest) -> None:
    """A training that is resumed from any checkpoint has the same requests and ends with the same state."""
    whole, again = (_Training(subject.make()).run() for _ in range(2))
    last = len(_LOSSES)
    stable = [name for name in whole.states[last] if _equal(whole.states[last][name], again.states[last].get(name))]
    for step in list(whole.states)[:-1]:
        callback = subject.make()
        if whole.states[step]:
            callback.load_state_dict(whole.states[step])
        resumed = _Training(callback, step).run()
        expected = [request for request in whole.requests if request[0] > step]
        require(
            resumed.requests == expected,
            f"resumed after step {step} of {last}, its requests (step, stop, checkpoint) are {resumed.requests}, and "
            f"{expected} without an interruption: `state_dict` or `load_state_dict` lacks something",
        )
        for name in stable:
            found, wanted = resumed.states[last].get(name), whole.states[last][name]
            require(_equal(found, wanted), f"resumed after step {step}, {name} ends as {found}, and not as {wanted}")


def saving_changes_no_state(subject: PartUnderTest) -> None:
    """`on_save` and `on_train_end` do not change the state: it is saved before them."""
    training = _Training(subject.make())
    before: dict[str, Any] = {}

    def check(hook: str) -> None:
        now = copy_state(training.callback)
        if hook in ("on_save", "on_train_end"):
            changed = [name for name in now if not _equal(now[name], before.get(name))]
            require(not changed, f"{hook} changed the state: {', '.join(changed)}")
        before.clear()
        before.update(now)

    training.after = check
    training.run()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    return bool(one == other) if not isinstance(other, Tensor | Mapping) or type(one) is type(other) else False


CHECKS: tuple[Check, ...] = (
    hooks_run,
    hooks_change_no_model,
    state_is_saved_and_loaded,
    saving_changes_no_state,
)
