"""Merging in the KV cache: what the rows that stay take in of those that go.

Keys are cached rotated to their positions, and the mean of keys at different positions is no key of any position. So
they are turned back first, added up, and the sum is turned to the position of its anchor; as published, several papers
add them as they are (`Held.rotated`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.engine.flow import Flow
from vtc.engine.kv_cache import CompressedLayer
from vtc.engine.kv_tags import PLACES
from vtc.held import Held
from vtc.models.decoder import Decoder


class Rotation:
    """How the keys of one decoder layer are turned, by the positions that its cache has noted."""

    def __init__(self, flow: Flow, decoder: Decoder, attention: Any, layer: CompressedLayer, number: int) -> None:
        self.flow, self.decoder, self.attention, self.layer, self.number = flow, decoder, attention, layer, number

    def tables(self, row: int, where: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        """Tables [G or 1, N, r] for rows `where` LongTensor [G or 1, N] of a batch row; () where no key is turned."""
        if self.decoder.rotary(self.flow.lm) is None:
            return ()
        axes = []
        for name in PLACES:
            tag = self.layer.tags.get(name)
            if tag is not None:
                own = tag[row] if tag.dim() == 3 else tag[row][None]
                axes.append(own.expand(len(where), -1).gather(1, where.to(own.device)))
        places = torch.stack(axes) if len(axes) > 1 else axes[0]
        given = self.flow.tables(self.number, like, places)
        return self.decoder.tables(self.attention, given)

    def turned(self, keys: Tensor, tables: tuple[Tensor, ...], back: bool) -> Tensor:
        """Keys [G, N, d] turned by tables [G or 1, N, r], or `back`."""
        if not tables:
            return keys
        cos, sin = tables
        width = cos.shape[-1]
        out = [
            self.decoder.rotated(
                self.attention, keys[g][None, None], (cos[own][None], (-sin if back else sin)[own][None])
            )
            for g in range(len(keys))
            for own in (min(g, len(cos) - 1),)
        ]
        made = torch.cat(out)[:, 0]
        if not back:
            return made
        size = (cos.square() + sin.square()).to(made)  # 1, unless the rotation also scales (YaRN)
        return torch.cat([made[..., :width] / size, made[..., width:]], dim=-1)


def merged(
    keys: Tensor, values: Tensor, row: int, where: Tensor, held: Held, rotation: Rotation
) -> tuple[Tensor, Tensor]:
    """Keys and values [B, G, rows, d] in which the anchors of `held` have taken in what they stand for.

    Args:
        where: LongTensor [G or 1, N], the rows of batch row `row` that `held` is about.
    """
    groups, device = keys.shape[1], keys.device
    where = where.to(device).expand(groups, -1)
    held = held.to(device)
    assert held.source is not None
    anchor, source = held.anchor.expand(groups, -1), held.source.expand(groups, -1)
    real, goal = anchor >= 0, where.gather(1, anchor.clamp(min=0))
    head = torch.arange(groups, device=device)[:, None].expand_as(goal)
    new = []
    for x, weight, is_key in ((keys, held.keys, True), (values, held.values, False)):
        if weight is None:
            new.append(x)
            continue
        mine = x[row].gather(1, where[..., None].expand(-1, -1, x.shape[-1]))  # [G, N, d]
        turns = is_key and not held.rotated
        tables = rotation.tables(row, where, mine) if turns else ()
        mine = rotation.turned(mine, tables, back=True) if turns else mine
        taken = (weight.expand(groups, -1) * (source >= 0))[..., None] * mine.float()
        goes = source.clamp(min=0)[..., None].expand_as(taken)
        made = taken.new_zeros(groups, anchor.shape[1], x.shape[-1]).scatter_add_(1, goes, taken).to(x.dtype)
        if turns:
            at = anchor.clamp(min=0)
            there = tuple(
                table.expand(groups, -1, -1).gather(1, at[..., None].expand(-1, -1, table.shape[-1]))
                for table in tables
            )
            made = rotation.turned(made, there, back=False)
        pure = _untouched(weight.expand(groups, -1), source, anchor)  # their keys are not turned there and back
        stays = x[row][head, goal]
        x = x.clone()
        x[row, head[real], goal[real]] = torch.where(pure[..., None], stays, made)[real]
        new.append(x)
    return new[0], new[1]


def _untouched(weight: Tensor, source: Tensor, anchor: Tensor) -> Tensor:
    """BoolTensor [G, M]: outputs that are their anchors alone, with weight 1."""
    given = (source >= 0) & (weight != 0)
    count = torch.zeros(anchor.shape, device=anchor.device).scatter_add_(1, source.clamp(min=0), given.float())
    own = weight.gather(1, anchor.clamp(min=0))
    return (count == 1) & (own == 1)
