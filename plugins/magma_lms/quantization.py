"""Frozen base models in 4 or 8 bits, by bitsandbytes.

The matrices of the blocks are quantized; word embeddings, norms and the head are not.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any, Literal

from torch import nn

from magma import PartError

Quantize = Literal["nf4", "int8"]
"""4-bit NormalFloat (Dettmers et al. 2023), or 8-bit integers with a scale for each row (Dettmers et al. 2022)."""
PACKAGES = ("accelerate", "bitsandbytes")
"""What transformers needs to quantize; the extra `quantize` installs them. bitsandbytes computes on a CPU, too.

torchao's matrices are tensor subclasses: DeepSpeed cannot move them, and no fingerprint of their bytes can be taken.
"""


def quantization_problem(quantize: Quantize) -> str | None:
    """Why this machine cannot quantize to this type, or None."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        return f"given {quantize!r}, which needs {' and '.join(missing)}: pip install {' '.join(missing)}"
    return None


def quantization_config(quantize: Quantize) -> Any:
    """The configuration with which transformers quantizes each tensor while it reads it. Raises `PartError`."""
    if problem := quantization_problem(quantize):
        raise PartError(f"lm.quantize: {problem}")
    from transformers import BitsAndBytesConfig

    if quantize == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs a line for each 8-bit product
    return BitsAndBytesConfig(load_in_8bit=True)


def fix_quantized_modules(model: nn.Module) -> None:
    """Let 4-bit matrices compute in the precision of their inputs, that of the run, and keep their bytes.

    transformers lets them compute in float32, and bitsandbytes packs them anew on some CPUs when they are first used.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = None, False
            module.support_avx512bf16_for_cpu = False
