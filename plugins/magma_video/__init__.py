"""Videos: files through PyAV, animated images, folders of frames, and an encoder that runs an image encoder per frame.

`clip.py` opens a video of any form, `container.py` reads video files, `animation.py` animated images, `timeline.py`
chooses frames by their times. `frames.py` is the encoder. `moving_shapes` has a data set that is made by a command.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from magma import hookimpl

if TYPE_CHECKING:
    from magma import Part, Program


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package. They are imported here because they import torch, which is slow."""
    from .frames import Frames
    from .moving_shapes.source import MovingShapes
    from .moving_shapes.task import MovingShapesTask

    return [Frames, MovingShapes, MovingShapesTask]


@hookimpl
def magma_commands(cli: Program) -> None:
    """`magma data make`."""
    from . import commands

    cli.group("data").command("make")(commands.make)
