"""DeepSpeed around a model: gradients, the optimizer's step, and the optimizer's state.

ZeRO partitions optimizer states, gradients or weights over the processes. What this class takes and gives are full
tensors under the model's own names, at every stage and with any number of processes, so that a run can resume with
another stage or number. `zero.py` has what differs between the stages. Only these two files and `processes.py` import
deepspeed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..auxiliary import Losses
from ..errors import TrainingError
from ..model import Magma
from ..plan import reduce_bucket, zero_stage
from ..recipe.assemble import DTYPES
from ..recipe.schema import Train
from ..system.distributed import DistributedContext
from .processes import suppress_logs
from .zero import ADAM_STATES, partition_parameters, zero_adapter

MASTER = "master"
"""The float32 copy of a parameter that is trained in half precision."""


class Engine:
    """A model and its optimizer, in one of several processes."""

    def __init__(
        self,
        model: Magma,
        rates: Mapping[str, float],
        train: Train,
        config: Mapping[str, Any],
        batches: tuple[int, int],
        world: DistributedContext,
    ) -> None:
        """Start DeepSpeed.

        Args:
            model: The model to train.
            rates: The peak learning rate of each part.
            train: The recipe's [train] table.
            config: DeepSpeed's own configuration, without the keys that [train] decides.
            batches: Micro-batch size and number of accumulation steps.
            world: This process among those that train together.

        Raises:
            TrainingError: If nothing is trainable, or a trainable parameter belongs to no part.
        """
        import deepspeed

        self.model, self.world, self.train = model, world, train
        self.stage = zero_stage(train, config)
        micro, accumulation = batches
        groups = _parameter_groups(model, rates)
        full = {
            "train_batch_size": micro * accumulation * world.size,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": train.gradient_clipping if self.stage else 0.0,  # stage 0 clips in its adapter
            "bf16": {"enabled": train.precision == "bf16"},
            "fp16": {"enabled": train.precision == "fp16"},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            **config,
            "zero_optimization": {
                **config.get("zero_optimization", {}),
                "stage": self.stage,
                "reduce_bucket_size": reduce_bucket(
                    config, sum(p.numel() for group in groups for p in group["params"])
                ),
            },
        }
        wanted = train.optimizer
        make = torch.optim.AdamW if wanted.use == "adamw" else torch.optim.Adam
        with suppress_logs():
            if self.stage == 3:
                partition_parameters(model, full, DTYPES[train.precision], world)
            optimizer = make(groups, betas=wanted.betas, eps=wanted.eps, weight_decay=wanted.weight_decay, fused=True)
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=full, dist_init_required=False
            )
        self.base_lrs = {group["name"]: group["lr"] for group in self._groups}
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.zero = zero_adapter(self.stage, self._engine, self.trained, world)
        self.norm = math.nan
        """Of the last step's gradient, before it was clipped."""

    @property
    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._engine.optimizer.param_groups
        return groups

    # Steps

    def set_lr(self, multiplier: float) -> dict[str, float]:
        """Set every part's learning rate to this fraction of its peak; the rates that were set."""
        for group in self._groups:
            group["lr"] = self.base_lrs[group["name"]] * multiplier
        return {group["name"]: group["lr"] for group in self._groups}

    def __call__(self, batch: Any, auxiliary: bool = False) -> Losses:
        """The losses of a micro-batch; `auxiliary` decides whether the auxiliary ones are computed."""
        if not auxiliary:
            return Losses(self._engine(batch), {})
        losses: Losses = self._engine(batch, auxiliary=True)
        return losses

    def backward(self, loss: Tensor, *, skip: bool = False) -> None:
        """Compute the gradients of one micro-batch.

        With `skip` in all processes, `step` will change neither weights nor optimizer. DeepSpeed has no call that drops
        a step (https://github.com/deepspeedai/DeepSpeed/issues/1496): every micro-batch needs its backward pass in
        every process, because the hooks on the parameters start the communication and count the micro-batches. But a
        gradient that is not finite makes `step` return without an update: in ZeRO's own check at every precision
        (https://github.com/deepspeedai/DeepSpeed/issues/8415), at stage 0 in the adapter. So the loss is multiplied by
        NaN. The graph stays that of a normal step, and all processes communicate as usual.
        """
        self._engine.backward(loss * math.nan if skip else loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro-batch

    def step(self) -> bool:
        """A step along the gradients of all micro-batches; False if it was skipped.

        A gradient that is not finite changes nothing: weights and optimizer stay as they are.
        """
        applied, self.norm = self.zero.step(self.train.gradient_clipping)
        return applied

    def restart(self, micro: int, accumulation: int) -> None:
        """Discard the micro-batches of an unfinished step; the next ones have this size and number."""
        self.zero.discard_step()
        self._engine.set_train_micro_batch_size(micro)
        self._engine.set_train_batch_size(micro * accumulation * self.world.size)
        self.zero.set_accumulation(accumulation)

    def release(self) -> None:
        """Free the weights and the optimizer before the next stage; DeepSpeed's hooks would keep this model."""
        self._engine.destroy()
        nothing = torch.empty(0)
        for p in self.model.parameters():
            p.grad = None
        self.zero.release(list(self.model.parameters()))
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            tensor.data = nothing.to(tensor.dtype)
        self.zero.adam.state.clear()
        for group in self.zero.adam.param_groups:
            for p in group["params"]:
                p.data = nothing.to(p.dtype)

    # Full tensors

    def iter_full_tensors(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Each tensor in full, one after the other, on every process."""
        return self.zero.iter_full_tensors(tensors)

    @torch.no_grad()
    def optimizer_state(self, applied: int) -> dict[str, Tensor]:
        """The optimizer's state after `applied` steps: `PARAMETER.exp_avg` and so on, and float32 copies.

        All processes call it. The first one gets the state, the others an empty dictionary.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        if applied:
            self.zero.relink()
        found: dict[str, Tensor] = {}
        for name, p in self.trained.items():
            full = {}
            if self.train.precision != "fp32":
                full[MASTER] = safe_get_full_fp32_param(p)
            for key in ADAM_STATES if applied else ():
                full[key] = self.zero.get_state(p, key)
            if self.world.rank == 0:
                found |= {f"{name}.{key}": value.detach().cpu() for key, value in full.items()}
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], state: Any, applied: int) -> None:
        """Load trained tensors and the optimizer's state; every process calls it with the same ones.

        Args:
            tensors: Trained tensors by name.
            state: An open safetensors file with what `optimizer_state` gave.
            applied: The number of steps that the optimizer has taken.
        """
        known = set(state.keys())
        own = self.model.trained_tensors()

        def exact(name: str) -> Tensor:
            """As precise as the checkpoint has it: the float32 copy of a tensor in half precision."""
            master = f"{name}.{MASTER}"
            found: Tensor = state.get_tensor(master) if master in known else tensors[name]
            return found

        for name in tensors:
            if name in self.trained:
                self.zero.copy_trained(own[name], exact(name))
            else:
                own[name].copy_(exact(name))
        if applied:
            self.zero.init_adam_state(applied)
        for name, p in self.trained.items():
            self.zero.set_master(p, exact(name).float())
            for key in ADAM_STATES if applied else ():
                self.zero.set_state(p, state.get_tensor(f"{name}.{key}").to(self.world.device), key)

    def loss_scaler_state(self) -> dict[str, float]:
        """The state of the loss scaler of half precision; JSON. Empty if there is none."""
        return self.zero.loss_scaler_state()

    def load_loss_scaler_state(self, state: Mapping[str, float]) -> None:
        """Restore it. The state of another kind of scaler belongs to another precision and is not used."""
        self.zero.load_loss_scaler_state(state)


def _parameter_groups(model: Magma, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """One parameter group for each trainable part."""
    groups = [
        {"params": [p for p in model.part_parameters(path) if p.requires_grad], "lr": rate, "name": path}
        for path, rate in rates.items()
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise TrainingError("nothing to train: no input and no adapter has a trainable parameter")
    declared = {id(p) for group in groups for p in group["params"]}  # type: ignore[attr-defined]  # values of groups have any type
    stray = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in declared]
    if stray:
        raise TrainingError(f"{len(stray)} trainable parameters belong to no declared part, the first is {stray[0]}")
    return groups
