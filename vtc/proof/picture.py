"""A picture to ask about: no two parts of it are alike."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(width: int = 500, height: int = 400) -> Image.Image:
    """Two colour gradients and waves across them, so that every patch is its own."""
    y, x = np.mgrid[0:height, 0:width]
    waves = 64 * np.sin(x * y / 5000) + 63
    channels = [255 * x / width, 255 * y / height, waves + 64 * (x > width / 2)]
    return Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))
