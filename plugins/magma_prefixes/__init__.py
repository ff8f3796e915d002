"""Prefixes: maps from the features of an encoder to the space of word embeddings.

The paper uses the linear map. The pooled map is from Frozen. The paper also tried the non-linear ones, and found them
no better. `stack`, `pool`, `pixel_shuffle`, `resampler` and `qformer` shorten the sequence of features.

`transformers_names` has the prefix, with its keys and names, for the projectors of models of transformers.
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .framed import Framed
from .identity import Identity
from .linear import Linear
from .mlp import Mlp
from .pixel_shuffle import PixelShuffle
from .pool import Pool
from .pooled import Pooled
from .qformer import QFormer
from .resampler import Resampler
from .stack import Stack
from .transformer import Transformer


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Identity, Linear, Pooled, Mlp, Transformer, Stack, Pool, PixelShuffle, Resampler, QFormer, Framed]
