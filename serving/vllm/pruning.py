"""The method that an engine was started with, and its choice among the visual tokens of a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vtc.engine.per_crop import select_scoped
from vtc.layout import Tile, VisualSpan
from vtc.models.family import ImageLayout
from vtc.selection import Selection
from vtc.serving.vllm.contract import Spec
from vtc.serving.vllm.signals import Parts, Run, TowerTaps
from vtc.signals import SIGNALS, VisualTokens, given_signals

Grid = tuple[int, int, int]


def grid_layout(grid: Grid) -> ImageLayout:
    """A picture or video of t x h x w tokens and nothing else, each of which the tower hands over."""
    t, h, w = grid
    index = torch.arange(t * h * w)
    tile = Tile(0, t, h, w, role="image" if t == 1 else "frames")
    return ImageLayout(grid, (tile,), index, torch.zeros_like(index), len(index))


class Pruner:
    """Prunes the pictures of one engine: reads the tower for the method of `spec`, and chooses."""

    def __init__(self, spec: Spec, parts: Parts) -> None:
        self.spec, self.method = spec, spec.method
        self.taps = TowerTaps(parts, self.method)
        self.listening = self.taps.listening

    def close(self) -> None:
        """Leave the tower alone again."""
        self.taps.close()

    def choose(
        self,
        features: Sequence[Tensor],
        layouts: Sequence[ImageLayout],
        run: Run,
        modality: str = "image",
        rooms: Sequence[int] = (),
    ) -> list[Selection]:
        """One Selection for each picture or video of a run.

        Args:
            features: [N, D] of each, as the language model would read them. layouts: how they are arranged.
            run: what `listening` gave. rooms: how many of the tower's tokens are each one's, where some of them are
                padding; () = as many as its layout says.

        Raises:
            RuntimeError: so many tokens were not announced, and the prompt has room for another number.
        """
        if modality not in self.spec.prunes:
            return [Selection.identity(len(own), own.device) for own in features]
        measured = self.taps.of_pictures(run, rooms or [layout.tower_tokens for layout in layouts])
        views = [
            _view(own, layout, modality, signals)
            for own, layout, signals in zip(features, layouts, measured, strict=True)
        ]
        chosen = select_scoped(self.method, views)
        for own, selection in zip(features, chosen, strict=True):
            expected = self.spec.count(len(own))
            if selection.check().tokens_out != expected:
                raise RuntimeError(
                    f"{self.spec} was to keep {expected} of {len(own)} visual tokens, and kept {selection.tokens_out}."
                )
        return chosen if self.method.positions == "compact" else [selection.sorted() for selection in chosen]


def _view(features: Tensor, layout: ImageLayout, modality: str, signals: Mapping[str, Tensor]) -> VisualTokens:
    """What the method sees of a picture, with the `signals` of the tower's tokens, [L, P(, d)] or [P(, d)]."""
    n = len(features)
    span = VisualSpan(0, torch.arange(n), layout.grid, layout.tiles, modality, crop=layout.crop, patch=layout.patch)
    own = {name: _per_token(value, SIGNALS[name].shape.index("N"), layout.patch) for name, value in signals.items()}
    read = given_signals(own, n, features.device, layout.crops)
    return VisualTokens(features, span, torch.arange(n, device=features.device), read)


def _per_token(values: Tensor, axis: int, patch: Tensor) -> Tensor:
    """Values of the tower's tokens, moved to the tokens that are made of them, `patch` [N]; 0 where none is (-1)."""
    patch = patch.to(values.device)
    there = (patch >= 0).view(-1, *[1] * (values.dim() - axis - 1))
    return torch.where(there, values.index_select(axis, patch.clamp(min=0)), 0.0)
