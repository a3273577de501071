"""Plan: how one batch is shortened — index arithmetic from the Selections of its spans.

A row keeps all its text (and padding) and one slot per output of each span. Rows are aligned on the right, so the
last token stays last; a row that keeps fewer tokens than another begins with unused slots, which are masked.

How many tokens stay is known in main memory from the Selections' shapes, which ones only on the device; nothing here
waits for it, and nothing is done span by span or row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from vtc import ops
from vtc.engine.grid_positions import close_up, renumber
from vtc.selection import Selection
from vtc.transfer import upload, upload_all


@dataclass(frozen=True, eq=False)
class Places:
    """Where the visual tokens of a batch lie, span after span.

    Attributes:
        rows: batch row of each span. sizes: how many tokens each span has.
        at: LongTensor [2, V], row and position of every token.
    """

    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    at: Tensor

    def split(self, x: Tensor) -> list[Tensor]:
        """One [N, ...] per span of a tensor [V, ...] of all their tokens."""
        return list(x.split(self.sizes))

    def flat(self, length: int) -> Tensor:
        """LongTensor [V]: where they are in a batch of rows of that length, laid out one after another."""
        return self.at[0] * length + self.at[1]


@dataclass(frozen=True, eq=False)
class Plan:
    """Where everything goes.

    Example: one row of eight tokens, v = visual, of which a method keeps the second and the fourth:

        position      0 1 2 3 4 5 6 7
        token         t v v v v t t t
        keep          1 0 1 0 1 1 1 1      gone = not keep
        taken         1 3                  of the visual tokens
        index, slot   0 2 4 5 6 7          width S = 6, valid = all
        place         0 0 1 1 2 3 4 5      new slot of each position, or of the last kept one before it

    In a batch whose other row keeps seven tokens S is 7: slot is [0, 0, 2, 4, 5, 6, 7], its first entry is unused
    (valid = False, unused = 1), and every place is one higher.

    Attributes:
        gone: BoolTensor [B, L], tokens that are dropped.
        index: LongTensor [B, S], original position whose row each of the S new slots takes.
        slot: LongTensor [B, S], original position at which each new slot stands (differs from `index` only where a
            method wants its tokens in another order); 0 for the unused slots at the start of shorter rows.
        unused: how many those are, per row.
        place: LongTensor [B, L], new slot of each original position, or of the last kept one before it.
        taken: LongTensor [M], the visual token at which each output stands, of all V.
        places, outputs: where the visual tokens were, and where they are now.
    """

    selections: tuple[Selection, ...]
    gone: Tensor
    index: Tensor
    slot: Tensor
    unused: tuple[int, ...]
    place: Tensor
    taken: Tensor
    places: Places
    outputs: Places

    @classmethod
    def of(
        cls,
        rows: int,
        length: int,
        places: Places,
        selections: Sequence[Selection],
        unused: tuple[int, ...] | None = None,
    ) -> Plan:
        """Plan for a batch [rows, length]; `unused` slots at the start of each row (of an earlier Plan) go first."""
        device, counts = places.at.device, tuple(selection.tokens_out for selection in selections)
        stays = [length - n for n in unused or (0,) * rows]
        for row, before, after in zip(places.rows, places.sizes, counts, strict=True):
            stays[row] -= before - after
        width = max(stays)
        blank = tuple(width - n for n in stays)
        several, starts = len(counts) > 1, [0, *accumulate(places.sizes)]
        per_output = torch.tensor([[*starts[:-1]], [n * length for n in range(len(counts))]])
        start, block, lift, first = upload_all(
            [
                *per_output.repeat_interleave(torch.tensor(counts), dim=1),
                torch.tensor(blank)[:, None],
                torch.tensor(unused or [0])[:, None],
            ],
            device,
        )
        anchors = [selection.anchor.to(device) for selection in selections]
        taken = torch.cat(anchors) + start if several else anchors[0]
        row, shown = places.at[:, taken]
        ordered = all(selection.ascending for selection in selections)
        stands = shown if ordered else (shown + block).sort().values - block  # each span's outputs in its own places
        flat = row * length + stands

        here = torch.arange(length, device=device)
        keep = torch.ones(rows * length, dtype=torch.bool, device=device)
        keep = keep.index_fill_(0, places.flat(length), False).index_fill_(0, flat, True).view(rows, length)
        gone = ~keep
        if unused and any(unused):
            keep, gone = keep & (here >= first), gone & (here >= first)
        target = keep.cumsum(dim=1).sub_(1)
        if any(blank):
            target += lift
        # what goes is written into a column behind the last, which is cut off
        slot = torch.zeros(rows, width + 1, dtype=torch.long, device=device)
        slot = slot.scatter_(1, torch.where(keep, target, width), here.expand(rows, -1))[:, :width]
        index = slot
        if not ordered:
            source = here.repeat(rows).scatter_(0, flat, shown)
            index = source.view(rows, length).gather(1, slot)
        place = target.clamp_(min=0)
        new = torch.stack([row, place.view(-1)[flat]])
        outputs = Places(places.rows, counts, new)
        return cls(tuple(selections), gone, index, slot, blank, place, taken, places, outputs)

    @cached_property
    def valid(self) -> Tensor:
        """BoolTensor [B, S], False for the unused slots at the start of shorter rows."""
        here = torch.arange(self.width, device=self.slot.device)
        return here >= upload(torch.tensor(self.unused)[:, None], here.device)

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
        """Write what outputs are made of into `short` [B, S, D], which `gather` made of `x` [B, L, D]."""
        if all(selection.pruned for selection in self.selections):
            return short
        row, position = self.places.at.to(x.device)
        made = self.merged(x[row, position])
        if any(selection.features is not None for selection in self.selections):
            own = zip(self.selections, self.outputs.split(made), strict=True)
            made = torch.cat([part if s.features is None else s.features.to(part) for s, part in own])
        row, slot = self.outputs.at.to(x.device)
        short[row, slot] = made
        return short

    def restore(self, x: Tensor) -> Tensor:
        """Rows [B, S, D] -> [B, L, D]: a position that is gone shows the last kept one before it.

        So row i still predicts the token after position i, whatever was dropped in between.
        """
        return ops.gather_rows(self.place.to(x.device), [x])[0]

    def merged(self, rows: Tensor) -> Tensor:
        """Compress rows aligned with all visual tokens, [V, D] -> [M, D]; modules' own features do not stand in."""
        if all(selection.pruned for selection in self.selections):
            return rows[self.taken.to(rows.device)]
        starts = torch.tensor([0, *accumulate(self.outputs.sizes)][:-1])
        start = upload(starts.repeat_interleave(torch.tensor(self.places.sizes)), rows.device)
        source = torch.cat([selection.source for selection in self.selections]).to(rows.device)
        weight = torch.cat([selection.weight for selection in self.selections]).to(rows.device)
        return ops.segment_sum(rows, torch.where(source >= 0, source + start, -1), weight, sum(self.outputs.sizes))

    def visual(self) -> Tensor:
        """BoolTensor [B, S]: the new slots that hold visual tokens."""
        mask = torch.zeros_like(self.slot, dtype=torch.bool)
        mask.view(-1).index_fill_(0, self.outputs.flat(self.width), True)
        return mask

    def positions(self, position_ids: Tensor, compact: bool) -> tuple[Tensor, Tensor]:
        """New position ids and the shift of everything that follows.

        Args:
            position_ids: [B, L], or [3, B, L] with (t, h, w) rows, or [4, B, L] (HunyuanOCR's).
            compact: renumber instead of keeping each slot's own position.

        Returns:
            positions of the new slots, [B, S] or [A, B, S]; LongTensor [B], how far later tokens move down.
        """
        if position_ids.dim() == 2:
            kept = position_ids.gather(1, self.slot)
            gone = self.gone.cumsum(dim=1)  # [B, L]
            shift = gone[:, -1] if compact else torch.zeros_like(gone[:, -1])
            return (kept - gone.gather(1, self.slot) if compact else kept), shift
        shift = torch.zeros(position_ids.shape[1], dtype=torch.long, device=position_ids.device)
        if compact and len(position_ids) == 4:
            position_ids, shift = close_up(position_ids, self.gone)
        elif compact:
            position_ids, shift = renumber(position_ids, self.places, self.taken)
        axes = len(position_ids)
        return position_ids.gather(2, self.index.expand(axes, -1, -1)), shift  # a token brings its own place
