"""Rows of the KV cache as the stage `cache` chooses among them: which there are, and what signals read of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.engine.kv_cache import CompressedLayer, by_head
from vtc.engine.kv_merge import Rotation
from vtc.engine.kv_tags import OWNER, SLOT

if TYPE_CHECKING:
    from vtc.engine.stages.evict import EvictRun


@dataclass(eq=False)
class Units:
    """Cached tokens that are chosen among, those of one picture or all of a row; one or several equally large ones.

    Attributes:
        rows: [U], of the batch. names: [U], the pictures; -1 = text, or all of a row.
        where: LongTensor [U, G, N] in main memory, the rows of the cache; G = 1 where all heads hold the same.
        total: tokens there were of each before anything was dropped. begins: whether rows begin with them.
        here, on: `where` and `rows` on the device, LongTensors [U, G, N] and [U, 1, 1].
    """

    rows: list[int]
    names: list[int]
    where: Tensor
    total: int
    begins: bool
    here: Tensor
    on: Tensor

    @property
    def size(self) -> int:
        return self.where.shape[2]


@dataclass(eq=False)
class Group:
    """Layers of the cache that hold the same rows, and what those are, in main memory.

    Attributes:
        layers: their numbers. slot, owner, total, kind: LongTensors [B, G, held], see `kv_tags.py`; G = 1 where all
            heads hold the same.
        real: BoolTensor [B, G, held], False for padding.
        units: what a method chooses among.
    """

    layers: list[int]
    slot: Tensor
    owner: Tensor
    total: Tensor
    kind: Tensor
    real: Tensor
    units: list[Units] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class CachedRows:
    """Some rows of one layer of the cache, as signals of the place `cache` read them; or of several layers that hold
    the same, and of several units of tokens, for a method that takes them together."""

    run: EvictRun
    layers: list[CompressedLayer]
    numbers: list[int]  # of the layers
    number: int  # of the method
    units: Units

    def _shaped(self, value: Tensor) -> Tensor:
        """A value [layers, U, G, ...] as its method asks for it."""
        method = self.run.stage.methods[self.number]
        value = value if method.per_head else value[:, :, 0]
        return value if method.stacks else value[0, 0]

    def _of_units(self, values: Tensor) -> Tensor:
        """Values [layers, B, K] or [layers, B, G, K] of all rows of the cache, as the method asks for those of its
        units."""
        values = values if values.dim() == 4 else values[:, :, None]
        groups = values.shape[2]
        head = torch.arange(groups, device=values.device)[None, :, None]
        return self._shaped(values[:, self.units.on, head, self.units.here.expand(-1, groups, -1)])

    def _tag(self, name: str) -> Tensor:
        """[N], or [G, N], or [layers, U, (G,) N]: a tag of each."""
        return self._of_units(torch.stack([layer.tags[name] for layer in self.layers]))

    @property
    def record(self) -> Tensor:
        """[N], or [G, N], or [layers, U, (G,) N]: what the method's `gain` made of the attention each has received."""
        return self._of_units(self.run.records(self.number, self.layers))

    @property
    def late_record(self) -> Tensor:
        """The same of the forward's last queries."""
        return self._of_units(torch.stack([self.run.late[self.number, i] for i in self.numbers]))

    @property
    def layer_record(self) -> Tensor:
        """[c] or [G, c]: what `layer_gain` made of the attention in the layer in this forward."""
        return self.run.of_layers[self.number, self.numbers[0]][self.units.rows[0]]

    def _of(self, x: Tensor) -> Tensor:
        """[G, N, d] of keys or values [B, G, K, d]."""
        where = self.units.here[0].to(x.device).expand(x.shape[1], -1)
        return x[self.units.rows[0]].gather(1, where[..., None].expand(-1, -1, x.shape[-1])).to(self.run.flow.device)

    @property
    def keys(self) -> Tensor:
        return self._of(self.layers[0].whole()[0])

    @property
    def values(self) -> Tensor:
        return self._of(self.layers[0].whole()[1])

    @property
    def plain_keys(self) -> Tensor:
        keys, rotation = self.layers[0].whole()[0], self.rotation
        mine = self._of(keys).to(keys.device)
        tables = rotation.tables(self.units.rows[0], self.units.here[0], mine)
        return rotation.turned(mine, tables, back=True).to(self.run.flow.device)

    @property
    def rotation(self) -> Rotation:
        return self.run.rotation(self.layers[0], self.numbers[0])

    @property
    def visual(self) -> Tensor:
        return self._tag(OWNER) >= 0

    @property
    def seen_by(self) -> Tensor:
        """[N], or [G, N], or [layers, U, (G,) N]: tokens of the row at or behind each, those that are not the prompt's
        left out."""
        flow, rows, tag = self.run.flow, self.units.rows, self.layers[0].tags[SLOT]
        slots = by_head(tag)[rows]  # [U, G, K]
        real = self.run.real[self.numbers[0]][rows].to(slots.device)
        last = slots.masked_fill(~real, -1).amax(dim=(1, 2))
        if flow.ends is not None:
            last = last.clamp(max=(flow.seen + flow.ends[rows] - 1).to(last.device))
        last = last.view(-1, *[1] * self.run.stage.methods[self.number].per_head, 1)
        own = self._tag(SLOT)
        return (last if self.run.stage.methods[self.number].stacks else last[0]) + 1 - own

    @property
    def survives(self) -> Tensor:
        """BoolTensor [N]: whether the last decoder layer still sees each."""
        row, here = self.units.rows[0], self.units.here[0, 0]
        return self.run.survivors[row, self.layers[0].tags[SLOT][row, here].long()]
