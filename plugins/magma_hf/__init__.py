"""Encoders of transformers by name: any model that reads images, videos, audio or time series.

`towers.py` finds the tower in a configuration, `samples.py` has possible forms of its input, `discovery.py` tries them
and reads off the sizes of its features, and `calling.py` runs it. `preparation.py` and `processors.py` turn raw inputs
into arguments; `loading.py` reads weights.
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .encoder import HF, HFAudio, HFVideo, HFVision


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [HF, HFVision, HFAudio, HFVideo]
