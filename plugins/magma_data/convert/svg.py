"""Renders SVG pictures with resvg, because Pillow cannot read them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from .images import ImageError, ImageSource


def describe_missing_renderer() -> str:
    """What to install to render SVG pictures; "" if it is installed."""
    return "" if find_spec("resvg_py") else "rendering SVG pictures needs resvg-py: pip install resvg-py"


@dataclass(frozen=True, slots=True)
class SvgImage(ImageSource):
    """An SVG picture as PNG. Its longer side has `size` pixels, and its background stays transparent."""

    source: ImageSource
    size: int

    def read(self, timeout: float) -> bytes:
        import resvg_py

        data = self.source.read(timeout)
        try:
            # System fonts are not read: the same file gives the same picture on every machine.
            png: bytes = resvg_py.svg_to_bytes(
                svg_string=data.decode("utf-8"), width=self.size, height=self.size, skip_system_fonts=True
            )
        except ValueError as error:  # also of invalid UTF-8
            raise ImageError("invalid SVG") from error
        return png
