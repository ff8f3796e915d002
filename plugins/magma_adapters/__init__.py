"""Adapters: small trained modules around the sublayers of a frozen language model.

`bottleneck.py` has the sequential and the parallel bottleneck adapters of the paper (equations 1 and 2),
`gated_cross_attention.py` the cross-attention layers of Flamingo, `visual_expert.py` the projections of CogVLM for
media positions.
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .bottleneck import Parallel, Sequential
from .gated_cross_attention import GatedCrossAttention
from .visual_expert import VisualExpert


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Sequential, Parallel, GatedCrossAttention, VisualExpert]
