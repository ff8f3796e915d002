"""Files of models in the format of transformers: where they are, and reading them without the library's warnings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from magma import find_local_folder, hub_has, is_folder

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
ALLOWED = "Allowed: a hub name, or a folder in transformers' format (config.json, *.safetensors)"


def locate(source: str, *any_of: str) -> str | None:
    """The folder on this machine that has one of the files, else the hub name if the hub has it, else None."""
    if found := find_local_folder(source, *any_of):
        return str(found)
    return source if not is_folder(source) and hub_has(source, *any_of) else None


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Suppress the warnings of transformers about unused tensors; the caller reports what does not fit."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
