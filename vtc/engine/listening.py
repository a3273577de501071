"""Listening: what methods of the stage `cache` hear of the attention in a forward, and remember of each cached row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.engine.attention import LayerView
from vtc.engine.flow import padded
from vtc.engine.forward import Forward
from vtc.engine.kv_cache import CompressedLayer, by_head
from vtc.engine.kv_tags import compressed_layer
from vtc.engine.stage import Run
from vtc.methods.base.cache import CacheMethod
from vtc.reports import Stopwatch

LARGEST = 2**19  # attention held at a time, in numbers


class Listening(Run):
    """One forward of a stage whose methods are CacheMethods, as far as they hear its attention."""

    def __init__(self, stage: Any, forward: Forward) -> None:
        super().__init__(stage, forward)
        self.heard: dict[tuple[int, int], Tensor] = {}  # (method, layer) -> gains of this forward, [B, K] or [B, G, K]
        self.of_layers: dict[tuple[int, int], Tensor] = {}  # (method, layer) -> its `layer_gain`, [B, c] or [B, G, c]
        self.late: dict[tuple[int, int], Tensor] = {}  # (method, layer) -> attention of the last queries, [B, (G,) K]
        self.watches: dict[int, list[Stopwatch]] = {}  # method -> time spent listening in this forward
        self._asked: dict[tuple[int, Any], Tensor] = {}
        self._records: dict[tuple[int, ...], Tensor] = {}

    def hear(self, number: int, i: int, view: LayerView) -> None:
        """A method listens to the attention of layer `i`."""
        method, part = self.stage.methods[number], self.flow.number_of_part(i)
        self.listen(number, i, view, self.asked(part, method.queries()))
        late = method.late_queries()
        if late:
            at = self.asked(part, late)
            self.late[number, i] = (view.by_head(at) if method.per_head else view.rows(at)).sum(dim=-2)

    def asked(self, part: int, last: Any) -> Tensor:
        """LongTensor [B, R]: slots of the prompt's `last` tokens in a part (None = of all, "text" = of those behind the
        row's pictures), -1 = none."""
        key = (part, last)
        if key not in self._asked:
            own = self.flow.parts[part]
            real = torch.ones_like(own.slot, dtype=torch.bool) if own.valid is None else own.valid
            if self.flow.ends_here is not None:
                real = real & (own.slot < self.flow.ends_here[:, None])
            most = self.flow.most(part)
            if last == "text":
                after = real & (own.slot > self.flow.bounds[:, 1:])
                final = real & (real.flip(1).cumsum(dim=1).flip(1) == 1)
                real = torch.where(after.any(dim=1, keepdim=True), after, final)
                most = min(most, self.flow.text_after.shape[1])
            elif last is not None:
                real, most = real & (real.flip(1).cumsum(dim=1).flip(1) <= last), min(most, last)
            self._asked[key] = padded(real, most)
        return self._asked[key]

    def listen(self, number: int, i: int, view: LayerView, at: Tensor) -> None:
        """What all keys of layer `i` gain from the queries in slots `at` [B, R] (-1 = none), of one method."""
        method = self.stage.methods[number]
        kind, heads = type(method), method.per_head
        alike = kind.query_weights is CacheMethod.query_weights and kind.layer_gain is CacheMethod.layer_gain
        if alike and kind.gain is CacheMethod.gain:  # their plain sum, which needs no rows
            count = (at >= 0).sum(dim=1)
            received = view.received_by_head(at) if heads else view.received(at)
            self.heard[number, i] = received * count.view(-1, *(1,) * (received.dim() - 1))
            return
        keys, seen = view.keys.shape[2], view.seen
        seen = None if seen is None else view.arranged(seen.to(at.device), -1)
        before = torch.arange(keys, device=at.device) if seen is None else seen.cumsum(dim=-1) - 1
        if before.dim() == 3:
            before = before if heads else before.amax(dim=1)
        elif heads:
            before = before.expand(len(at), -1)[:, None]
        before = before.expand(len(at), *before.shape[1:]) if before.dim() > 1 else before.expand(len(at), -1)
        weights = method.query_weights(view.states(at).to(at.device), at >= 0)
        heard: Tensor | None = None
        layer: Tensor | None = None
        size = len(at) * keys * (view.keys.shape[1] if heads else 1)
        step = max(1, LARGEST // size)
        for n, part in enumerate(at.split(step, dim=1)):
            own = view.limits(part).clamp(min=0)
            own = own[:, None].expand(-1, before.shape[1], -1) if heads else own
            there = (part >= 0)[:, None] if heads else part >= 0
            visible = torch.where(there, before.gather(-1, own) + 1, 0)  # real keys up to each query
            skipped = None if view.sight.place is None else view.begins(part)
            if skipped is not None:  # words in gaps of a block that come behind it
                visible = visible - (skipped[:, None] if heads else skipped) * there
            rows = view.by_head(part) if heads else view.rows(part)
            if weights is not None:
                mine = weights[:, n * step : (n + 1) * step, None]
                rows = rows * (mine[:, None] if heads else mine)
            gain, of_layer = method.gain(rows, visible), method.layer_gain(rows, visible)
            heard = gain if heard is None else heard + gain
            if of_layer is not None:
                layer = of_layer if layer is None else layer + of_layer
        assert heard is not None
        self.heard[number, i] = heard
        if layer is not None:
            self.of_layers[number, i] = layer

    def record_of(self, number: int) -> str:
        """The tag of a method's record: a cache that goes on under another method keeps its own apart."""
        return f"record {number} of {self.stage.methods[number]}"

    def records(self, number: int, layers: list[CompressedLayer]) -> Tensor:
        """[layers, B, G, K]: the records of a method; G = 1 where heads are taken together."""
        key = (number, *map(id, layers))
        if key not in self._records:
            name = self.record_of(number)
            found = [layer.tags[name] for layer in layers]
            self._records[key] = torch.stack([by_head(tag) for tag in found])
        return self._records[key]

    def forget_stacks(self) -> None:
        """What `records` has put together is of layers that have changed."""
        self._records.clear()

    def remember(self, cache: Any) -> None:
        """Add what was heard in this forward to the records of the layers' rows."""
        for (number, i), heard in self.heard.items():
            self._remember(cache, number, i, heard)

    def _remember(self, cache: Any, number: int, i: int, heard: Tensor) -> None:
        """Add what was heard in this forward to the record of a layer's rows."""
        layer, name = compressed_layer(self.flow, cache, i), self.record_of(number)
        before = layer.tags.get(name)
        if before is not None:
            if before.dim() > heard.dim():  # another method has made the layer's heads hold different tokens since
                heard = heard[:, None].expand(-1, before.shape[1], -1).clone()
            heard[..., : before.shape[-1]] += before.to(heard.device)
        layer.tags[name] = heard
