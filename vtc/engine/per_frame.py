"""Frame by frame: a method made for images, on the frames of a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vtc.layout import Tile, VisualSpan
from vtc.methods.base.method import Method
from vtc.methods.pool import split_budget
from vtc.methods.shared.clips import rows_by_index
from vtc.selection import Selection
from vtc.signals import SIGNALS, VisualTokens


def select_scoped(method: Method, many: Sequence[VisualTokens]) -> list[Selection]:
    """`method.select_many`, frame by frame for videos if the method's scope says so."""
    if method.scope != "frame":
        return method.select_many(many)
    parts = [_frames(method, tokens) if tokens.span.grid[0] > 1 else [(tokens, None)] for tokens in many]
    asked = [tokens for part in parts for tokens, _ in part]
    found = iter(method.select_many(asked))
    chosen = [[(next(found), rows) for _, rows in part] for part in parts]
    return [_joined(part + _spare(method, t), len(t.features)) for part, t in zip(chosen, many, strict=True)]


def _frames(method: Method, tokens: VisualTokens) -> list[tuple[VisualTokens, Tensor]]:
    """Each frame that has tokens and a share of the budget: as an image, and which rows of `tokens` it is."""
    row_of = rows_by_index(tokens)
    places = [(frame.flatten().to(row_of.device), tile) for tile in tokens.span.tiles for frame in tile.indices()]
    rows = [row_of[place] for place, _ in places]
    here = [own[own >= 0] for own in rows]
    shares = split_budget(min(method.count(tokens), sum(map(len, here))), [len(own) for own in here])
    found = []
    for (place, tile), own, kept, share in zip(places, rows, here, shares, strict=True):
        if share:
            frame = VisualSpan(tokens.span.row, place.cpu(), (1, tile.h, tile.w), (Tile(0, 1, tile.h, tile.w),))
            index = (own >= 0).nonzero()[:, 0]
            view = replace(
                tokens,
                features=tokens.features[kept],
                span=frame,
                index=index,
                read=_reader(tokens, place),
                budget=share,
            )
            found.append((view, kept))
    return found


def _spare(method: Method, tokens: VisualTokens) -> list[tuple[Selection, Tensor | None]]:
    """Tokens in no frame, as far as the budget goes beyond the frames: all are kept at 1.0."""
    if tokens.span.grid[0] == 1:
        return []
    separators = tokens.separators.nonzero()[:, 0]
    rows = separators[: max(0, method.count(tokens) - len(tokens.features) + len(separators))]
    return [(Selection.identity(len(rows), rows.device), rows)] if len(rows) else []


def _reader(tokens: VisualTokens, place: Tensor):
    """Signals of the frame at `place` among the clip's own tokens."""

    def read(name: str) -> Tensor:
        value, row = tokens.read(name), SIGNALS[name]
        return row.take(value, place) if row.place == "tower" else value

    return read


def _joined(parts: list[tuple[Selection, Tensor | None]], total: int) -> Selection:
    """One Selection of `total` tokens from those of its frames."""
    if parts and parts[0][1] is None:
        return parts[0][0]
    device = parts[0][0].anchor.device
    source = torch.full((total,), -1, dtype=torch.long, device=device)
    weight = torch.zeros(total, device=device)
    anchors, outputs = [], 0
    for selection, rows in parts:
        assert rows is not None
        anchors.append(rows[selection.anchor])
        source[rows] = torch.where(selection.source >= 0, selection.source + outputs, -1)
        weight[rows] = selection.weight.to(weight)
        outputs += selection.tokens_out
    return Selection(torch.cat(anchors), source, weight)
