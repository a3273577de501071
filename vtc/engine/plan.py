"""Plan: how one batch is shortened — pure index arithmetic from the Selections of its spans, done in main memory.

A row keeps all its text (and padding) and one slot per output of each span. Rows are aligned on the right, so the
last token stays last; a row that keeps fewer tokens than another begins with unused slots, which are masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.layout import VisualLayout, VisualSpan
from vtc.selection import Selection


@dataclass(frozen=True, eq=False)
class Plan:
    """Where everything goes.

    Example: one row of eight tokens, v = visual, of which a method keeps the second and the fourth:

        position      0 1 2 3 4 5 6 7
        token         t v v v v t t t
        keep          1 0 1 0 1 1 1 1      gone = not keep
        index, slot   0 2 4 5 6 7          width S = 6, valid = all
        place         0 0 1 1 2 3 4 5      new slot of each position, or of the last kept one before it

    In a batch whose other row keeps seven tokens S is 7: slot is [1, 0, 2, 4, 5, 6, 7], its first entry is unused
    (valid = False, unused = 1), and every place is one higher.

    Attributes:
        keep: BoolTensor [B, L], slots that stay. gone: BoolTensor [B, L], tokens that are dropped.
        index: LongTensor [B, S], original position whose row each of the S new slots takes.
        slot: LongTensor [B, S], original position at which each new slot stands (differs from `index` only where a
            method wants its tokens in another order).
        valid: BoolTensor [B, S], False for the unused slots at the start of shorter rows.
        unused: how many those are, per row.
        place: LongTensor [B, L], new slot of each original position, or of the last kept one before it.
    """

    layout: VisualLayout
    selections: tuple[Selection, ...]
    keep: Tensor
    gone: Tensor
    index: Tensor
    slot: Tensor
    valid: Tensor
    unused: tuple[int, ...]
    place: Tensor

    @classmethod
    def of(
        cls,
        layout: VisualLayout,
        selections: list[Selection],
        device: torch.device,
        unused: tuple[int, ...] | None = None,
    ) -> Plan:
        """Plan for the spans of `layout`; `unused` slots at the start of each row (of an earlier Plan) go first."""
        selections = Selection.on_host(selections)
        b, length = layout.rows, layout.length
        keep = torch.ones(b, length, dtype=torch.bool)
        source = torch.arange(length).repeat(b, 1)  # [B, L]
        stays = [length] * b
        for row, count in enumerate(unused or ()):
            keep[row, :count] = False
            stays[row] -= count
        for span, selection in zip(layout.spans, selections, strict=True):
            where = span.index.cpu()
            anchor = where[selection.anchor]  # [M] positions in the row
            slots = anchor.sort().values
            keep[span.row, where] = False
            keep[span.row, slots] = True
            source[span.row, slots] = anchor
            stays[span.row] -= selection.tokens_in - selection.tokens_out
        width = max(stays)
        gone = ~keep
        for row, count in enumerate(unused or ()):
            gone[row, :count] = False
        # Stable sort puts what goes before what stays, both in order; the last `width` columns are the new rows.
        slot = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, length - width :]
        counts = keep.sum(dim=1, keepdim=True)  # [B, 1]
        return cls(
            layout=layout,
            selections=tuple(selections),
            keep=keep.to(device),
            gone=gone.to(device),
            index=source.gather(1, slot).to(device),
            slot=slot.to(device),
            valid=keep.gather(1, slot).to(device),
            unused=tuple(width - n for n in stays),
            place=(keep.cumsum(dim=1) - 1 + width - counts).clamp(min=0).to(device),
        )

    @property
    def ragged(self) -> bool:
        """Whether any slot is unused."""
        return any(self.unused)

    @property
    def width(self) -> int:
        return self.slot.shape[1]

    def gather(self, x: Tensor) -> Tensor:
        """Rows [B, L, D] -> [B, S, D]."""
        return ops.gather_rows(self.index.to(x.device), [x])[0]

    def merge_into(self, short: Tensor, x: Tensor) -> Tensor:
        """Write what a span's outputs are made of into `short` [B, S, D], which `gather` made of `x` [B, L, D]."""
        for span, selection in zip(self.layout.spans, self.selections, strict=True):
            if selection.merges:
                merged = selection.apply(x[span.row, span.index.to(x.device)])  # [M, D]
                short[span.row, self.slots_of(span, selection).to(x.device)] = merged
        return short

    def restore(self, x: Tensor) -> Tensor:
        """Rows [B, S, D] -> [B, L, D]: a position that is gone shows the last kept one before it.

        So row i still predicts the token after position i, whatever was dropped in between.
        """
        return ops.gather_rows(self.place.to(x.device), [x])[0]

    def merged(self, features: Tensor) -> Tensor:
        """Compress rows aligned with all visual tokens in reading order, [sum N, D] -> [sum M, D]."""
        parts = self.layout.split(features)
        return torch.cat([s.combine(part) for s, part in zip(self.selections, parts, strict=True)])

    def visual(self) -> Tensor:
        """BoolTensor [B, S]: the new slots that hold visual tokens."""
        mask = torch.zeros_like(self.keep)
        for span in self.layout.spans:
            mask[span.row, span.index.to(mask.device)] = True
        return mask.gather(1, self.slot) & self.valid

    def slots_of(self, span: VisualSpan, selection: Selection) -> Tensor:
        """LongTensor [M]: new slots of a span's outputs."""
        where = span.index.to(self.place.device)[selection.anchor.to(self.place.device)]
        return self.place[span.row, where.sort().values]

    def positions(self, position_ids: Tensor, compact: bool) -> tuple[Tensor, Tensor]:
        """New position ids and the shift of everything that follows.

        Args:
            position_ids: [B, L], or [3, B, L] with (t, h, w) rows.
            compact: renumber instead of keeping each slot's own position.

        Returns:
            positions of the new slots, [B, S] or [3, B, S]; LongTensor [B], how far later tokens move down.
        """
        if position_ids.dim() == 2:
            kept = position_ids.gather(1, self.slot)
            gone = self.gone.cumsum(dim=1)  # [B, L]
            shift = gone[:, -1] if compact else torch.zeros_like(gone[:, -1])
            return (kept - gone.gather(1, self.slot) if compact else kept), shift
        device = position_ids.device
        new = position_ids.cpu().clone() if compact else position_ids
        shift = torch.zeros(position_ids.shape[1], dtype=torch.long)
        if compact:
            for span, selection in zip(self.layout.spans, self.selections, strict=True):
                if span.tokens:
                    shift[span.row] += _renumber_grid(new, span, selection)
        kept = new.to(device).gather(2, self.index.expand(3, -1, -1))  # a token brings its own place in the picture
        return kept, shift.to(device)


