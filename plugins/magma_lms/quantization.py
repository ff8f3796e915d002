"""Frozen base models in 4 or 8 bits, by bitsandbytes.

The matrices of the blocks are quantized; word embeddings, norms and the head are not.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor, nn

from magma import PartError

Quantize = Literal["nf4", "int8"]
"""4-bit NormalFloat (Dettmers et al. 2023), or 8-bit integers with a scale for each row (Dettmers et al. 2022)."""
PACKAGES = ("accelerate", "bitsandbytes")
"""What transformers needs to quantize; the extra `quantize` installs them. bitsandbytes computes on a CPU, too.

torchao's matrices are tensor subclasses: DeepSpeed cannot move them, and no fingerprint of their bytes can be taken.
"""


def quantization_problem(quantize: Quantize, gguf_file: str | None) -> str | None:
    """Why weights, those of a GGUF file if it has a name, cannot be quantized to this type here, or None."""
    if gguf_file is not None:
        return f"given {quantize!r}, but a GGUF file is dequantized when it is read; allowed: for safetensors and .bin"
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        return f"given {quantize!r}, which needs {' and '.join(missing)}: pip install {' '.join(missing)}"
    return None


def quantization_config(quantize: Quantize, gguf_file: str | None) -> Any:
    """The configuration with which transformers quantizes each tensor while it reads it. Raises `PartError`."""
    if problem := quantization_problem(quantize, gguf_file):
        raise PartError(f"lm.quantize: {problem}")
    from transformers import BitsAndBytesConfig

    if quantize == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs a line for each 8-bit product
    return BitsAndBytesConfig(load_in_8bit=True)


def fix_quantized_modules(model: nn.Module) -> None:
    """Repair what bitsandbytes' matrices do when a whole model is moved or cast; other modules are left as they are.

    Those of 4 bits compute in the precision of their inputs, not in float32, and keep their bytes: on some CPUs,
    bitsandbytes packs them anew when they are first used, and computes in bfloat16. Scales of those of 8 bits move
    with their weights.
    """
    library: Any = sys.modules.get("bitsandbytes")  # transformers has imported it if it has used it
    for module in model.modules() if library else ():
        if isinstance(module, library.nn.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = None, False
            module.support_avx512bf16_for_cpu = False
        elif type(module) is library.nn.Linear8bitLt:
            module.__class__ = _movable_class()


@cache
def _movable_class() -> Any:
    from bitsandbytes.nn import Linear8bitLt

    class MovableLinear8bitLt(Linear8bitLt):  # type: ignore[misc]  # the library is untyped
        """An 8-bit matrix whose scales follow its weight when a module that contains it is moved."""

        def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
            super()._apply(fn, recurse)
            for holder in (self.weight, self.state):  # before the first product and after it
                if holder.SCB is not None:
                    holder.CB, holder.SCB = self.weight.data, holder.SCB.to(self.weight.device)
            return self

    return MovableLinear8bitLt
