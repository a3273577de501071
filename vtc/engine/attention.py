"""Inside a decoder layer: attention of chosen tokens, read from its weights without running it.

Queries are projected for the chosen tokens only; keys come from the KV cache where the layer has just filled it, and
are projected otherwise. How, the language model's `Decoder` says; its own attention implementation is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor, nn

from vtc import ops
from vtc.engine.sight import EVERYTHING, Range
from vtc.methods.base.cache import ActiveMethod, CacheMethod
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method
from vtc.models.decoder import Decoder, decoder_for
from vtc.models.decoder_check import check_decoder, check_final_norm, check_places
from vtc.signals import SIGNALS, of_place

TOGETHER = 2**20  # numbers of attention: KV heads are read in one step up to so many, then one by one


def reads_attention(part: Method) -> bool:
    """Whether a method reads queries or keys of decoder layers."""
    if isinstance(part, CacheMethod):
        return isinstance(part, ActiveMethod) or part.queries() != 0
    return any(SIGNALS[name].attention for name in of_place(part.requires(), "layer"))


def check_reads(lm: nn.Module, parts: Sequence[Method]) -> None:
    """Refuse, at wrap, methods that read in a language model what they would read wrongly, or not find."""
    decoder = decoder_for(lm)
    config: Any = lm.config
    for part in parts:
        try:
            if isinstance(part, LayerMethod):
                check_places(decoder, lm)
            if "final_states" in part.requires():
                check_final_norm(decoder, lm)
            if reads_attention(part):
                check_decoder(decoder, lm)
        except ValueError as reason:
            raise ValueError(
                f"{part.title} works inside the language model ({config.model_type}), but {reason}; "
                "use a method that does not (divprune, say), or describe the model in a vtc.models.decoder.Decoder "
                "and register it with register_decoder."
            ) from reason


def check_attending(part: Method, lm: nn.Module, layers: Iterable[int]) -> None:
    """Refuse, at wrap, a method that is to read the attention of decoder `layers`, some of which have none."""
    config: Any = lm.config
    there = decoder_for(lm).attending(config)
    lacking = sorted({*layers} - {*there})
    if lacking:
        shown = ", ".join(map(str, there[:8])) + (", …" if len(there) > 8 else "")
        raise ValueError(
            f"{part.title} reads attention in decoder layer {lacking[0]}, and of {config.model_type} only "
            f"{'layer' if len(there) == 1 else 'the layers'} {shown} attend{'s' if len(there) == 1 else ''}: "
            "choose other layers for it, or a method that reads none (divprune, say)."
        )


@dataclass
class LayerView:
    """The attention of one decoder layer over a batch, as far as somebody asks.

    Attributes:
        decoder: how such an attention computes.
        attention: the layer's attention module.
        x: [B, S, D], what goes into it (normed hidden states).
        rotary: the position embeddings that it is handed; as tables [B or 1, S, r] from then on.
        held: [B, G, P or P + S, d], keys in the cache (already rotated); None without a cache.
        filled: whether `held` includes the S tokens of this forward.
        seen: BoolTensor [B, P + S], False for padding, or [B, G, P + S] of each KV head's own; None = all are real.
        sight: the keys that each of the S queries sees.
    """

    decoder: Decoder
    attention: nn.Module
    x: Tensor
    rotary: Any
    held: Tensor | None
    filled: bool
    seen: Tensor | None
    sight: Range = EVERYTHING

    def __post_init__(self) -> None:
        self.rotary = self.decoder.tables(self.attention, self.rotary)

    @cached_property
    def keys(self) -> Tensor:
        """[B, G, P + S, d]"""
        if self.filled and self.held is not None:
            return self.held
        own = self.decoder.keys(self.attention, self.x, self.rotary)
        return own if self.held is None else torch.cat([self.held.to(own.device), own], dim=2)

    @property
    def past(self) -> int:
        """P, keys of earlier forwards."""
        if self.held is None:
            return 0
        return self.held.shape[2] - (self.x.shape[1] if self.filled else 0)

    def _queries(self, at: Tensor) -> Tensor:
        rows = at.clamp(min=0).unsqueeze(-1)
        taken = (table.expand(len(at), -1, -1) for table in self.rotary)
        x, *tables = (t.gather(1, rows.to(t.device).expand(-1, -1, t.shape[-1])) for t in (self.x, *taken))
        return self.decoder.queries(self.attention, x, tuple(tables))

    @property
    def _seen(self) -> Tensor | None:
        """`seen` on the layer's own device: a model may be spread over several, what is asked comes from the first."""
        return None if self.seen is None else self.arranged(self.seen.to(self.x.device), -1)

    def limits(self, at: Tensor) -> Tensor:
        """The last key that each query in slots `at` sees, by its place in `arranged`; -1 = none."""
        last = at + self.past if self.sight.last is None else self.sight.last.to(at.device).gather(1, at.clamp(min=0))
        return torch.where(at >= 0, last, -1)

    def begins(self, at: Tensor) -> Tensor | None:
        """The first key that each query in slots `at` sees; None = all begin with the first there is."""
        first = self.sight.first
        return None if first is None else first.to(at.device).gather(1, at.clamp(min=0))

    def arranged(self, x: Tensor, dim: int) -> Tensor:
        """x [B, ..., P + S, ...] with keys in the order in which every query sees a range of them."""
        if self.sight.place is None:
            return x
        order = self.sight.place.argsort(dim=1).to(x.device)
        shape = [1] * x.dim()
        shape[0], shape[dim] = order.shape
        return x.gather(dim, order.view(shape).expand_as(x))

    def _back(self, x: Tensor) -> Tensor:
        """x [B, ..., P + S], of keys so arranged, with keys where they are."""
        if self.sight.place is None:
            return x
        place = self.sight.place.to(x.device)
        return x.gather(-1, place.view(len(place), *[1] * (x.dim() - 2), -1).expand_as(x))

    def by_head(self, at: Tensor) -> Tensor:
        """`rows` of each KV head, [B, G, R, P + S]: the mean over the query heads that share it."""
        return self._folded(ops.attention_rows, at)

    def received_by_head(self, at: Tensor) -> Tensor:
        """`received` of each KV head, [B, G, P + S]."""
        return self._folded(ops.received_attention, at)

    def _folded(self, op: Callable[..., Tensor], at: Tensor) -> Tensor:
        """An op that averages over heads, over those of each KV head: these are its batch, or come one after the other
        where that would take more memory than their attention is worth."""
        here, keys = at.to(self.x.device), self.arranged(self.keys, 2)
        b, groups = keys.shape[:2]
        queries = self._queries(here).unflatten(1, (groups, -1)).flatten(0, 1)  # [B * G, H / G, R, d]
        seen, limits, begins = self._seen, self.limits(here).repeat_interleave(groups, 0), self.begins(here)
        begins = None if begins is None else begins.repeat_interleave(groups, 0)
        if seen is not None:
            seen = seen.flatten(0, 1) if seen.dim() == 3 else seen.repeat_interleave(groups, 0)
        scale = self.decoder.scaling(self.attention)
        if len(queries) * at.shape[1] * keys.shape[2] > TOGETHER:
            own = [None if seen is None else seen[g::groups] for g in range(groups)]
            first = [None if begins is None else begins[g::groups] for g in range(groups)]
            found = [
                op(queries[g::groups], keys[:, g, None], scale, limits[g::groups], own[g], first[g])
                for g in range(groups)
            ]
            return self._back(torch.stack(found, dim=1)).to(at.device)
        made = op(queries, keys.flatten(0, 1)[:, None], scale, limits, seen, begins)
        return self._back(made.unflatten(0, (b, groups))).to(at.device)

    def states(self, at: Tensor) -> Tensor:
        """[B, R, D], what goes into the layer in slots `at` [B, R]."""
        return self.x.gather(1, at.clamp(min=0).to(self.x.device)[..., None].expand(-1, -1, self.x.shape[-1]))

    def rows(self, at: Tensor) -> Tensor:
        """Attention rows of the queries in slots `at` [B, R] (-1 = none) onto all keys, [B, R, P + S]."""
        if self.seen is not None and self.seen.dim() == 3:
            return self.by_head(at).mean(dim=1)
        scale, here = self.decoder.scaling(self.attention), at.to(self.x.device)
        limits, begins, keys = self.limits(here), self.begins(here), self.arranged(self.keys, 2)
        return self._back(ops.attention_rows(self._queries(here), keys, scale, limits, self._seen, begins)).to(
            at.device
        )

    def heads(self, at: Tensor) -> Iterator[Tensor]:
        """`rows` head by head: attention of the queries in slots `at` [B, R] (-1 = none), H times [B, R, P + S]."""
        here = at.to(self.x.device)
        queries, keys = self._queries(here), self.arranged(self.keys, 2)
        scale = self.decoder.scaling(self.attention)
        shared = queries.shape[1] // keys.shape[1]
        for head in range(queries.shape[1]):
            own, seen = keys[:, head // shared, None], self._seen
            seen = seen[:, head // shared] if seen is not None and seen.dim() == 3 else seen
            limits, begins = self.limits(here), self.begins(here)
            made = ops.attention_rows(queries[:, head, None], own, scale, limits, seen, begins)
            yield self._back(made).to(at.device)

    def peak(self, at: Tensor) -> Tensor:
        """Largest attention that any head of any query in slots `at` [B, R] (-1 = none) gives each key, [B, P + S]."""
        return reduce(torch.maximum, (rows.amax(dim=1) for rows in self.heads(at)))

    def rotation_bias(self, at: Tensor) -> Tensor:
        """What the rotation alone makes of products of queries in slots `at` [B, R] and this forward's keys, [B, R, S].

        Queries and keys of ones only, rotated to their places, and the product divided by the root of their width: in
        a LLaMA with d / 2 frequencies f, 2 / sqrt(d) times the sum of cos(f * distance).
        """
        if not self.rotary:
            width = self.keys.shape[-1] ** 0.5
            return torch.full((*at.shape, self.x.shape[1]), width, device=at.device)
        ones = self.decoder.rotated_ones(self.attention, self.rotary)[:, 0].expand(len(at), -1, -1)  # [B, S, d]
        asked = at.clamp(min=0).to(ones.device).unsqueeze(-1).expand(-1, -1, ones.shape[-1])
        return (ones.gather(1, asked) @ ones.transpose(1, 2) / ones.shape[-1] ** 0.5).to(at.device)

    def received(self, at: Tensor) -> Tensor:
        """Mean attention that the queries in slots `at` [B, R] (-1 = none) give each key, [B, P + S]."""
        if self.seen is not None and self.seen.dim() == 3:
            return self.received_by_head(at).mean(dim=1)
        scale, here = self.decoder.scaling(self.attention), at.to(self.x.device)
        limits, begins, keys = self.limits(here), self.begins(here), self.arranged(self.keys, 2)
        received = ops.received_attention(self._queries(here), keys, scale, limits, self._seen, begins)
        return self._back(received).to(at.device)

    def of_row(self, row: int) -> LayerView:
        """The same view of one batch row."""
        one = slice(row, row + 1)
        return LayerView(
            self.decoder,
            self.attention,
            self.x[one],
            tuple(table[one] if len(table) > 1 else table for table in self.rotary),
            self.keys[one],
            True,
            None if self.seen is None else self.seen[one],
            Range(*(None if bound is None else bound[one] for bound in self.sight)),
        )
