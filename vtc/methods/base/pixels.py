"""PixelMethod: base of the methods that make a picture smaller before the vision tower sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.methods.base.method import Method
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class PixelMethod(Method):
    """Base of methods of the stage `pixels`: the vision tower and the language model see a smaller grid.

    A new method overrides `smaller(grid)`. Nothing is chosen among tokens, so there is no `select`, and a token's
    position is the one that it has in the small picture.
    """

    stage: ClassVar[str] = "pixels"
    exact_count: ClassVar[bool] = False
    scopes: ClassVar[tuple[str, ...]] = ("clip",)
    #: why positions are not for the user to choose
    place: ClassVar[str] = "positions are those of the small picture, which has no gaps"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == "compact":
            raise ValueError(f'{self.title} cannot renumber: {self.place}; use positions="original".')

    def smaller(self, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """The grid (t, h, w) of tokens that a picture or video of `grid` gets."""
        raise TypeError(f"{type(self).__name__} defines no smaller(grid): a method of the stage 'pixels' needs one.")

    def select(self, tokens: VisualTokens) -> Selection:
        raise TypeError(
            f"{self.title} makes pictures smaller and chooses no tokens: wrap a model with it, or call "
            "vtc.downsample(picture, processor, keep)."
        )
