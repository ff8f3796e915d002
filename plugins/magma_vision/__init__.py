"""Image encoders: CLIP through open_clip, and the networks of timm.

`image_file.py` opens images, `preprocessing.py` converts, resizes and crops them, `image_encoder.py` is the base class
of all image encoders.
"""

from collections.abc import Iterable

from magma import Part, hookimpl

from .clip import Clip
from .nfresnet import NFResNet
from .timm_features import Timm


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Clip, NFResNet, Timm]
