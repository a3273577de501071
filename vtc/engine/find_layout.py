"""Find the visual spans of a batch: which tokens belong to which image or video, and to which run of the tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtc.layout import VisualLayout, VisualSpan
from vtc.models.family import Adapter, FrameMarks, ImageLayout, Known, TowerCall

_CHUNKS = "generate's prefill_chunk_size is not supported on a wrapped model"
_MISMATCH = (
    "the visual tokens of the prompt are not those of the images or videos that were encoded: pass whole prompts with "
    f"the features of their own images, in order ({_CHUNKS})."
)


class Seen(NamedTuple):
    """What is known of the images, or of the videos, of one batch.

    Attributes:
        modality: "image" or "video".
        visual: BoolTensor [B, L], True at their tokens.
        pooled: the encoder's features, one [N, D] per image (or tile) or video, in reading order; None if unknown, then
            every unbroken run of their tokens is one of them.
        grid_thw: [images, 3] patch grids where the family has them.
        call: the tower's run, if known; its signals are addressed by each span's `patch`.
        frames: LongTensor [B, L], 1, 2, ... at tokens of a video's frames, 0 at others, for families that write videos
            as numbered images; None = there are none.
    """

    modality: str
    visual: Tensor
    pooled: Any = None
    grid_thw: Tensor | None = None
    call: TowerCall | None = None
    frames: Tensor | None = None


def find_layout(adapter: Adapter, model: nn.Module, embeds: Tensor, seen: Sequence[Seen]) -> VisualLayout:
    """The layout of one batch, from the language model's input `embeds` [B, L, D] with features in place."""
    rows, length = embeds.shape[:2]
    spans: list[VisualSpan] = []
    expansion = 1
    for one in seen:
        found, repeated = _spans(adapter, model, embeds, one)
        spans += found
        expansion = max(expansion, repeated)
    spans.sort(key=lambda span: (span.row, int(span.index[0])))
    return VisualLayout(rows, length, tuple(spans), expansion)


def _spans(adapter: Adapter, model: nn.Module, embeds: Tensor, seen: Seen) -> tuple[list[VisualSpan], int]:
    """Spans of one modality, and how many rows in a row share one prompt."""
    where = seen.visual.cpu().nonzero()  # [V, 2], reading order
    if not len(where):
        return [], 1
    pieces = _pieces(where, seen.pooled, adapter.joins_pieces)
    runs, modalities = [1] * len(pieces), [seen.modality] * len(pieces)
    if seen.frames is not None:
        pieces, runs, modalities = _videos(pieces, seen.frames.cpu())
    placed: list[tuple[int, Tensor]] = []
    for piece in pieces:
        row = int(piece[0, 0])
        if int(piece[-1, 0]) != row:
            raise ValueError(_MISMATCH)
        placed.append((row, piece[:, 1]))
    rows_of = [row for row, _ in placed]
    features = [embeds[row, index.to(embeds.device)] for row, index in placed]
    images, layouts, expansion = _arrange(adapter, model, rows_of, features, modalities, seen)
    starts, entries = [0], [0]  # of each image: its first tower token, and its first entry in what was encoded
    for image, layout in enumerate(layouts):
        starts.append(starts[-1] + layout.tower_tokens)
        entries.append(entries[-1] + runs[images.index(image)])
    call = seen.call
    spans = [
        VisualSpan(
            row=row,
            index=index,
            grid=layout.grid,
            tiles=layout.tiles,
            modality=modality,
            picture=image if call is None or call.pictures is None else call.pictures[entries[image]],
            crop=layout.crop,
            patch=torch.where(layout.patch >= 0, layout.patch + starts[image], -1),
        )
        for (row, index), image, modality in zip(placed, images, modalities, strict=True)
        for layout in [layouts[image]]
    ]
    return spans, expansion


def layouts_of(
    adapter: Adapter,
    model: nn.Module,
    features: list[Tensor],
    grid_thw: Tensor | None,
    call: TowerCall | None,
    modalities: Sequence[str],
) -> list[ImageLayout] | None:
    """Layouts of the images or videos of one run of the tower, from their tokens; None if they do not fit that run."""
    grids: list[Any] = [None] * len(features) if grid_thw is None else grid_thw.tolist()
    if len(grids) != len(features):
        return None
    crops: list[int] | list[None] | None = [None] * len(features)
    if call is not None and call.first is not None and set(modalities) == {"image"}:
        crops = _crop_counts([adapter.crop_counts(model, x) for x in features], [x[0] for x in features], call.first)
        if crops is None:
            return None
    known = [Known(*facts) for facts in zip(grids, crops, modalities, strict=True)]
    layouts = [adapter.layout(model, x, facts) for x, facts in zip(features, known, strict=True)]
    fits = call is None or sum(layout.crops for layout in layouts) == call.crops
    return layouts if fits else None


