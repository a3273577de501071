"""Find the visual spans of a batch: which tokens belong to which image or video, and to which run of the tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtc.engine.plan import Places
from vtc.layout import VisualLayout, VisualSpan
from vtc.models.family import Adapter, FrameMarks, ImageLayout, Known, TowerCall
from vtc.transfer import download_all, upload

_CHUNKS = "generate's prefill_chunk_size is not supported on a wrapped model"
MISMATCH = (
    "the visual tokens of the prompt are not those of the images or videos that were encoded: pass whole prompts with "
    f"the features of their own images, in order ({_CHUNKS})."
)


class Seen(NamedTuple):
    """What is known of the images, or of the videos, of one batch.

    Attributes:
        modality: "image" or "video".
        visual: BoolTensor [B, L] in main memory, True at their tokens.
        pooled: the encoder's features, one [N, D] per image (or tile) or video, in reading order; None if unknown, then
            every unbroken run of their tokens is one of them.
        grid_thw: [images, 3] patch grids where the family has them.
        call: the tower's run, if known; its signals are addressed by each span's `patch`.
        frames: LongTensor [B, L] in main memory, 1, 2, ... at tokens of a video's frames, -1, -2, ... at those of parts
            of a frame, which follow it, 0 at others, for families that write videos as images; None = there are none.
    """

    modality: str
    visual: Tensor
    pooled: Any = None
    grid_thw: Tensor | None = None
    call: TowerCall | None = None
    frames: Tensor | None = None


class Found(NamedTuple):
    """The spans of a batch, and their tokens one after another, on the device.

    Attributes:
        places: where they lie. features: [V, D], the tokens themselves.
    """

    layout: VisualLayout
    places: Places
    features: Tensor

    def numbers(self) -> list[Tensor]:
        """Per span, LongTensor [N]: 0, 1, ..., N - 1."""
        here = torch.arange(max(self.places.sizes), device=self.features.device)
        return [here[:n] for n in self.places.sizes]


@dataclass
class _Piece:
    """The tokens of one image or video in one row: all of main memory, but for `features`."""

    row: int
    index: Tensor  # [N]
    modality: str
    runs: int  # unbroken runs of tokens that it has
    frames: int | None = None  # see `Known`
    features: Tensor = field(default_factory=lambda: torch.empty(0))  # [N, D]


def find_layout(adapter: Adapter, model: nn.Module, embeds: Tensor, seen: Sequence[Seen]) -> Found | None:
    """The layout of one batch, from the language model's input `embeds` [B, L, D] with features in place; None if
    there is nothing visual in it."""
    rows, length = embeds.shape[:2]
    pieces = [_placed(one, adapter.joins(one.modality)) for one in seen]
    order = sorted((piece for own in pieces for piece in own), key=lambda piece: (piece.row, int(piece.index[0])))
    if not order:
        return None
    sizes = [len(piece.index) for piece in order]
    places = torch.stack([
        torch.tensor([piece.row for piece in order]).repeat_interleave(torch.tensor(sizes)),
        torch.cat([piece.index for piece in order]),
    ])  # fmt: skip
    at = upload(places, embeds.device)
    features = embeds[at[0], at[1]]
    for piece, own in zip(order, features.split(sizes), strict=True):
        piece.features = own
    spans: dict[int, VisualSpan] = {}
    expansion = 1
    for one, own in zip(seen, pieces, strict=True):
        if own:
            found, repeated = _spans(adapter, model, own, one)
            spans |= {id(piece): span for piece, span in zip(own, found, strict=True)}
            expansion = max(expansion, repeated)
    layout = VisualLayout(rows, length, tuple(spans[id(piece)] for piece in order), expansion)
    return Found(layout, Places(tuple(piece.row for piece in order), tuple(sizes), at), features)


def _placed(seen: Seen, join: bool) -> list[_Piece]:
    """The images, or videos, of one modality."""
    where = seen.visual.nonzero()  # [V, 2], reading order
    if not len(where):
        return []
    pieces = pieces_of(where, seen.pooled, join)
    videos = [Video([piece], seen.modality) for piece in pieces]
    if seen.frames is not None:
        videos = videos_of(pieces, seen.frames)
    found = []
    for video in videos:
        piece = torch.cat(video.runs)
        row = int(piece[0, 0])
        if int(piece[-1, 0]) != row:
            raise ValueError(MISMATCH)
        found.append(_Piece(row, piece[:, 1], video.modality, len(video.runs), video.frames))
    return found


def _spans(adapter: Adapter, model: nn.Module, pieces: list[_Piece], seen: Seen) -> tuple[list[VisualSpan], int]:
    """Spans of one modality, and how many rows in a row share one prompt."""
    images, layouts, expansion = _arrange(adapter, model, pieces, seen)
    starts, entries = [0], [0]  # of each image: its first tower token, and its first entry in what was encoded
    for image, layout in enumerate(layouts):
        starts.append(starts[-1] + layout.tower_tokens)
        entries.append(entries[-1] + pieces[images.index(image)].runs)
    call = seen.call
    spans = [
        VisualSpan(
            row=piece.row,
            index=piece.index,
            grid=layout.grid,
            tiles=layout.tiles,
            modality=piece.modality,
            picture=image if call is None or call.pictures is None else call.pictures[entries[image]],
            crop=layout.crop,
            patch=torch.where(layout.patch >= 0, layout.patch + starts[image], -1),
        )
        for piece, image in zip(pieces, images, strict=True)
        for layout in [layouts[image]]
    ]
    return spans, expansion


class Looks(NamedTuple):
    """What has to be read off the features themselves, once for all images: the device is waited for.

    Attributes:
        separators: per image BoolTensor [N], where `Adapter.separator` is; None = the family has none.
        begins: BoolTensor [images, crops], whether the image's first token is that of the crop; None = not known.
    """

    separators: list[Tensor] | None
    begins: Tensor | None

    @classmethod
    def of(cls, adapter: Adapter, model: nn.Module, features: list[Tensor], call: TowerCall | None) -> Looks:
        separator, separators, begins = adapter.separator(model), None, None
        if separator is not None:
            separators = (torch.cat(features) == separator.to(features[0])).all(dim=-1)  # [sum N]
        if call is not None and call.first is not None:
            first = call.first.to(features[0])[None]  # [1, crops, D]
            starts = torch.stack([x[0] for x in features])[:, None]  # [images, 1, D]
            begins = ((first == starts) | (first.isnan() & starts.isnan())).all(dim=-1)  # a broken picture is its own
        read = iter(download_all([x for x in (separators, begins) if x is not None]))
        sizes = [len(x) for x in features]
        own = None if separators is None else list(next(read).split(sizes))
        return cls(own, None if begins is None else next(read))

    def take(self, images: Sequence[int]) -> Looks:
        """The same of some of the images."""
        own = None if self.separators is None else [self.separators[i] for i in images]
        return Looks(own, None if self.begins is None else self.begins[list(images)])


def layouts_of(
    adapter: Adapter,
    model: nn.Module,
    features: list[Tensor],
    looks: Looks,
    grid_thw: Tensor | None,
    call: TowerCall | None,
    modalities: Sequence[str],
    frames: Sequence[int | None] = (),
    indices: Sequence[Tensor] = (),
) -> list[ImageLayout] | None:
    """Layouts of the images or videos of one run of the tower, from their tokens; None if they do not fit that run.

    Args:
        frames: of each, see `Known`; () = not known of any.
        indices: LongTensors [N], where in a row the tokens of each stand, if that is known.
    """
    grids: list[Any] = [None] * len(features)
    if grid_thw is not None and modalities:
        grids = adapter.picture_grids(model, grid_thw.tolist(), [len(x) for x in features], modalities[0])
    if len(grids) != len(features):
        return None
    separators: Sequence[Tensor | None] = looks.separators or [None] * len(features)
    frames = frames or [None] * len(features)
    known = [
        Known(grid, None, kind, own, count)
        for grid, kind, own, count in zip(grids, modalities, separators, frames, strict=True)
    ]
    if indices:
        known = [one._replace(runs=runs_of(index)) for one, index in zip(known, indices, strict=True)]
    if looks.begins is not None and set(modalities) == {"image"}:
        options = [adapter.crop_counts(model, x, facts) for x, facts in zip(features, known, strict=True)]
        crops = _crop_counts(options, looks.begins.tolist())
        if crops is None:
            return None
        known = [facts._replace(crops=count) for facts, count in zip(known, crops, strict=True)]
    layouts = [adapter.layout(model, x, facts) for x, facts in zip(features, known, strict=True)]
    fits = call is None or not adapter.counts_crops or sum(layout.crops for layout in layouts) == call.crops
    return layouts if fits else None


def _arrange(
    adapter: Adapter, model: nn.Module, pieces: list[_Piece], seen: Seen
) -> tuple[list[int], list[ImageLayout], int]:
    """(image of each span, layout of each image, how many rows in a row share one prompt).

    Beam search and several return sequences repeat every row; the tower saw the images once.
    """
    rows, looks = [piece.row for piece in pieces], Looks.of(adapter, model, [x.features for x in pieces], seen.call)
    for expansion in range(1, max(rows) + 2):
        images = images_of(rows, expansion)
        if images is None:
            continue
        first = [images.index(image) for image in range(max(images) + 1)]
        own = [pieces[i] for i in first]
        try:
            layouts = layouts_of(
                adapter,
                model,
                [piece.features for piece in own],
                looks.take(first),
                seen.grid_thw,
                seen.call,
                [piece.modality for piece in own],
                [piece.frames for piece in own],
                [piece.index for piece in own],
            )
        except ValueError as error:
            if seen.call is not None:
                raise
            raise ValueError(f"{error} ({_CHUNKS})") from error  # features of unknown origin: a chunk, maybe
        if layouts is not None:
            return images, layouts, expansion
    raise ValueError(MISMATCH)


def _crop_counts(options: list[list[int]], begins: list[list[bool]]) -> list[int] | None:
    """Crops of each image: one of its `options`, so that each image begins with the crop that it begins with.

    Args:
        begins: [images][crops], see `Looks`.
    """

    def solve(image: int, crop: int) -> list[int] | None:
        if image == len(options):
            return [] if crop == len(begins[0]) else None
        if crop >= len(begins[0]) or not begins[image][crop]:
            return None
        for count in options[image]:
            rest = solve(image + 1, crop + count)
            if rest is not None:
                return [count, *rest]
        return None

    return solve(0, 0)


def pieces_of(where: Tensor, pooled: Any, join: bool = False) -> list[Tensor]:
    """Split visual positions [V, 2] into one [N, 2] per image."""
    breaks = (where.diff(dim=0) != torch.tensor([0, 1])).any(dim=1).nonzero().flatten() + 1
    runs = list(where.tensor_split(breaks))
    if pooled is None or join:
        return runs
    lengths = [features.shape[:-1].numel() for features in pooled]  # LLaVA-NeXT-Video's have a frame axis
    if sum(lengths) != len(where):
        raise ValueError(MISMATCH)
    return list(where.split(lengths))


def runs_of(index: Tensor) -> tuple[int, ...]:
    """Lengths of the unbroken runs of places [N] in a row."""
    breaks = (index.diff() != 1).nonzero()[:, 0] + 1
    return tuple(map(len, index.tensor_split(breaks)))


def numbered(ids: Tensor | None, visual: Tensor, marks: FrameMarks) -> Tensor | None:
    """LongTensor [B, L]: k at visual tokens behind the words that announce frame k of a video, 0 elsewhere."""
    if ids is None:
        return None
    frames, where = torch.zeros(visual.shape, dtype=torch.long), visual.nonzero()
    last = (-1, 0)  # row and number of the run before
    for run in pieces_of(where, None, True) if len(where) else []:
        row, start = run[0].tolist()
        following = last[1] + 1 if last[0] == row else 1
        words = {frame: marks(frame) for frame in (1, following)}
        number = max((k for k, w in words.items() if ids[row, max(0, start - len(w)) : start].tolist() == w), default=0)
        frames[row, run[:, 1]] = number
        last = (row, number)
    return frames


@dataclass
class Video:
    """Runs of tokens, LongTensors [N, 2], that are a picture, or what a video is written as.

    Attributes:
        frames: of how many frames they are; None = of a picture, or not known.
    """

    runs: list[Tensor]
    modality: str
    frames: int | None = None


def videos_of(runs: list[Tensor], frames: Tensor) -> list[Video]:
    """Join runs that are frames 1, 2, ... of a video, and parts of them, as `frames` says (`Seen`)."""
    found: list[Video] = []
    last = (-1, 0)  # row and frame number of the run before
    for run in runs:
        row, start = run[0].tolist()
        frame = int(frames[row, start])
        if frame < 0 and last == (row, -frame):
            found[-1].runs.append(run)
        elif frame > 1 and last == (row, frame - 1):
            found[-1].runs.append(run)
            found[-1].frames = frame
        else:
            found.append(Video([run], "video" if frame else "image", 1 if frame else None))
        last = (row, abs(frame))
    return found


def images_of(rows: list[int], expansion: int) -> list[int] | None:
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
