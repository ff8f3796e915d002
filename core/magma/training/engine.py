"""DeepSpeed around a model: the optimizer's step, and its state. Only this file and `processes.py` import deepspeed.

ZeRO partitions optimizer states, gradients or weights over the processes. What is given or taken here is whole, under
the model's own names, whatever the stage and however many processes: a run goes on with another number of either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import TrainingError
from ..model import Magma
from ..plan import reduce_bucket, zero_stage
from ..recipe.assemble import DTYPES
from ..recipe.schema import Train
from ..system.world import World
from .processes import quiet
from .unfinished_step import discard

AVERAGES = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of every parameter, by torch's names."""
MASTER = "master"
"""The float32 copy of a parameter that is trained in half precision."""
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Engine:
    """A model and its optimizer, in one of several processes.

    `rates` gives each part's highest learning rate. Raises `TrainingError` where nothing would be learnt.
    """

    def __init__(
        self,
        model: Magma,
        rates: Mapping[str, float],
        train: Train,
        config: Mapping[str, Any],
        batches: tuple[int, int],
        world: World,
    ) -> None:
        """`config` is DeepSpeed's own, without what [train] owns; `batches` are micro-batch size and accumulation."""
        import deepspeed

        self.model, self.world, self.train = model, world, train
        self.stage = zero_stage(train, config)
        micro, accumulation = batches
        groups = _groups(model, rates)
        full = {
            "train_batch_size": micro * accumulation * world.size,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": train.gradient_clipping if self.stage else 0.0,  # below, where the norm is known
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
        with quiet():
            if self.stage == 3:
                _partition(model, full, DTYPES[train.precision], world)
            optimizer = make(groups, betas=wanted.betas, eps=wanted.eps, weight_decay=wanted.weight_decay, fused=True)
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=full, dist_init_required=False
            )
        deep: Any = self._engine.optimizer
        self._zero: Any = deep if self.stage else None
        self._adam: Any = deep.optimizer if self.stage else deep
        self.highest = {group["name"]: group["lr"] for group in self._groups}
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.norm = math.nan
        """Of the last step's gradient, before it was clipped."""

    @property
    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._engine.optimizer.param_groups
        return groups

    # Steps

    def rates(self, factor: float) -> dict[str, float]:
        """Set every part's learning rate to this fraction of its highest, and tell them."""
        for group in self._groups:
            group["lr"] = self.highest[group["name"]] * factor
        return {group["name"]: group["lr"] for group in self._groups}

    def __call__(self, batch: Any) -> Tensor:
        loss: Tensor = self._engine(batch)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch."""
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # it counts

    def step(self) -> bool:
        """A step along the gradients of all micro-batches; False where there was none to take.

        A gradient that is not finite changes nothing: weights and optimizer stay as they are.
        """
        if not self.stage:
            gradients = [p.grad for p in self.trained.values() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            self.norm = float(norm)
            if not math.isfinite(self.norm):
                for p in self.trained.values():
                    p.grad = None  # what torch's optimizers pass over
                self._engine.step()
                return False
            if self.train.gradient_clipping:
                nn.utils.clip_grads_with_norm_(self.trained.values(), self.train.gradient_clipping, norm)
        self._engine.step()
        if self.stage:
            norm = self._engine.get_global_grad_norm()
            self.norm = math.nan if norm is None else float(norm)
            return not self._zero.overflow
        return True

    def restart(self, micro: int, accumulation: int) -> None:
        """Take back the micro-batches of a step that was not finished; the next ones are of this size and number."""
        discard(self._engine, self.stage)
        self._engine.set_train_micro_batch_size(micro)
        self._engine.set_train_batch_size(micro * accumulation * self.world.size)
        if self.stage:
            self._zero.gradient_accumulation_steps = accumulation

    def release(self) -> None:
        """Free the weights and the optimizer: another model follows, and what DeepSpeed has hooked keeps this one."""
        self._engine.destroy()
        nothing = torch.empty(0)
        for p in self.model.parameters():
            p.grad = None
            if self.stage == 3:
                p.ds_tensor.data = nothing  # type: ignore[attr-defined]  # DeepSpeed's
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            tensor.data = nothing.to(tensor.dtype)
        self._adam.state.clear()
        for group in self._adam.param_groups:
            for p in group["params"]:
                p.data = nothing.to(p.dtype)

    # Whole tensors

    def whole(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Each tensor in full, one after the other, on every process."""
        if self.stage < 3:
            yield from tensors.items()
            return
        import deepspeed
        from deepspeed.runtime.zero.partition_parameters import is_zero_param

        for name, tensor in tensors.items():
            if is_zero_param(tensor):
                with deepspeed.zero.GatheredParameters([tensor]):
                    yield name, tensor.detach().clone()
            else:
                yield name, tensor

    @torch.no_grad()
    def state(self, applied: int) -> dict[str, Tensor]:
        """What the optimizer has gathered in `applied` steps, by parameter: averages, and float32 copies.

        All processes take part; the first one gets it, the others nothing.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if applied:
            self._link()
        found: dict[str, Tensor] = {}
        for name, p in self.trained.items():
            whole = {}
            if self.train.precision != "fp32":
                whole[MASTER] = safe_get_full_fp32_param(p)
            for key in AVERAGES if applied else ():
                whole[key] = safe_get_full_optimizer_state(p, key) if self.stage else self._adam.state[p][key]
            if self.world.rank == 0:
                found |= {f"{name}.{key}": value.detach().cpu() for key, value in whole.items()}
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], state: Any, applied: int) -> None:
        """Go on from trained tensors and a `state` in an open safetensors file; every process gives the same ones."""
        import deepspeed

        known = set(state.keys())
        own = self.model.trained_tensors()

        def exact(name: str) -> Tensor:
            """As precise as the checkpoint has it: of half precision its float32 copy."""
            master = f"{name}.{MASTER}"
            found: Tensor = state.get_tensor(master) if master in known else tensors[name]
            return found

        for name in tensors:
            if self.stage == 3 and name in self.trained:
                with deepspeed.zero.GatheredParameters([own[name]], modifier_rank=0):
                    if self.world.rank == 0:
                        own[name].copy_(exact(name))
            else:
                own[name].copy_(exact(name))
        if applied:
            self._make_averages(applied)
        for name, p in self.trained.items():
            if self.stage:
                self._put(p, exact(name).float(), None)
            for key in AVERAGES if applied else ():
                self._put(p, state.get_tensor(f"{name}.{key}"), key)

    def _make_averages(self, applied: int) -> None:
        """Adam makes them in its first step: here before it, to be filled, with the count of steps so far."""
        kept = [flat for _, flat in self._flat()] if self.stage else self.trained.values()
        for p in kept:
            self._adam.state[p] = {
                "step": torch.tensor(float(applied), device=p.device),
                **{key: torch.zeros_like(p, memory_format=torch.preserve_format) for key in AVERAGES},
            }
        self._link()

    def _flat(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        """ZeRO's groups of parameters, each with its flat float32 share."""
        zero = self._zero
        if self.stage == 3:
            return list(zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True))
        if hasattr(zero, "bf16_groups"):
            return list(zip(zero.bf16_groups, zero.fp32_groups_flat_partition, strict=True))
        return list(zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True))

    def _link(self) -> None:
        """Tell parameters where their averages are: DeepSpeed does so before every group has made its own."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        if self.stage in (1, 2):
            for parameters, flat in self._flat():
                lazy_init_hp_params_optimizer_state(parameters, flat, self._adam.state)

    def _put(self, p: nn.Parameter, value: Tensor, key: str | None) -> None:
        """A whole float32 tensor into one parameter's average, or its float32 copy without a key."""
        from deepspeed import utils

        value = value.to(self.world.device)
        if not self.stage:
            assert key is not None
            self._adam.state[p][key].copy_(value)
        elif self.stage < 3 and key is None:
            utils.safe_set_full_fp32_param(p, value)
        elif self.stage < 3:
            utils.safe_set_full_optimizer_state(p, value, key)
        else:  # the last share is padded, which DeepSpeed's own function for whole tensors forgets
            share = p.ds_tensor.numel()  # type: ignore[attr-defined]  # DeepSpeed's
            padded = F.pad(value.flatten(), (0, share * self.world.size - value.numel()))
            own = padded.narrow(0, share * self.world.rank, share)
            if key is None:
                utils.safe_set_local_fp32_param(p, own)
            else:
                utils.safe_set_local_optimizer_state(p, own, key)

    @property
    def scale(self) -> dict[str, float]:
        """Where the loss scaler of half precision stands; JSON."""
        scaler = getattr(self._zero, "loss_scaler", None)
        return {key: getattr(scaler, key) for key in _SCALER if hasattr(scaler, key)}

    @scale.setter
    def scale(self, found: Mapping[str, float]) -> None:
        """A scaler of another kind, or none, belongs to another precision: then this one starts fresh."""
        if found.keys() == self.scale.keys():
            for key, value in found.items():
                setattr(self._zero.loss_scaler, key, value)


def _groups(model: Magma, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """One parameter group a part that learns."""
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


def _partition(model: Magma, config: Mapping[str, Any], dtype: torch.dtype, world: World) -> None:
    """Every parameter to its shares, one at a time: of weights that are mapped from a file, nobody holds the whole."""
    import deepspeed

    for module in model.modules():
        parameters = list(module.parameters(recurse=False))
        for p in parameters:
            p.data = p.data.to(world.device, dtype, copy=True)  # DeepSpeed writes to it, and a mapped page would stay
        if parameters:
            alone = nn.Module()
            alone.held = nn.ParameterList(parameters)
            deepspeed.zero.Init(module=alone, config_dict_or_path=dict(config), dtype=dtype)
            world.barrier()  # nobody runs ahead: what it sends would pile up with the others
    model.to(device=world.device, dtype=dtype)  # the buffers
