"""Files and names of adapters in the library peft (checked with 0.21)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from magma import InputError

from .ia3 import IA3
from .lora import LoRA

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
"""What peft puts before the path of a module."""
SUFFIXES = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "lora_magnitude_vector": "lora_magnitude_vector",
    "ia3_l": "ia3_l",
}
"""peft's name of each parameter, after the path of its layer."""
LowRank = LoRA | IA3


def tensors_of(adapter: LowRank) -> dict[str, Tensor]:
    """The parameters of an adapter in peft's shapes, by peft's names. They share memory with the parameters.

    The vector of (IA)^3 is [1, i] for inputs and [o, 1] for outputs.
    """
    found = {SUFFIXES[name]: parameter.detach() for name, parameter in adapter.named_parameters()}
    if isinstance(adapter, IA3):
        found = {name: vector[None] if scales_input(adapter) else vector[:, None] for name, vector in found.items()}
    return found


def scales_input(adapter: IA3) -> bool:
    """Whether its layer is one of peft's `feedforward_modules`."""
    return adapter.config.scales == "input"


def refuse_existing(out: Path) -> None:
    """Raise `InputError` if the folder exists: nothing is overwritten."""
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out")
