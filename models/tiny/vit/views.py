"""Views of 28-px pictures, as tiny-vit is trained on: enlarged to 56 px, or somewhere on a black canvas of 56 px."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from vtc.models.tiny.vit.build import MEAN, SIDE, STD

_SIZE = 28  # pixels of a picture
_SHIFT = 2  # pixels, at most, that an enlarged picture is moved by
_SMALLEST = 14  # pixels of a picture on the canvas


def normalised(pictures: torch.Tensor) -> torch.Tensor:
    """Bytes [N, h, w] -> [N, 1, h, w] of about zero mean and unit variance."""
    return ((pictures.float() / 255 - MEAN) / STD)[:, None]


@dataclass(frozen=True)
class Views:
    """Where a view takes what it shows from: `theta` [N, 2, 3], from places on the canvas to such in the picture, both
    in [-1, 1]. Outside of the picture there is nothing."""

    theta: torch.Tensor

    @classmethod
    def random(cls, number: int, shares: tuple[float, float], generator: torch.Generator) -> Views:
        """Of two shares the first fills the canvas, moved by up to 2 px, the second is 28 px wide, at whole pixels; the
        rest is 14 to 56 px wide. Half of all are mirrored.

        Example: 28 px wide with its middle 14 px right of the canvas's, not mirrored: a place x of the canvas shows
        2x - 1, so that x = 0, the canvas's middle, shows the left border, and x = 0.5 the middle of the picture.
        """
        lot, size, right, down, side = torch.rand(5, number, generator=generator)
        full, native = lot < shares[0], (lot >= shares[0]) & (lot < sum(shares))
        width = torch.where(full, float(SIDE), torch.where(native, float(_SIZE), _SMALLEST + (SIDE - _SMALLEST) * size))
        free = torch.where(full, 2.0 * _SHIFT, SIDE - width)
        x, y = ((part - 0.5) * free for part in (right, down))  # of the middle, in pixels from the canvas's
        x, y = (torch.where(native, part.round(), part) for part in (x, y))
        scale, mirror = SIDE / width, torch.where(side < 0.5, -1.0, 1.0)
        none = torch.zeros(number)
        across = [mirror * scale, none, -mirror * scale * x * 2 / SIDE]
        along = [none, scale, -scale * y * 2 / SIDE]
        return cls(torch.stack(across + along, 1).view(number, 2, 3))

    def of(self, maps: torch.Tensor, side: int) -> torch.Tensor:
        """[N, C, h, w] -> [N, C, side, side]: what is seen of each map, of the picture or of features of it."""
        shape = [len(maps), maps.shape[1], side, side]
        grid = F.affine_grid(self.theta, shape, align_corners=False)
        return F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)

    def pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        """Bytes [N, 28, 28] -> [N, 3, 56, 56], normalised."""
        seen = self.of((pictures.float() / 255)[:, None], SIDE)
        return ((seen - MEAN) / STD).expand(-1, 3, -1, -1)


def shrunk(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """[N, 3, 56, 56] -> [N, 3, side, side]."""
    return F.interpolate(pixels[:, :1], size=(side, side), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
