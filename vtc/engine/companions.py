"""Companions: row-aligned tensors that travel with the visual tokens (DeepStack rows of Qwen3-VL, of Granite Vision).

A family declares them (`Adapter.companions`): a keyword with a mask of the visual slots, and one with rows that some
decoder layers add to the visual tokens, behind themselves or before. If tokens go between those layers, the rows have
to go with them; then the hooks here add them, and the language model is handed none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.models.family import Companions

if TYPE_CHECKING:
    from vtc.engine.plan import Plan


@dataclass
class CompanionRows:
    """Rows [visual tokens, D] that some decoder layers add, by layer, as they are when the first layer begins.

    `plans` holds (first layer, Plan, mask [B, S] of the visual slots), one per shortening inside: rows follow it where
    they are added, so that a layer that is computed again for its gradients does the same again.

    Example: tokens go before layer 2, after the rows have been added that layer 2 itself adds before it begins:

        added            before 0    before 2    before 3        behind 0    behind 1    behind 2
        shortened        no          no          yes             no          no          yes
    """

    names: Companions
    rows: dict[int, Tensor]
    mask: Tensor
    several: bool = False  # whether the mask came with a place for the width, [B, S, 1]
    plans: list[tuple[int, Plan, Tensor]] = field(default_factory=list)

    @classmethod
    def take(cls, names: Companions | None, kwargs: dict[str, Any]) -> CompanionRows | None:
        """What the language model's keyword arguments hold, None if this forward has no companions."""
        if names is None:
            return None
        mask, rows = kwargs.get(names.mask), kwargs.get(names.rows)
        if mask is None or rows is None:
            return None
        several = mask.dim() == 3
        return cls(names, named(rows), mask[..., 0] if several else mask, several)

    def _behind(self, layer: int) -> int:
        """The layer behind which rows are added that are those of `layer`: -1 = before the first one."""
        return layer - 1 if self.names.before else layer

    @property
    def last(self) -> int:
        """Tokens may go before all layers behind this one without a row of theirs."""
        return max(map(self._behind, self.rows), default=-1)

    def shorten(self, plan: Plan, first: int) -> None:
        """Tokens have gone before layer `first`; 0 = before the language model began."""
        if first:
            self.plans.append((first, plan, plan.visual()))
            return
        self.rows = {i: plan.merged(x) for i, x in self.rows.items()}
        self.mask = plan.visual()

    def enter(self, plan: Plan, embeds: Tensor) -> Tensor:
        """Tokens have gone before the language model began, and of its embeddings [B, S, D] these are left: the same,
        but for rows that a method has written itself, where these stand in for the first that is added."""
        self.shorten(plan, 0)
        if not (self.names.before and self.rows and any(one.features is not None for one in plan.selections)):
            return embeds
        first = min(self.rows)
        entering = zip(plan.selections, plan.outputs.split(self.rows[first]), strict=True)
        self.rows[first] = torch.cat([x if one.features is None else one.features.to(x) for one, x in entering])
        return embeds.masked_fill(self.mask[..., None].to(embeds.device), 0)

    def add(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Hidden states [B, S, D] with the rows of `layer` added, before or behind it; None if it has none."""
        rows, mask = self.rows.get(layer), self.mask
        if rows is None:
            return None
        for first, plan, left in self.plans:
            if first <= self._behind(layer):
                rows, mask = plan.merged(rows), left
        return added(hidden, mask, rows)

    def entering(self, embeds: Tensor) -> Tensor:
        """Embeddings [B, L, D] with visual tokens as they are when they mean something: where rows are added before
        layers, with the first of these."""
        if not self.names.before or not self.rows:
            return embeds
        return added(embeds, self.mask, self.rows[min(self.rows)])

    def hand(self, kwargs: dict[str, Any], ours: bool) -> None:
        """Give the language model what is left of them, or nothing if they are `ours` to add."""
        listed, mask = isinstance(kwargs[self.names.rows], list | tuple), self.mask
        given = [self.rows[i] for i in sorted(self.rows)] if listed else self.rows
        kwargs[self.names.mask] = None if ours else mask[..., None] if self.several else mask
        kwargs[self.names.rows] = None if ours else given


def named(rows: Any) -> dict[int, Tensor]:
    """By layer, of a list whose entry i is that of layer i, or of what is by layer already."""
    return dict(enumerate(rows)) if isinstance(rows, list | tuple) else dict(rows)


def added(hidden: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Hidden states [B, S, D] with `rows` added where the mask [B, S] is True."""
    hidden, here = hidden.clone(), mask.to(hidden.device)
    hidden[here] = hidden[here] + rows.to(hidden)
    return hidden
