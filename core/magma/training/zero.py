"""What DeepSpeed keeps at each stage of ZeRO, as full tensors: one adapter for each way of partitioning.

DeepSpeed has no public interface for much of this, so the adapters use private fields. They were checked with DeepSpeed
0.19.8, the oldest version that is allowed; a comment beside each workaround says why it is needed. Full tensors have
the model's own names and shapes at every stage and with any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..system.distributed import DistributedContext

ADAM_STATES = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of every parameter, by torch's names."""
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class ZeroAdapter:
    """Stage 0: every process holds everything. The other adapters override what their stage partitions."""

    def __init__(self, engine: Any, trained: Mapping[str, nn.Parameter], world: DistributedContext) -> None:
        """`engine` is DeepSpeed's; `trained` are the trainable parameters by name."""
        self.engine, self.trained, self.world = engine, trained, world
        self.adam: Any = engine.optimizer

    def step(self, gradient_clipping: float) -> tuple[bool, float]:
        """Take the optimizer's step; whether it was taken, and the norm of the gradient before it was clipped.

        A gradient that is not finite changes neither weights nor optimizer. At this stage DeepSpeed does not check
        that, so the norm is computed and clipped here.
        """
        norm = nn.utils.get_total_norm([p.grad for p in self.trained.values() if p.grad is not None])
        if not math.isfinite(float(norm)):
            for p in self.trained.values():
                p.grad = None  # torch's optimizers leave out a parameter without a gradient
            self.engine.step()
            return False, float(norm)
        if gradient_clipping:
            nn.utils.clip_grads_with_norm_(self.trained.values(), gradient_clipping, norm)
        self.engine.step()
        return True, float(norm)

    def discard_step(self) -> None:
        """Remove what an unfinished step has gathered. All processes call it.

        Weights and optimizer are unchanged until the end of a step. What remains of its micro-batches are gradients,
        the buckets that gather them, counters, and at stage 3 weights that were gathered. DeepSpeed has no function
        for it.
        """
        self.engine.zero_grad()
        self.engine.micro_steps = 0  # decides which micro-batch is the last one of an accumulation

    def set_accumulation(self, count: int) -> None:
        """The number of micro-batches of the next steps, if the optimizer keeps its own copy of it."""

    def release(self, parameters: list[nn.Parameter]) -> None:
        """Free what the stage holds of these parameters. The engine is not used any more."""

    # Full tensors

    def iter_full_tensors(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Each tensor in full, one after the other, on every process."""
        yield from tensors.items()

    @torch.no_grad()
    def copy_trained(self, target: Tensor, value: Tensor) -> None:
        """Copy a full tensor into a trainable parameter."""
        target.copy_(value)

    def get_state(self, p: nn.Parameter, key: str) -> Tensor:
        """One of `ADAM_STATES` of a parameter, in full."""
        found: Tensor = self.adam.state[p][key]
        return found

    def set_state(self, p: nn.Parameter, value: Tensor, key: str) -> None:
        """Copy a full float32 tensor into one of `ADAM_STATES` of a parameter."""
        self.adam.state[p][key].copy_(value)

    def set_master(self, p: nn.Parameter, value: Tensor) -> None:
        """Copy a full float32 tensor into the float32 copy of a parameter, if the stage has such copies."""

    # The optimizer's own tensors

    def init_adam_state(self, applied: int) -> None:
        """Make Adam's state as its first step would, to be filled; `applied` is the number of steps so far."""
        for p in self._adam_parameters():
            self.adam.state[p] = {
                "step": torch.tensor(float(applied), device=p.device),
                **{key: torch.zeros_like(p, memory_format=torch.preserve_format) for key in ADAM_STATES},
            }
        self.relink()

    def _adam_parameters(self) -> list[Tensor]:
        """The tensors that Adam sees as its parameters."""
        return list(self.trained.values())

    def relink(self) -> None:
        """Make `get_state` and `set_state` find Adam's state."""

    def loss_scaler_state(self) -> dict[str, float]:
        """The state of the loss scaler of half precision; JSON. Empty if there is none."""
        return {}

    def load_loss_scaler_state(self, state: Mapping[str, float]) -> None:
        """Restore it. The state of another kind of scaler belongs to another precision and is not used."""


class _Partitioned(ZeroAdapter):
    """What stages 1 to 3 have in common: DeepSpeed's optimizer around Adam."""

    def __init__(self, engine: Any, trained: Mapping[str, nn.Parameter], world: DistributedContext) -> None:
        super().__init__(engine, trained, world)
        self.zero: Any = engine.optimizer
        self.adam = self.zero.optimizer

    def step(self, gradient_clipping: float) -> tuple[bool, float]:  # in DeepSpeed's config
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return not self.zero.overflow, math.nan if norm is None else float(norm)

    def discard_step(self) -> None:
        super().discard_step()
        zero = self.zero
        zero.zero_grad()
        hooks = zero._backward_hook_state
        hooks.reset_for_new_step()
        hooks.backward_active_depth = hooks.remaining_grad_acc_hooks = 0
        for bucket in zero.ipg_buckets.values():
            self._clear(bucket)
        zero.averaged_gradients = {}
        reduced = zero.params_already_reduced
        for number in range(len(reduced)) if isinstance(reduced, list) else list(reduced):
            reduced[number] = False

    def _clear(self, bucket: Any) -> None:
        bucket.clear()

    def set_accumulation(self, count: int) -> None:
        # DeepSpeed's `set_train_batch_size` changes only the engine's number.
        self.zero.gradient_accumulation_steps = count

    def get_state(self, p: nn.Parameter, key: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        found: Tensor = safe_get_full_optimizer_state(p, key)
        return found

    def _groups(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        """ZeRO's groups of parameters, each with its flat float32 partition."""
        raise NotImplementedError

    def _adam_parameters(self) -> list[Tensor]:
        return [flat for _, flat in self._groups()]

    def loss_scaler_state(self) -> dict[str, float]:
        scaler = getattr(self.zero, "loss_scaler", None)
        return {key: getattr(scaler, key) for key in _SCALER_FIELDS if hasattr(scaler, key)}

    def load_loss_scaler_state(self, state: Mapping[str, float]) -> None:
        if state.keys() == self.loss_scaler_state().keys():
            for key, value in state.items():
                setattr(self.zero.loss_scaler, key, value)


class OptimizerPartitioned(_Partitioned):
    """Stages 1 and 2: optimizer states, and gradients at stage 2, are partitioned; weights are full."""

    def discard_step(self) -> None:
        super().discard_step()
        zero = self.zero
        zero.all_grad_tensors = {}
        zero.micro_step_id = -1  # its value after a step
        zero._clear_previous_reduced_grads()
        zero._release_ipg_buffers()
        zero.reset_partition_gradient_structures()

    def set_state(self, p: nn.Parameter, value: Tensor, key: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(p, value, key)

    def set_master(self, p: nn.Parameter, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(p, value.to(self.world.device))

    def _groups(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        zero = self.zero
        if hasattr(zero, "bf16_groups"):  # BF16_Optimizer; the other one is DeepSpeedZeroOptimizer
            return list(zip(zero.bf16_groups, zero.fp32_groups_flat_partition, strict=True))
        return list(zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True))

    def relink(self) -> None:
        # DeepSpeed does it only after its first own step (`_lazy_init_hp_params_optimizer_state`).
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for parameters, flat in self._groups():
            lazy_init_hp_params_optimizer_state(parameters, flat, self.adam.state)


class FullyPartitioned(_Partitioned):
    """Stage 3: weights are partitioned too."""

    def discard_step(self) -> None:
        """Also partition the weights that are gathered, and drop the recorded order of an unfinished pass."""
        super().discard_step()
        engine, offload = self.engine, self.zero.parameter_offload
        coordinator = offload.get_param_coordinator()
        if coordinator.is_invalid_trace():
            coordinator._clear_trace_structures()
            coordinator._clean_inflight_param_registry()
        else:
            coordinator._invalidate_trace()
        offload.release_backward_leftovers()
        for p in engine.module.parameters():
            if p.ds_status.name == "INFLIGHT":  # announced, but its gathering never began
                p.ds_status = type(p.ds_status).NOT_AVAILABLE
        engine.empty_partition_cache()

    def _clear(self, bucket: Any) -> None:
        bucket.clear_params()  # `clear` would drop the buffer, which stage 3 makes only once

    def release(self, parameters: list[nn.Parameter]) -> None:
        for p in parameters:
            p.ds_tensor.data = torch.empty(0)  # type: ignore[attr-defined]  # DeepSpeed's

    def iter_full_tensors(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        import deepspeed
        from deepspeed.runtime.zero.partition_parameters import is_zero_param

        # Evaluations run fewer modules than training: weights that were gathered for the others may be in flight.
        self.zero.parameter_offload.get_param_coordinator()._clean_inflight_param_registry()
        for name, tensor in tensors.items():
            if is_zero_param(tensor):
                with deepspeed.zero.GatheredParameters([tensor]):
                    yield name, tensor.detach().clone()
            else:
                yield name, tensor

    @torch.no_grad()
    def copy_trained(self, target: Tensor, value: Tensor) -> None:
        import deepspeed

        with deepspeed.zero.GatheredParameters([target], modifier_rank=0):
            if self.world.rank == 0:
                target.copy_(value)

    def set_state(self, p: nn.Parameter, value: Tensor, key: str) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        safe_set_local_optimizer_state(p, self._partition(p, value), key)

    def set_master(self, p: nn.Parameter, value: Tensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        safe_set_local_fp32_param(p, self._partition(p, value))

    def _partition(self, p: nn.Parameter, value: Tensor) -> Tensor:
        """This process's part of a full tensor, padded with zeros at the end.

        `safe_set_full_optimizer_state` and `safe_set_full_fp32_param`
        (https://github.com/deepspeedai/DeepSpeed/pull/4192) do not pad: they fail if the size is not a multiple of the
        number of processes.
        """
        value = value.to(self.world.device)
        size = p.ds_tensor.numel()  # type: ignore[attr-defined]  # DeepSpeed's
        padded = F.pad(value.flatten(), (0, size * self.world.size - value.numel()))
        return padded.narrow(0, size * self.world.rank, size)

    def _groups(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        return list(zip(self.zero.fp16_groups, self.zero.fp32_partitioned_groups_flat, strict=True))


def zero_adapter(
    stage: int, engine: Any, trained: Mapping[str, nn.Parameter], world: DistributedContext
) -> ZeroAdapter:
    """The adapter of a stage of ZeRO."""
    kind = {0: ZeroAdapter, 1: OptimizerPartitioned, 2: OptimizerPartitioned, 3: FullyPartitioned}[stage]
    return kind(engine, trained, world)


def partition_parameters(
    model: nn.Module, config: Mapping[str, Any], dtype: torch.dtype, world: DistributedContext
) -> None:
    """Partition every parameter for stage 3.

    Modules are partitioned one at a time, so that of weights that are mapped from a file no process holds all.
    """
    import deepspeed

    for module in model.modules():
        parameters = list(module.parameters(recurse=False))
        for p in parameters:
            p.data = p.data.to(world.device, dtype, copy=True)  # DeepSpeed writes to it, and a mapped page would stay
        if parameters:
            holder = nn.Module()
            holder.held = nn.ParameterList(parameters)
            deepspeed.zero.Init(module=holder, config_dict_or_path=dict(config), dtype=dtype)
            world.barrier()  # a faster process would fill the others' memory with what it sends
    model.to(device=world.device, dtype=dtype)  # the buffers
