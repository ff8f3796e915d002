"""Encoders and whole models of transformers."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .whole_encoder import WholeAudio, WholeImages


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [WholeImages, WholeAudio]
