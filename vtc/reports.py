"""Report: what a wrapped model did in its last forward or generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtc.layout import Box, Tile, rectangles
from vtc.selection import Selection


class CropShare(NamedTuple):
    """What one crop of an any-resolution picture keeps.

    Attributes:
        number: of the crop. role: "thumbnail" or "crop". box: the part of the picture it shows; None if unknown.
        tokens_in, tokens_out: its tokens, and those that are left.
    """

    number: int
    role: str
    box: Box | None
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, eq=False)
class ReportSpan:
    """One image or video.

    Attributes:
        row: batch row. modality: "image" or "video". grid: (t, h, w) of its finest tile.
        kept: LongTensor [M], anchors: indices into this span's own tokens, in the order the language model reads them.
        source: LongTensor [N], the output (index into `kept`) that absorbs each token, -1 = dropped.
        tiles: blocks of tokens. boxes: FloatTensor [N, 4], the part of the picture under each token.
        steps: (layer, kept, source) after each shortening, in order; the last one's are `kept` and `source`.
        evicted: by layer, the tokens that its KV cache lost at the end of the prefill.
        held: by layer, where KV heads keep tokens of their own or rows have taken others in: one Selection of the
            span's tokens for each KV head, or a single one for all of them.
        whole: where the picture was made smaller before the vision tower, the tokens that it has as it is; everything
            else is about the small one.
        crop: LongTensor [N], the crop that each token comes from, -1 for separators.
    """

    row: int
    modality: str
    grid: tuple[int, int, int]
    kept: Tensor
    source: Tensor
    tiles: tuple[Tile, ...]
    boxes: Tensor
    steps: tuple[tuple[int, Tensor, Tensor], ...] = ()
    evicted: Mapping[int, Tensor] = field(default_factory=dict)
    held: Mapping[int, tuple[Selection, ...]] = field(default_factory=dict)
    whole: int | None = None
    crop: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @property
    def crops(self) -> tuple[CropShare, ...]:
        """What each crop of an any-resolution picture keeps, the thumbnail first; () of any other, and of videos."""
        if len(self.crop) != self.source.numel() or self.grid[0] > 1 or int(self.crop.max()) < 1:
            return ()
        left = torch.zeros(self.source.numel(), dtype=torch.long).index_fill_(0, self.kept.cpu(), 1)
        shares = [
            CropShare(
                one.number,
                "thumbnail" if one.tile.role == "thumbnail" else "crop",
                one.box,
                one.places.numel(),
                int(left[one.places].sum()),
            )
            for one in rectangles(self.tiles, self.crop)
        ]
        return tuple(sorted(shares, key=lambda share: (share.role != "thumbnail", share.number)))

    @property
    def tokens_in(self) -> int:
        return self.source.numel() if self.whole is None else self.whole

    @property
    def tokens_out(self) -> int:
        return self.kept.numel()

    def at(self, layer: int) -> ReportSpan:
        """The span as decoder layer `layer` holds it; see `Report.at`."""
        everything = torch.arange(self.source.numel())
        kept, source = next(((k, s) for first, k, s in reversed(self.steps) if first <= layer), (everything,) * 2)
        lost = self.evicted.get(layer)
        if lost is not None:
            stays = ~torch.isin(kept, lost)
            rank = torch.where(stays, stays.cumsum(0) - 1, -1)  # outputs by their new number
            kept, source = kept[stays], torch.where(source >= 0, rank[source.clamp(min=0)], -1)
        return replace(self, kept=kept, source=source, steps=(), evicted={})


@dataclass(frozen=True)
class StageReport:
    """One method at work: where, what came in and out, and how long listening, choosing and gathering took.

    `layer` is None before the language model, and its number of layers where the KV cache is compressed after it;
    tokens are then those a layer holds on average. `flops` are those of the method's own learned module, 0 = it has
    none; what choosing costs besides is in `ms`. `place` says where it acted, if neither before the language model nor
    at one of its layers: "encoder", between the blocks of the vision tower.
    """

    name: str
    layer: int | None
    tokens_in: int
    tokens_out: int
    ms: float
    flops: int = 0
    place: str = ""


@dataclass(frozen=True)
class RowReport:
    """One batch row: visual tokens, and the cost model's account of its prefill, (uncompressed, compressed).

    `tokens_average` is the mean over the decoder layers. The sums over the rows are those of the `Report`.
    """

    tokens_in: int
    tokens_out: int
    tokens_average: float
    flops: tuple[int, int]
    kv_bytes: tuple[int, int]


@dataclass(frozen=True)
class TowerReport:
    """The vision tower's blocks, of all pictures of a run.

    Attributes:
        pictures: that went through it (crops, frames); 0 = it did not run. tokens: their patches.
        tokens_by_block: those left behind each block; what follows the last one is handed all of them again.
        flops_by_block: (uncompressed, compressed) FLOPs of each block; embedding, last norm and head are left out.
    """

    pictures: int
    tokens: int
    tokens_by_block: tuple[int, ...]
    flops_by_block: tuple[tuple[int, int], ...]

    def then(self, later: TowerReport) -> TowerReport:
        """Of two stages, `later` acting on what this one has left: from the uncompressed tower to what `later` says."""
        return replace(
            self,
            tokens_by_block=later.tokens_by_block,
            flops_by_block=tuple(_firsts(self.flops_by_block, later.flops_by_block)),
        )

    @property
    def flops(self) -> tuple[int, int]:
        """(uncompressed, compressed) FLOPs of the blocks."""
        return sum(full for full, _ in self.flops_by_block), sum(kept for _, kept in self.flops_by_block)


@dataclass(frozen=True, eq=False)
class Report:
    """What happened: spans in reading order, stages in order of execution, and the cost model's account.

    Attributes:
        tokens_by_layer: visual tokens that each decoder layer sees, over all rows; those of a memory beside the row,
            which some layers attend to, stand for every layer.
        flops_by_layer: (uncompressed, compressed) FLOPs of each decoder layer's prefill, over all rows.
        kv_bytes_by_layer: (uncompressed, compressed) bytes of each layer's KV cache, padding left out.
        head_flops: FLOPs of one row of logits per row.
        rows: the same account for each batch row.
        tower: the vision tower's account, where something was done inside of it; None elsewhere.
        notes: sentences about anything a reader should know, such as a signal that stood in for another.
    """

    spans: list[ReportSpan] = field(default_factory=list)
    stages: list[StageReport] = field(default_factory=list)
    tokens_by_layer: list[int] = field(default_factory=list)
    flops_by_layer: list[tuple[int, int]] = field(default_factory=list)
    kv_bytes_by_layer: list[tuple[int, int]] = field(default_factory=list)
    head_flops: int = 0
    rows: list[RowReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tower: TowerReport | None = None

    @property
    def tokens_in(self) -> int:
        """Visual tokens of all pictures and videos before anything was dropped."""
        return sum(span.tokens_in for span in self.spans)

    @property
    def tokens_out(self) -> int:
        """Visual tokens that are left in the end."""
        return sum(span.tokens_out for span in self.spans)

    @property
    def tokens_average(self) -> float:
        """Mean over decoder layers of the visual tokens they see: the unit of papers that drop tokens inside."""
        return sum(self.tokens_by_layer) / max(1, len(self.tokens_by_layer))

    @property
    def flops(self) -> tuple[int, int]:
        """(uncompressed, compressed) FLOPs of the language model's prefill, over all rows."""
        full, kept = zip(*self.flops_by_layer, strict=True) if self.flops_by_layer else ((), ())
        return sum(full) + self.head_flops, sum(kept) + self.head_flops

    @property
    def module_flops(self) -> int:
        """FLOPs of the methods' own learned modules, which `flops` leaves out."""
        return sum(stage.flops for stage in self.stages)

    @property
    def kv_bytes(self) -> tuple[int, int]:
        """(uncompressed, compressed) bytes of the KV cache after the prefill, over all rows, padding left out."""
        full, kept = zip(*self.kv_bytes_by_layer, strict=True) if self.kv_bytes_by_layer else ((), ())
        return sum(full), sum(kept)

    def at(self, layer: int) -> list[ReportSpan]:
        """The spans as decoder layer `layer` holds them when the prefill is over: without what was dropped before the
        language model or on the way to this layer, and without what the layer's own KV cache lost.

        Raises:
            IndexError: the language model has no such layer.
        """
        if not 0 <= layer < len(self.tokens_by_layer):
            raise IndexError(f"layer {layer} is outside the model's {len(self.tokens_by_layer)} decoder layers.")
        return [span.at(layer) for span in self.spans]

    def made_smaller(self, whole: Report, notes: Sequence[str] = ()) -> Report:
        """This report, of pictures that were made smaller, beside the one of the same pictures as they are.

        What came in, and what it would have cost, is then what `whole` says; both are of the same prompts.
        """
        return replace(
            self,
            spans=[replace(s, whole=w.tokens_in) for s, w in zip(self.spans, whole.spans, strict=True)],
            flops_by_layer=_firsts(whole.flops_by_layer, self.flops_by_layer),
            kv_bytes_by_layer=_firsts(whole.kv_bytes_by_layer, self.kv_bytes_by_layer),
            rows=[
                replace(
                    own,
                    tokens_in=full.tokens_in,
                    flops=(full.flops[0], own.flops[1]),
                    kv_bytes=(full.kv_bytes[0], own.kv_bytes[1]),
                )
                for own, full in zip(self.rows, whole.rows, strict=True)
            ],
            notes=[*notes, *self.notes],
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures' geometry, as JSON types."""
        return {
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "tokens_average": round(self.tokens_average, 2),
            "tokens_by_layer": list(self.tokens_by_layer),
            "flops": {"full": self.flops[0], "compressed": self.flops[1]},
            "module_flops": self.module_flops,
            "kv_bytes": {"full": self.kv_bytes[0], "compressed": self.kv_bytes[1]},
            "tower": self.tower
            and {
                "pictures": self.tower.pictures,
                "tokens": self.tower.tokens,
                "tokens_by_block": list(self.tower.tokens_by_block),
                "flops": {"full": self.tower.flops[0], "compressed": self.tower.flops[1]},
            },
            "flops_by_layer": [{"full": full, "compressed": kept} for full, kept in self.flops_by_layer],
            "kv_bytes_by_layer": [{"full": full, "compressed": kept} for full, kept in self.kv_bytes_by_layer],
            "stages": [vars(stage) | {"ms": round(stage.ms, 4)} for stage in self.stages],
            "spans": [
                {
                    "row": span.row,
                    "modality": span.modality,
                    "grid": list(span.grid),
                    "tokens_in": span.tokens_in,
                    "tokens_out": span.tokens_out,
                    "kept": span.kept.tolist(),
                    "source": span.source.tolist(),
                    "crops": [
                        {"role": c.role, "tokens_in": c.tokens_in, "tokens_out": c.tokens_out} for c in span.crops
                    ],
                }
                for span in self.spans
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        console = Console(file=StringIO(), width=100)
        if not self.spans:
            return "vtc: the last forward saw no visual tokens." + "".join(f"\nnote: {note}" for note in self.notes)
        stages = Table(title=f"visual tokens {self.tokens_in} → {self.tokens_out}", title_justify="left")
        for column in ("stage", "before layer", "tokens in", "tokens out", "ms"):
            stages.add_column(column, justify="left" if column == "stage" else "right")
        for s in self.stages:
            where = str(s.layer)
            if s.layer in (None, len(self.tokens_by_layer)):
                where = s.place or "input" if s.layer is None else "cache"
            stages.add_row(s.name, where, str(s.tokens_in), str(s.tokens_out), f"{s.ms:.2f}")
        console.print(stages)
        spans = Table()
        for column in ("row", "modality", "grid t×h×w", "tokens in", "tokens out", "kept"):
            spans.add_column(column, justify="left" if column == "modality" else "right")
        for span in self.spans[:20]:
            share = f"{100 * span.tokens_out / span.tokens_in:.1f} %"
            grid = "×".join(map(str, span.grid))
            spans.add_row(str(span.row), span.modality, grid, str(span.tokens_in), str(span.tokens_out), share)
        console.print(spans)
        if len(self.spans) > 20:
            console.print(f"… and {len(self.spans) - 20} more")
        for number, span in enumerate(self.spans[:20], 1):
            if span.crops:
                console.print(_shares(span, number if len(self.spans) > 1 else 0))
        if len(set(self.tokens_by_layer)) > 1:
            console.print(
                f"visual tokens  {self.tokens_average:.1f} on average over {len(self.tokens_by_layer)} layers"
            )
        if self.tower is not None:
            flops = self.tower.flops
            console.print(f"tower FLOPs    {_si(flops[0])}  →  {_si(flops[1])}   ({_times(flops)})")
        if not self.flops_by_layer:  # a tower alone
            for note in self.notes:
                console.print(f"note: {note}")
            assert isinstance(console.file, StringIO)
            return console.file.getvalue().rstrip()
        console.print(f"prefill FLOPs  {_si(self.flops[0])}  →  {_si(self.flops[1])}   ({_times(self.flops)})")
        if self.module_flops:
            console.print(f"module FLOPs   {_si(self.module_flops)}  (the method's own, besides)")
        console.print(f"KV cache       {_si(self.kv_bytes[0])}B →  {_si(self.kv_bytes[1])}B  ({_times(self.kv_bytes)})")
        for note in self.notes:
            console.print(f"note: {note}")
        assert isinstance(console.file, StringIO)
        return console.file.getvalue().rstrip()


def _firsts(whole: Sequence[tuple[int, int]], own: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first numbers of `whole` beside the second ones of `own`."""
    return [(full, kept) for (full, _), (_, kept) in zip(whole, own, strict=True)]


def _shares(span: ReportSpan, number: int) -> str:
    """What the crops of picture `number` keep, in a line; 0 = the only one."""
    first = "".join(f"thumbnail {crop.tokens_out}, " for crop in span.crops if crop.role == "thumbnail")
    rest = " ".join(str(crop.tokens_out) for crop in span.crops if crop.role == "crop")
    return f"kept by crop   {f'picture {number}: ' if number else ''}{first}crops {rest}"


def _si(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} P"


def _times(pair: tuple[int, int]) -> str:
    return f"{pair[0] / pair[1]:.2f}× less" if pair[1] else "none"


class Elapsed(NamedTuple):
    """A time that has been taken already, where a `Stopwatch` is read."""

    ms: float


class Stopwatch:
    """Elapsed time on the device the work runs on: CUDA events where there are any, without waiting for them.

    They are recorded on that device's own stream, whichever device is the current one.
    """

    def __init__(self, device: torch.device) -> None:
        import time

        self._clock = time.perf_counter
        self._device = device if device.type == "cuda" else None
        if self._device is not None:
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record(torch.cuda.current_stream(self._device))
        self._start = self._clock()
        self._end = self._start

    def stop(self) -> Stopwatch:
        if self._device is not None:
            self._events[1].record(torch.cuda.current_stream(self._device))
        self._end = self._clock()
        return self

    @property
    def ms(self) -> float:
        if self._device is not None:
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1])
        return 1000 * (self._end - self._start)
