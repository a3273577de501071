"""Where visual tokens lie: in the row of a batch, and in the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

Box = tuple[float, float, float, float]  # the part (x0, y0, x1, y1) of a picture, in [0, 1]


@dataclass(frozen=True)
class Tile:
    """A rectangular block of consecutive visual tokens that look at one part of a picture.

    Attributes:
        start: index of its first token in the span.
        t, h, w: frames, rows, columns.
        newline: whether every row of tokens is followed by one separator token.
        role: "image", "thumbnail" (the whole picture, small), "mosaic" (crops, stitched), "crop" or "frames".
        box: the part of the picture it covers, (x0, y0, x1, y1) in [0, 1]; None where the model does not say.
    """

    start: int
    t: int
    h: int
    w: int
    newline: bool = False
    role: str = "image"
    box: Box | None = (0.0, 0.0, 1.0, 1.0)

    @property
    def length(self) -> int:
        """Tokens in the tile, separators included."""
        return self.t * self.h * (self.w + self.newline)

    def indices(self) -> Tensor:
        """Span indices of its tokens without the separators, [t, h, w]."""
        rows = torch.arange(self.length).view(self.t, self.h, self.w + self.newline)
        return self.start + rows[..., : self.w]

    def part(self, top: int, left: int, h: int, w: int) -> Box | None:
        """The box of `h` of its rows and `w` of its columns from (top, left) on."""
        if self.box is None:
            return None
        x0, y0, x1, y1 = self.box
        dx, dy = (x1 - x0) / self.w, (y1 - y0) / self.h
        return x0 + left * dx, y0 + top * dy, x0 + (left + w) * dx, y0 + (top + h) * dy


class Rectangle(NamedTuple):
    """What a span has of one crop, a rectangle of one tile.

    Attributes:
        number: of the crop among those of its picture. tile: which of the span's it lies in.
        places: LongTensor [h, w], span indices of its tokens.
        box: the part of the picture it shows; None if unknown.
    """

    number: int
    tile: Tile
    places: Tensor
    box: Box | None


def rectangles(tiles: Sequence[Tile], crop: Tensor) -> list[Rectangle]:
    """What a picture's tiles have of each crop, where `crop` [N] says which one each of its tokens comes from."""
    found = []
    for tile in tiles:
        places = tile.indices()[0]  # [h, w]
        owner = crop[places]
        for number in owner.unique().tolist():
            own = owner == number
            rows, columns = own.any(dim=1).nonzero()[:, 0], own.any(dim=0).nonzero()[:, 0]
            h, w = len(rows), len(columns)
            box = tile.part(int(rows[0]), int(columns[0]), h, w)
            found.append(Rectangle(number, tile, places[own].view(h, w), box))
    return found


@dataclass(frozen=True, eq=False)
class VisualSpan:
    """The visual tokens of one image or video in one row of a batch.

    Attributes:
        row: batch row.
        index: LongTensor [N], their positions in that row's sequence.
        grid: (t, h, w) of the finest tile.
        tiles: the blocks the N tokens fall into; tokens outside every tile's grid are separators.
        modality: "image" or "video".
        picture: spans of equal number show the same image with the same features (rows of a beam search, say).
        crop: LongTensor [N], the crop (vision-tower picture) each token comes from, -1 for separators.
        patch: LongTensor [N], the token of the vision tower's run that it comes from, -1 for separators.
    """

    row: int
    index: Tensor
    grid: tuple[int, int, int]
    tiles: tuple[Tile, ...]
    modality: str = "image"
    picture: int = 0
    crop: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    patch: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @property
    def tokens(self) -> int:
        return self.index.numel()

    @property
    def unbroken(self) -> bool:
        """Whether no text stands between its tokens, as it does between the frames of Qwen3-VL's videos."""
        return int(self.index[-1]) - int(self.index[0]) + 1 == self.tokens

    @property
    def separators(self) -> Tensor:
        """BoolTensor [N]: True where the token is no patch of the picture (LLaVA-NeXT's `image_newline`)."""
        mask = torch.ones(self.tokens, dtype=torch.bool)
        for tile in self.tiles:
            mask[tile.indices().flatten()] = False
        return mask

    def rectangles(self) -> list[Rectangle]:
        """What it has of each crop, tile by tile; of a picture, not of a video."""
        return rectangles(self.tiles, self.crop)

    def boxes(self) -> Tensor:
        """FloatTensor [N, 4]: the part (x0, y0, x1, y1) of the picture under each token, in [0, 1]; NaN if unknown."""
        boxes = torch.full((self.tokens, 4), float("nan"))
        for tile in self.tiles:
            if tile.box is None:
                continue
            x0, y0, x1, y1 = tile.box
            xs = torch.linspace(x0, x1, tile.w + 1)
            ys = torch.linspace(y0, y1, tile.h + 1)
            grid = torch.stack(
                [
                    xs[:-1].expand(tile.t, tile.h, -1),
                    ys[:-1, None].expand(tile.t, -1, tile.w),
                    xs[1:].expand(tile.t, tile.h, -1),
                    ys[1:, None].expand(tile.t, -1, tile.w),
                ],
                dim=-1,
            )
            boxes[tile.indices().flatten()] = grid.reshape(-1, 4)
        return boxes


@dataclass(frozen=True, eq=False)
class VisualLayout:
    """All visual spans of one batch, in reading order, and the shape [rows, length] they lie in.

    `expansion` rows in a row share one prompt (beams, several return sequences).
    """

    rows: int
    length: int
    spans: tuple[VisualSpan, ...]
    expansion: int = 1

    def split(self, flat: Tensor) -> list[Tensor]:
        """Split a tensor of all visual tokens in reading order, [sum N, ...], into one [N, ...] per span."""
        return list(flat.split([span.tokens for span in self.spans]))


def alone(spans: Sequence[VisualSpan]) -> list[bool]:
    """Of each span, whether no other one stands in its row."""
    there = Counter(span.row for span in spans)
    return [there[span.row] == 1 for span in spans]


def single_span(tokens: int, grid: tuple[int, int, int] | None, modality: str = "image") -> VisualSpan:
    """A span of `tokens` bare tokens, as `vtc.select` uses it; without a grid they form one line."""
    shape = grid or (1, 1, tokens)
    return VisualSpan(
        row=0,
        index=torch.arange(tokens),
        grid=shape,
        tiles=(Tile(0, *shape),),
        modality=modality,
        crop=torch.zeros(tokens, dtype=torch.long),
    )
