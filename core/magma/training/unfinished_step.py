"""Take back what DeepSpeed has gathered in a step that was not finished: it has no public way to do so.

The weights and the optimizer are untouched until a step's end. What remains of its micro-batches are gradients, the
buckets that gather them, counts of micro-batches, and under stage 3 of ZeRO weights that were gathered.
"""

from __future__ import annotations

from typing import Any


def discard(engine: Any, stage: int) -> None:
    """Leave a DeepSpeed engine as it was before the step. Every process does so."""
    engine.zero_grad()
    engine.micro_steps = 0  # what makes an accumulation's last micro-batch its last
    if not stage:
        return
    zero = engine.optimizer
    zero.zero_grad()
    hooks = zero._backward_hook_state
    hooks.reset_for_new_step()
    hooks.backward_active_depth = hooks.remaining_grad_acc_hooks = 0
    for bucket in zero.ipg_buckets.values():
        bucket.clear_params() if stage == 3 else bucket.clear()  # stage 3 makes its buffer only once
    zero.averaged_gradients = {}
    numbers = zero.params_already_reduced
    for number in range(len(numbers)) if isinstance(numbers, list) else list(numbers):
        numbers[number] = False
    if stage == 3:
        _release(engine)
    else:
        zero.all_grad_tensors = {}
        zero.micro_step_id = -1  # as after a step
        zero._clear_previous_reduced_grads()
        zero._release_ipg_buffers()
        zero.reset_partition_gradient_structures()


def _release(engine: Any) -> None:
    """Partition what is gathered, and forget the order in which an unfinished pass has asked for it."""
    offload = engine.optimizer.parameter_offload
    coordinator = offload.get_param_coordinator()
    if coordinator.is_invalid_trace():
        coordinator._clear_trace_structures()
        coordinator._clean_inflight_param_registry()
    else:
        coordinator._invalidate_trace()
    offload.release_backward_leftovers()
    for p in engine.module.parameters():
        if p.ds_status.name == "INFLIGHT":  # it was announced, and its gathering never began
            p.ds_status = type(p.ds_status).NOT_AVAILABLE
    engine.empty_partition_cache()
