"""Trace: what a forward leaves behind for the report — tensors, so that no forward waits for its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from vtc.cost import DecoderCost
from vtc.engine.flow import Flow
from vtc.engine.versions import caches_latents
from vtc.held import Held
from vtc.layout import VisualSpan
from vtc.reports import Elapsed, Report, ReportSpan, RowReport, StageReport, Stopwatch, TowerReport
from vtc.selection import Selection


@dataclass(frozen=True, eq=False)
class HeldRows:
    """What a layer holds of some tokens of batch row `row`.

    Attributes:
        places: LongTensor [G or 1, N] in main memory, where in the conversation the tokens are that `held` is about.
    """

    row: int
    places: Tensor
    held: Held


@dataclass
class Eviction:
    """Rows that one layer's KV cache lost at one moment.

    Attributes:
        length: logical length of the cache at that moment. slot: LongTensor [B, G, lost], positions in the whole
            conversation; G = 1 where all heads lose the same. gone: BoolTensor [B, G, lost], False where a row or head
            has lost fewer than another. held: what was said of each picture, where that is more than what goes.
    """

    layer: int
    length: int
    slot: Tensor
    gone: Tensor
    held: tuple[HeldRows, ...] = ()

    @property
    def by_head(self) -> list[list[Tensor]]:
        """Per batch row and head, the positions that are lost."""
        pairs = zip(self.slot.cpu(), self.gone.cpu(), strict=True)
        return [[slot[gone] for slot, gone in zip(*row, strict=True)] for row in pairs]

    @property
    def slots(self) -> list[Tensor]:
        """Per batch row, the positions that every head has lost."""
        found = []
        for first, *others in self.by_head:
            for other in others:
                first = first[torch.isin(first, other)]
            found.append(first)
        return found


@dataclass
class StageTrace:
    """A `StageReport` whose clocks have not been read yet."""

    name: str
    layer: int | None
    tokens_in: float
    tokens_out: float | Tensor
    watches: Sequence[Stopwatch | Elapsed]
    flops: int = 0
    place: str = ""

    def report(self) -> StageReport:
        ms = sum(watch.ms for watch in self.watches)
        before, after = (round(float(n)) for n in (self.tokens_in, self.tokens_out))
        return StageReport(self.name, self.layer, before, after, ms, self.flops, self.place)


@dataclass
class Trace:
    """One prefill: its spans, what each step selected of them, and how many tokens its rows had at each layer."""

    notes: list[str] = field(default_factory=list)
    stages: list[StageTrace] = field(default_factory=list)
    spans: tuple[VisualSpan, ...] = ()
    steps: list[tuple[int, list[Selection]]] = field(default_factory=list)  # (layer, one Selection per span)
    selections: tuple[Selection, ...] = ()  # all steps together
    history: list[tuple[int, list[Selection | None]]] = field(default_factory=list)  # the same, from which layer on
    whole: list[int] | None = None  # tokens that each span's picture has as it is, where it was made smaller
    start: int = 0  # tokens of the conversation before this prefill
    length: int = 0  # tokens of this prefill, padding included
    rows_full: Tensor | None = None  # LongTensor [B], tokens without padding
    rows_kept: list[tuple[int, Tensor]] = field(default_factory=list)  # (from layer, LongTensor [B])
    evictions: list[Eviction] = field(default_factory=list)
    cached: dict[int, Tensor] = field(default_factory=dict)  # by layer, LongTensor [B]: rows held after eviction
    windowed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # layer -> `Sight.within` of its window
    decoded: dict[str, tuple[int, int, Tensor | int]] = field(default_factory=dict)  # method -> (layer, steps, choices)
    towers: list[Callable[[], TowerReport]] = field(default_factory=list)  # what each stage spared the vision tower
    active: tuple[Tensor | int, Tensor | int] = (0, 0)  # cached tokens that were active after the last choice, of all

    def begin(self, flow: Flow) -> None:
        """Remember the spans and the uncompressed rows."""
        self.spans, self.start, self.length = flow.spans, flow.seen, flow.length
        valid = flow.part.valid
        full = flow.part.slot.new_full((flow.rows,), flow.length)
        self.rows_full = full if valid is None else valid.sum(dim=1)

    def note_stage(
        self,
        name: str,
        layer: int | None,
        before: float,
        after: float | Tensor,
        watches: Sequence[Stopwatch | Elapsed],
        flops: int = 0,
        place: str = "",
    ) -> None:
        """Remember what a method did: visual tokens before and after, all spans together; see `StageReport`."""
        self.stages.append(StageTrace(name, layer, before, after, watches, flops, place))

    def note_decode(self, name: str, layer: int, anew: Tensor) -> None:
        """Remember a decode step in which layers from `layer` on read a part of the cached visual tokens."""
        _, steps, choices = self.decoded.get(name, (layer, 0, 0))
        self.decoded[name] = (layer, steps + 1, choices + anew)

    def _notes(self) -> list[str]:
        active, total = (int(x) for x in self.active)
        return self.notes + [
            f"{name}: decode steps read {active} of {total} visual tokens of the cache from layer {layer} on, chosen "
            f"{int(choices)} times in {steps} steps; the others rest in memory, so the KV cache is no smaller for it."
            for name, (layer, steps, choices) in self.decoded.items()
        ]

    def note_flow(self, flow: Flow) -> None:
        """Remember what the forward came to."""
        for part in flow.parts:
            there = part.slot.new_full((flow.rows,), part.width) if part.valid is None else part.valid.sum(dim=1)
            self.rows_kept.append((part.first, there))
        self.windowed = flow.sight.within_windows()
        self.history = [(i, [c if c is None else c.detached() for c in chosen]) for i, chosen in flow.history]
        self.selections = tuple(
            Selection.prune(index, len(index)) if chosen is None else chosen.detached()
            for chosen, index in zip(flow.chosen, flow.index, strict=True)
        )

    def report(self, language_model: nn.Module) -> Report:
        """The report, with the cost model's account for this language model."""
        if self.rows_full is None or not self.rows_kept:
            return Report(notes=self._notes())
        cost = cost_of(language_model)
        full = self.rows_full.tolist()
        kept = [(first, rows.tolist()) for first, rows in self.rows_kept]
        rows = [next(r for first, r in reversed(kept) if first <= i) for i in range(cost.layers)]  # [layers][B]
        visual_full = sum(self._whole)
        held = {i: rows for i, (rows, _) in self.windowed.items()} | self.cached
        cached = [held[i].tolist() if i in held else own for i, own in enumerate(rows)]
        pairs = {i: seen.tolist() for i, (_, seen) in self.windowed.items()}
        flops = [  # [layers][B]
            [cost.layer_flops(i, n, pairs[i][b] if i in pairs else None) for b, n in enumerate(own)]
            for i, own in enumerate(rows)
        ]
        return Report(
            spans=self._spans(),
            stages=[stage.report() for stage in self.stages],
            tokens_by_layer=[visual_full - sum(full) + sum(own) for own in rows],
            flops_by_layer=[(sum(cost.layer_flops(i, n) for n in full), sum(own)) for i, own in enumerate(flops)],
            kv_bytes_by_layer=[
                (sum(cost.layer_kv_bytes(i, n) for n in full), sum(cost.layer_kv_bytes(i, n) for n in own))
                for i, own in enumerate(cached)
            ],
            head_flops=len(full) * cost.head_flops(),
            rows=[self._row(cost, row, full[row], rows, cached, flops) for row in range(len(full))],
            notes=self._notes(),
            tower=reduce(TowerReport.then, [told() for told in self.towers]) if self.towers else None,
        )

    def _spans(self) -> list[ReportSpan]:
        return [
            ReportSpan(
                s.row,
                s.modality,
                s.grid,
                c.anchor.cpu().clone(),
                c.source.cpu().clone(),
                s.tiles,
                s.boxes(),
                self._steps_of(number),
                self._evicted_from(s),
                self._held_of(s),
                None if self.whole is None else self.whole[number],
                s.crop,
            )
            for number, (s, c) in enumerate(zip(self.spans, self.selections, strict=True))
        ]

    def _row(
        self,
        cost: DecoderCost,
        row: int,
        full: int,
        layers: list[list[int]],
        cached: list[list[int]],
        flops: list[list[int]],
    ) -> RowReport:
        """The account of one batch row: `layers`, `cached` and `flops` are its tokens, those that are held, and what
        they cost, by layer, [layers][B]."""
        mine = [
            (whole, chosen.tokens_out)
            for span, whole, chosen in zip(self.spans, self._whole, self.selections, strict=True)
            if span.row == row
        ]
        visual = sum(before for before, _ in mine)
        lengths, held = [own[row] for own in layers], [own[row] for own in cached]
        return RowReport(
            tokens_in=visual,
            tokens_out=sum(after for _, after in mine),
            tokens_average=visual - full + sum(lengths) / len(lengths),
            flops=(cost.prefill_flops(full), sum(own[row] for own in flops) + cost.head_flops()),
            kv_bytes=(cost.kv_bytes(full), sum(cost.layer_kv_bytes(i, n) for i, n in enumerate(held))),
        )

    @property
    def _whole(self) -> list[int]:
        """Tokens of each span's picture as it came."""
        return [span.tokens for span in self.spans] if self.whole is None else self.whole

    def _steps_of(self, number: int) -> tuple[tuple[int, Tensor, Tensor], ...]:
        """(layer, anchors, sources) of one span after each shortening."""
        chosen = [(layer, selections[number]) for layer, selections in self.history]
        return tuple((layer, c.anchor.cpu().clone(), c.source.cpu().clone()) for layer, c in chosen if c is not None)

    def _evicted_from(self, span: VisualSpan) -> dict[int, Tensor]:
        """By layer, which tokens of a span its KV cache lost at the end of the prefill."""
        lost: dict[int, list[Tensor]] = {}
        for event in self.evictions:
            if event.length == self.start + self.length:  # later ones happen while decoding
                own = torch.isin(span.index.cpu(), event.slots[span.row].cpu() - self.start)
                lost.setdefault(event.layer, []).append(own.nonzero().squeeze(1))
        return {layer: torch.cat(parts) for layer, parts in lost.items()}

    def _held_of(self, span: VisualSpan) -> dict[int, tuple[Selection, ...]]:
        """By layer, what each KV head holds of a span's tokens at the end of the prefill, where that was noted."""
        found: dict[int, tuple[Selection, ...]] = {}
        own = {place: number for number, place in enumerate(span.index.tolist())}
        for event in self.evictions:
            for one in event.held if event.length == self.start + self.length else ():
                numbers = [[own.get(place - self.start, -1) for place in head] for head in one.places.tolist()]
                if one.row == span.row and all(min(head) >= 0 for head in numbers):
                    heads = range(max(one.held.heads, len(numbers)))
                    made = [
                        _among(one.held.selection(g), numbers[min(g, len(numbers) - 1)], span.tokens) for g in heads
                    ]
                    found[event.layer] = tuple(made)
        return found


def cost_of(language_model: nn.Module) -> DecoderCost:
    """The cost model's account of a language model."""
    lm: Any = language_model
    return DecoderCost.of(lm.config, lm.get_input_embeddings().weight.element_size(), caches_latents())


def _among(selection: Selection, numbers: list[int], total: int) -> Selection:
    """A selection among the tokens `numbers` of a span, as one among all `total` of them."""
    where, chosen = torch.tensor(numbers), selection.to(torch.device("cpu"))
    source = torch.full((total,), -1, dtype=torch.long).scatter_(0, where, chosen.source)
    weight = torch.zeros(total).scatter_(0, where, chosen.weight.float())
    return Selection(where[chosen.anchor], source, weight)
