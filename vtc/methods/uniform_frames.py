"""Fewer frames: the baseline that users really use."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtc.methods.base.method import Method
from vtc.methods.shared.clips import with_separators
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class UniformFrames(Method):
    """Whole frames, evenly spaced.

    Whole frames, evenly spaced, as many as the budget holds (at least one); what is left of it is not used.

    The same as sampling fewer frames, but for a tower that looks at several frames at once. Every method should beat
    it.
    """

    name = "uniform-frames"
    keep: int | float = 0.25
    needs = ("grid",)
    exact_count = False
    modality = ("video",)
    scopes = ("clip",)

    def select(self, tokens: VisualTokens) -> Selection:
        t, h, w = tokens.span.grid
        frames = min(t, max(1, self.count(tokens) // (h * w)))
        chosen = ((torch.arange(frames) + 0.5) * t / frames).long()
        inside = torch.zeros(tokens.total, dtype=torch.bool)
        for tile in tokens.span.tiles:
            inside[tile.indices()[chosen].flatten()] = True
        here = inside.to(tokens.index.device)[tokens.index]
        kept = here.nonzero()[:, 0]
        if frames == t:  # the whole clip, with the tokens that are in no frame, if the budget holds them
            kept = with_separators(tokens, kept, self.count(tokens))
        if not len(kept):  # an earlier stage has emptied these frames
            kept = torch.arange(min(len(here), self.count(tokens)), device=here.device)
        return Selection.prune(kept, len(here))
