"""Companions: row-aligned tensors that travel with the visual tokens (Qwen3-VL's DeepStack rows).

A family declares them (`Adapter.companions`): a keyword with a mask of the visual slots, and one with a list whose
entry i is added to the visual rows behind decoder layer i. If tokens go between those layers, the rows have to go with
them; then the hooks here add them, and the language model is handed none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vtc.models.family import Companions

if TYPE_CHECKING:
    from vtc.engine.plan import Plan


@dataclass
class CompanionRows:
    """Rows [visual tokens, D] to be added behind each of the first layers, as they are from some layer on.

    `stages` holds (first layer, rows by layer, mask [B, S] of the visual slots), one entry per shortening, so that a
    layer that is computed again for its gradients finds what was there the first time.
    """

    stages: list[tuple[int, list[Tensor], Tensor]] = field(default_factory=list)

    def shorten(self, plan: Plan, first: int) -> None:
        """Tokens have gone before layer `first`."""
        _, rows, _ = self.stages[-1]
        self.stages.append((first, [plan.merged(x) if i >= first else x for i, x in enumerate(rows)], plan.visual()))

    def add(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Hidden states [B, S, D] behind `layer` with its rows added; None if it has none."""
        _, rows, mask = next(stage for stage in reversed(self.stages) if stage[0] <= layer)
        if layer >= len(rows):
            return None
        hidden, here = hidden.clone(), mask.to(hidden.device)
        hidden[here] = hidden[here] + rows[layer].to(hidden)
        return hidden


def take(names: Companions | None, kwargs: dict[str, Any]) -> tuple[Tensor, list[Tensor]] | None:
    """(mask, rows) among the language model's keyword arguments, None if this forward has no companions."""
    if names is None:
        return None
    mask, rows = kwargs.get(names.mask), kwargs.get(names.rows)
    return None if mask is None or rows is None else (mask, list(rows))
