"""Running a model on tensors without data, as plans and the conformance kit do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GROUPED_MM = torch.ops.aten._grouped_mm
"""Products of experts: [m, k] or [g, m, k] with [k, n] or [g, k, n]. The groups divide an axis of one of them, or k."""


class RunOnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """A context manager that adds what tensors on meta lack.

    A condition holds. Libraries ask whether all positions are real; they are in rows without padding.
    Products of experts are computed in every precision; torch has them on meta for bfloat16 only.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype == torch.bool:
            return True
        if func._overloadpacket is GROUPED_MM and args[0].is_meta:
            one, other, *more = args
            out: Tensor = func(one.bfloat16(), other.bfloat16(), *more, **kwargs)
            return out.to(one.dtype)
        return func(*args, **kwargs)
