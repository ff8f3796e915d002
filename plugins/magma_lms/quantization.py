"""Frozen base models in 4 or 8 bits, by bitsandbytes or torchao.

The matrices of the blocks are quantized; word embeddings, norms and the head are not.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from torch import nn

from magma import PartError

Quantize = Literal["nf4", "int8"]
"""4-bit NormalFloat (Dettmers et al. 2023), or 8-bit integers with a scale for each row."""
LIBRARIES: dict[Quantize, tuple[str, ...]] = {"nf4": ("bitsandbytes",), "int8": ("torchao", "bitsandbytes")}
"""What can compute with a type; the first one that is installed is used. torchao quantizes weights only, so that the
gradient is that of the quantized model; bitsandbytes rounds the inputs of a matrix to 8 bits, too."""


def quantization_problem(quantize: Quantize) -> str | None:
    """Why this machine cannot quantize to this type, or None."""
    libraries = LIBRARIES[quantize]
    if _first_installed(libraries) is None:
        return f"given {quantize!r}, which needs {' or '.join(libraries)}: pip install accelerate {libraries[0]}"
    return None if find_spec("accelerate") else f"given {quantize!r}, which needs accelerate: pip install accelerate"


def quantization_config(quantize: Quantize) -> Any:
    """The configuration with which transformers quantizes each tensor while it reads it. Raises `PartError`."""
    if problem := quantization_problem(quantize):
        raise PartError(f"lm.quantize: {problem}")
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if quantize == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    if _first_installed(LIBRARIES[quantize]) == "bitsandbytes":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def fix_quantized_modules(model: nn.Module) -> None:
    """Let 4-bit matrices compute in the precision of their inputs, that of the run, and keep their bytes.

    transformers lets them compute in float32, and bitsandbytes packs them anew on some CPUs when they are first used.
    """
    if find_spec("bitsandbytes") is None:
        return
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = None, False
            module.support_avx512bf16_for_cpu = False


def _first_installed(libraries: tuple[str, ...]) -> str | None:
    return next((name for name in libraries if find_spec(name)), None)
