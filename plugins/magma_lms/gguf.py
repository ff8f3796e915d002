"""GGUF files, as llama.cpp uses them: transformers reads them and dequantizes their weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

GGUF = ".gguf"
"""The suffix of a GGUF file."""
PACKAGES = ("accelerate", "gguf")
"""What transformers needs to read one; the extra `gguf` installs them."""


def missing_packages() -> list[str]:
    """Which packages are missing to read a GGUF file: one line, or none."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    return [f"reading a GGUF file needs {' and '.join(missing)}: pip install {' '.join(missing)}"] if missing else []


@contextmanager
def parsed_once() -> Iterator[None]:
    """Inside, a GGUF file is parsed once, and the table of its tensors' names is made once.

    transformers 5 parses the file for the configuration and again for the weights, and makes the table for each module
    of the model: 9 of the 12 seconds that a model of 30 blocks takes.
    """
    if missing_packages():
        yield
        return
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names}
    try:
        for name, original in originals.items():
            setattr(gguf, name, functools.cache(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def without_quantizer(loaded: Any, plain: Any) -> Any:
    """A model that transformers read from a GGUF file, as one like any other.

    The library's model holds dequantized weights, but calls itself quantized and refuses `save_pretrained`.

    Args:
        loaded: The model that was read.
        plain: A model of the same architecture, on any device. It gets the modules of `loaded`.
    """
    for name, module in loaded.named_children():
        setattr(plain, name, module)
    vars(loaded.config).pop("quantization_config", None)  # all modules share this configuration
    plain.config, plain.generation_config = loaded.config, loaded.generation_config
    return plain.eval()