def _renumber_grid(positions: Tensor, span: VisualSpan, selection: Selection) -> int:
    """Close the gaps of one span in `positions` [3, B, L], in place, and pull up what follows it in its row.

    Along each of (h, w) the kept tokens' coordinates become their ranks; what follows an image starts one past its
    largest coordinate. Time stays as it is: it counts seconds, not tokens. With one position per token in reading order
    this is plain renumbering. A video whose frames have text between them (Qwen3-VL) is renumbered frame by frame.
    """
    where, anchors = span.index.to(positions.device), selection.anchor.to(positions.device)
    kept = torch.zeros(span.tokens, dtype=torch.bool, device=positions.device)
    kept[anchors] = True
    breaks = ((where.diff() != 1).nonzero()[:, 0] + 1).tolist()
    total = 0
    for run, stays in zip(where.tensor_split(breaks), kept.tensor_split(breaks), strict=True):
        own = positions[:, span.row, run]  # [3, n], already shifted by what came before
        axes = (0, 1, 2) if torch.equal(own[0], own[1]) else (1, 2)
        start, end = own[1:].min(), own[1:].max() + 1
        extent = 0
        for axis in axes:
            values, rank = own[axis, stays].unique(return_inverse=True)
            positions[axis, span.row, run[stays]] = start + rank
            extent = max(extent, values.numel())
        closed = int(end - start) - extent
        positions[:, span.row, int(run[-1]) + 1 :] -= closed
        total += closed
    return total
