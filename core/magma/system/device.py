"""Devices as users name them: "cpu", "cuda", "cuda:1"."""

from __future__ import annotations

import torch

from ..errors import InputError


def check_device(given: torch.device | str, meta: bool = False) -> torch.device:
    """The device of this name; "meta" only with `meta`.

    Raises:
        InputError: If torch or this machine has no such device.
    """
    allowed = ", ".join(available())
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device: given {str(given)!r}; allowed on this machine: {allowed}") from error
    if device.type == "cpu" or (meta and device.type == "meta"):
        return device
    count = _count(device.type)
    if count == 0:
        raise InputError(
            f"device: given {str(given)!r}, and torch {torch.__version__} can use no such device here; "
            f"allowed on this machine: {allowed}"
        )
    if (device.index or 0) >= count:
        raise InputError(f"device: given {str(given)!r}; allowed on this machine: {allowed}")
    return device


def default_device() -> str:
    """The GPU, if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def emulates_bf16(device: torch.device | str) -> bool:
    """Whether this is a CPU on which matrix products in bf16 are much slower than in float32."""
    return torch.device(device).type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("NO AVX", "AVX2")


def available() -> list[str]:
    """The devices of this machine."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return ["cpu"]
    return ["cpu", kind.type, *(f"{kind.type}:{i}" for i in range(_count(kind.type)))]


def _count(kind: str) -> int:
    """The number of devices of a kind that torch can use."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.accelerator.device_count() if found is not None and found.type == kind else 0
