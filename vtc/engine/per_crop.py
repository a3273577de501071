"""Crop by crop: a method whose paper chooses within each picture that the vision tower sees.

A crop is one such picture: the thumbnail and the crops of an any-resolution image, a tile of InternVL's, a frame of a
video. With scope="frame" only videos are taken apart; with scope="crop" any-resolution images are, too.

Example: a LLaVA-NeXT image, t = thumbnail, a and b = what is left of two crops, n = `image_newline`:

    token     0 1 2 3 4 5 6 7 8 9
    what      t t t t a b n a b n
    crop      0 0 0 0 1 2 . 1 2 .
    chosen    among [0 1 2 3], [4 7] and [5 8], of which a budget of 4 keeps 2, 1 and 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vtc.budget import split_budget
from vtc.layout import Tile, VisualSpan
from vtc.methods.base.method import Method
from vtc.selection import Selection
from vtc.signals import SIGNALS, VisualTokens
from vtc.transfer import upload

Crop = tuple[int, Tensor]  # its number among the crops of its image, and the span indices [h, w] of its tokens


def select_scoped(method: Method, many: Sequence[VisualTokens]) -> list[Selection]:
    """`method.select_many`, crop by crop where the method's scope says so.

    Outputs are in the order of the crops if the method has an order of its own (`appends`), else in that of the tokens.
    """
    views = [_views(method, tokens, crops_of(tokens.span, method.scope)) for tokens in many]
    asked = [[tokens] if own is None else [view for view, _ in own] for tokens, own in zip(many, views, strict=True)]
    found = iter(method.select_many([view for own in asked for view in own]))
    chosen: list[Selection] = []
    for tokens, own in zip(many, views, strict=True):
        if own is None:
            chosen.append(next(found))
            continue
        pieces = [(next(found), rows) for _, rows in own]
        spare = method.count(tokens) - sum(len(rows) for _, rows in own)  # beyond the crops: all is kept at 1.0
        if spare > 0:
            rows = tokens.separators.nonzero()[:spare, 0]
            pieces.append((Selection.identity(len(rows), rows.device), rows))
        joined = _joined(pieces, tokens)
        chosen.append(joined if method.appends and not joined.pruned else joined.sorted())
    return chosen


def crops_of(span: VisualSpan, scope: str | None) -> list[Crop]:
    """The crops that are chosen in for themselves; none if the span is taken as a whole."""
    if scope not in ("frame", "crop"):
        return []
    if span.grid[0] > 1:  # a video; some families' towers see all of its frames as one picture
        return list(enumerate(frame for tile in span.tiles for frame in tile.indices()))
    if scope == "frame" or len(span.crop) != span.tokens or int(span.crop.max()) < 1:
        return []
    return sorted(((one.number, one.places) for one in span.rectangles()), key=lambda crop: crop[0])


def _views(method: Method, tokens: VisualTokens, crops: list[Crop]) -> list[tuple[VisualTokens, Tensor]] | None:
    """Each crop that has tokens and a share of the budget: as an image, and which rows of `tokens` it is."""
    if not crops:
        return None
    row_of, complete = tokens.row_of, len(tokens.features) == tokens.total
    rows = list(
        row_of[upload(torch.cat([place.flatten() for _, place in crops]), row_of.device)].split(
            [place.numel() for _, place in crops]
        )
    )
    here = rows if complete else [own[own >= 0] for own in rows]
    sizes = [len(own) for own in here]
    shares = split_budget(min(method.count(tokens), sum(sizes)), sizes)
    read, found = _once(tokens.read), []
    for (number, place), own, kept, share in zip(crops, rows, here, shares, strict=True):
        if share:
            view = replace(
                tokens,
                features=tokens.features[kept],
                span=_as_image(tokens.span, place),
                index=torch.arange(len(own), device=own.device) if complete else (own >= 0).nonzero()[:, 0],
                read=_reader(read, number, place.flatten()),
                budget=share,
            )
            found.append((view, kept))
    return found


def _as_image(span: VisualSpan, place: Tensor) -> VisualSpan:
    """The span of the crop at `place` [h, w], on its own."""
    (h, w), flat = place.shape, place.flatten()
    first = int(flat[0])
    of = next(tile for tile in span.tiles if tile.start <= first < tile.start + tile.length)
    row, column = divmod(first - of.start, of.w + of.newline)
    tile = Tile(0, 1, h, w, box=of.part(row % of.h, column, h, w))  # rows of a video's frames follow each other
    return VisualSpan(span.row, flat, (1, h, w), (tile,), span.modality, span.picture, torch.zeros_like(flat))


def _once(read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """`read` that keeps what it has read."""
    known: dict[str, Tensor] = {}

    def kept(name: str) -> Tensor:
        if name not in known:
            known[name] = read(name)
        return known[name]

    return kept


def _reader(read: Callable[[str], Tensor], number: int, place: Tensor) -> Callable[[str], Tensor]:
    """Signals of crop `number`, at `place` among the span's own tokens."""

    def own(name: str) -> Tensor:
        value, row = read(name), SIGNALS[name]
        return row.take(value, place, number) if row.place == "tower" else value

    return own


def _joined(parts: list[tuple[Selection, Tensor]], tokens: VisualTokens) -> Selection:
    """One Selection of all `tokens` from those of its crops, which hold the rows given with them."""
    total, device = len(tokens.features), parts[0][0].anchor.device
    if all(selection.pruned for selection, _ in parts):
        return Selection.prune(torch.cat([rows[selection.anchor] for selection, rows in parts]), total)
    source = torch.full((total,), -1, dtype=torch.long, device=device)
    weight = torch.zeros(total, device=device)
    anchors, outputs = [], 0
    for selection, rows in parts:
        anchors.append(rows[selection.anchor])
        source[rows] = torch.where(selection.source >= 0, selection.source + outputs, -1)
        weight[rows] = selection.weight.to(weight)
        outputs += selection.tokens_out
    features = None
    if any(selection.features is not None for selection, _ in parts):
        features = torch.cat([selection.apply(tokens.features[rows]) for selection, rows in parts])
    return Selection(torch.cat(anchors), source, weight, features)
