"""Image encoders: CLIP through open_clip, the networks of timm, and any of them on the tiles of an image.

`image_file.py` opens images, `preprocessing.py` converts, resizes and crops them, `image_encoder.py` is the base class
of all image encoders.
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .clip import Clip
from .nfresnet import NFResNet
from .tiles import Tiles
from .timm_features import Timm


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Clip, NFResNet, Tiles, Timm]
