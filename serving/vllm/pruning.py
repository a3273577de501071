"""The method that an engine was started with, and its choice among the visual tokens of a picture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

import vtc
from vtc.selection import Selection
from vtc.serving.vllm.contract import Spec
from vtc.serving.vllm.signals import Parts, Run, TowerTaps

Grid = tuple[int, int, int]


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
        self, features: Sequence[Tensor], grids: Sequence[Grid], run: Run, modality: str = "image"
    ) -> list[Selection]:
        """One Selection for each picture or video of a run.

        Args:
            features: [N, D] of each, as the projector leaves them. grids: (t, h, w) of its tokens.
            run: what `listening` gave.

        Raises:
            RuntimeError: so many tokens were not announced, and the prompt has room for another number.
        """
        if modality not in self.spec.prunes:
            return [Selection.identity(len(own), own.device) for own in features]
        signals = self.taps.of_pictures(run, [len(own) for own in features])
        chosen = []
        for own, grid, read in zip(features, grids, signals, strict=True):
            selection = vtc.select(self.method, own, grid, **read)
            expected = self.spec.count(len(own))
            if selection.tokens_out != expected:
                raise RuntimeError(
                    f"{self.spec} was to keep {expected} of {len(own)} visual tokens, and kept {selection.tokens_out}."
                )
            chosen.append(selection if self.method.positions == "compact" else selection.sorted())
        return chosen
