"""Image encoders."""

from collections.abc import Iterable

from magma import Part, hookimpl

from .clip import Clip
from .nfresnet import NFResNet
from .timm_features import Timm


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    return [Clip, NFResNet, Timm]
