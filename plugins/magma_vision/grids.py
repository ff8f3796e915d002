"""Which grid of tiles an image gets: the rules of InternVL and of LLaVA-NeXT.

Grids are pairs (rows, columns), sizes are pairs (height, width) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Grid = tuple[int, int]


def grids_up_to(tiles: int) -> list[Grid]:
    """All grids with at most this number of tiles; those with fewer tiles, then those with fewer columns, first."""
    pairs = [(r, c) for c in range(1, tiles + 1) for r in range(1, tiles // c + 1)]
    return sorted(pairs, key=math.prod)


def closest_aspect_ratio(size: tuple[int, int], grids: Sequence[Grid], tile: int) -> Grid:
    """The grid whose aspect ratio is closest to that of the image (InternVL 1.5, section 3.3 of its paper).

    Of equally close ones, a later grid is taken if the image has more than half of its pixels.
    """
    height, width = size
    best, smallest = grids[0], math.inf
    for rows, columns in grids:
        difference = abs(width / height - columns / rows)
        if difference < smallest:
            best, smallest = (rows, columns), difference
        elif difference == smallest and width * height > 0.5 * tile * tile * rows * columns:
            best = (rows, columns)
    return best


def best_resolution(size: tuple[int, int], grids: Sequence[Grid], tile: int) -> Grid:
    """The grid that keeps most of the image's pixels, and of those the one with least padding (LLaVA-NeXT)."""
    height, width = size

    def quality(grid: Grid) -> tuple[int, int]:
        rows, columns = grid
        scale = min(columns * tile / width, rows * tile / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - rows * columns * tile * tile

    return max(grids, key=quality)


def size_inside(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """The largest size with the aspect ratio of `size` that fits into the canvas, rounded up."""
    (height, width), (canvas_height, canvas_width) = size, canvas
    scale_w, scale_h = canvas_width / width, canvas_height / height
    if scale_w < scale_h:
        return min(math.ceil(height * scale_w), canvas_height), canvas_width
    return canvas_height, min(math.ceil(width * scale_h), canvas_width)