def _arrange(
    adapter: Adapter,
    model: nn.Module,
    rows: list[int],
    features: list[Tensor],
    modalities: list[str],
    seen: Seen,
) -> tuple[list[int], list[ImageLayout], int]:
    """(image of each span, layout of each image, how many rows in a row share one prompt).

    Beam search and several return sequences repeat every row; the tower saw the images once.
    """
    for expansion in range(1, max(rows) + 2):
        images = _images(rows, expansion)
        if images is None:
            continue
        first = [images.index(image) for image in range(max(images) + 1)]
        try:
            own, kinds = [features[i] for i in first], [modalities[i] for i in first]
            layouts = layouts_of(adapter, model, own, seen.grid_thw, seen.call, kinds)
        except ValueError as error:
            if seen.call is not None:
                raise
            raise ValueError(f"{error} ({_CHUNKS})") from error  # features of unknown origin: a chunk, maybe
        if layouts is not None:
            return images, layouts, expansion
    raise ValueError(_MISMATCH)


def _crop_counts(options: list[list[int]], starts: list[Tensor], first: Tensor) -> list[int] | None:
    """Crops of each image: one of its `options`, so that each image begins with the crop that it begins with.

    Args:
        starts: first token [D] of each image. first: [crops, D] first token of each crop of all images.
    """

    def solve(image: int, crop: int) -> list[int] | None:
        if image == len(options):
            return [] if crop == len(first) else None
        if crop >= len(first) or not _same(first[crop].to(starts[image]), starts[image]):
            return None
        for count in options[image]:
            rest = solve(image + 1, crop + count)
            if rest is not None:
                return [count, *rest]
        return None

    return solve(0, 0)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two vectors are equal, NaN being equal to itself: a broken picture is still its own."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _pieces(where: Tensor, pooled: Any, join: bool) -> list[Tensor]:
    """Split visual positions [V, 2] into one [N, 2] per image."""
    breaks = (where.diff(dim=0) != torch.tensor([0, 1])).any(dim=1).nonzero().flatten() + 1
    runs = list(where.tensor_split(breaks))
    if pooled is None or join:
        return runs
    lengths = [features.shape[:-1].numel() for features in pooled]  # LLaVA-NeXT-Video's have a frame axis
    if sum(lengths) != len(where):
        raise ValueError(_MISMATCH)
    return list(where.split(lengths))


def numbered(ids: Tensor | None, visual: Tensor, marks: FrameMarks) -> Tensor | None:
    """LongTensor [B, L]: k at visual tokens behind the words that announce frame k of a video, 0 elsewhere."""
    if ids is None:
        return None
    ids, frames = ids.cpu(), torch.zeros(visual.shape, dtype=torch.long)
    where = visual.cpu().nonzero()
    last = (-1, 0)  # row and number of the run before
    for run in _pieces(where, None, True) if len(where) else []:
        row, start = run[0].tolist()
        following = last[1] + 1 if last[0] == row else 1
        words = {frame: marks(frame) for frame in (1, following)}
        number = max((k for k, w in words.items() if ids[row, max(0, start - len(w)) : start].tolist() == w), default=0)
        frames[row, run[:, 1]] = number
        last = (row, number)
    return frames


def _videos(runs: list[Tensor], frames: Tensor) -> tuple[list[Tensor], list[int], list[str]]:
    """Join runs that are frames 1, 2, ... of a video: pieces [N, 2], how many runs each has, and what each is."""
    pieces: list[list[Tensor]] = []
    modalities: list[str] = []
    last = (-1, 0)  # row and frame number of the run before
    for run in runs:
        row, start = run[0].tolist()
        frame = int(frames[row, start])
        if frame > 1 and last == (row, frame - 1):
            pieces[-1].append(run)
        else:
            pieces.append([run])
            modalities.append("video" if frame else "image")
        last = (row, frame)
    return [torch.cat(own) for own in pieces], [len(own) for own in pieces], modalities


def _images(rows: list[int], expansion: int) -> list[int] | None:
    """Number the images of spans in `rows` (ascending) if each `expansion` rows repeat one prompt; None if not so."""
    numbers: list[int] = []
    by_row: dict[int, list[int]] = {}
    fresh = 0
    for row in rows:
        own, original = by_row.setdefault(row, []), by_row.get(row - row % expansion, [])
        if row % expansion == 0:
            own.append(fresh)
            fresh += 1
        elif len(own) < len(original):
            own.append(original[len(own)])
        else:
            return None
        numbers.append(own[-1])
    return numbers
