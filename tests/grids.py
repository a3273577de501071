"""The grid of a smaller picture, by trying every one."""

from __future__ import annotations

import math
from fractions import Fraction as F


def largest_grid(height: int, width: int, count: int) -> tuple[int, int]:
    """Of all grids of at most `count` cells whose sides are less than a cell from `height` x `width` made smaller by
    some factor, one of most cells, and of those the nearest in proportions; the grid itself if it fits."""
    if height * width <= count:
        return height, width
    fitting = []
    for h in range(1, height + 1):
        for w in range(1, width + 1):
            least, most = max(F(h - 1, height), F(w - 1, width)), min(F(h + 1, height), F(w + 1, width))
            if h * w <= count and least < most:
                fitting.append((h * w, -abs(math.log(h * width / (w * height))), h, w))
    return max(fitting)[2:]
