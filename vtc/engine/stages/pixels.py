"""Stage `pixels`: pictures are made smaller before the vision tower's first block.

Towers of packed patches take pictures of any size, so theirs are unpacked to pixels, resized and packed again. What the
tower makes of the small grid is spread over the places of the whole one, frame by frame the last ones, as the model
counts its placeholders. Before the language model the others leave as if they had never been written, and positions
become those of a prompt for the small picture. Later stages see that picture and nothing else.

The tower may run before the forward that reads its features (`generate` does that): what was done to its input travels
with its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.engine import context
from vtc.engine.context import uncompiled
from vtc.engine.find_layout import MISMATCH, Seen, images_of, pieces_of
from vtc.engine.forward import Forward
from vtc.engine.plan import Places, Plan
from vtc.engine.stage import Facts, Run, Stage
from vtc.engine.tower_call import PIXEL_ITEM
from vtc.engine.versions import length_of
from vtc.methods.base.pixels import PixelMethod
from vtc.models.family import GRIDS
from vtc.models.tower import Packing, tower_for
from vtc.reports import Stopwatch
from vtc.selection import Selection
from vtc.transfer import upload

_PREPARED = ("position_ids", "cu_seqlens", "cu_window_seqlens", "window_index", "max_seqlen", "max_window_seqlen")


@dataclass(frozen=True, eq=False)
class Piece:
    """One picture or video in one row of a batch, all in main memory.

    Attributes:
        index: LongTensor [N], where its placeholders are. kept: LongTensor [M], which of these stand for the small one.
        number: of the picture or video among those of its modality, as the tower saw them.
    """

    row: int
    modality: str
    number: int
    index: Tensor
    kept: Tensor


@dataclass(frozen=True, eq=False)
class Resized:
    """What was done to a forward's pictures: pieces in reading order, row by row; by modality (grids as the processor
    made them, small ones), each LongTensor [pictures, 3] of patches in main memory."""

    pieces: list[Piece]
    grids: dict[str, tuple[Tensor, Tensor]]


class PixelRun(Run):
    def __init__(self, stage: Any, forward: Forward) -> None:
        super().__init__(stage, forward)
        self.resized: Resized | None = forward.early.get(stage) if self.flow.spans else None
        if self.resized is not None:  # before other stages begin, and count the prompt's words
            self.flow.left = _left(self.resized.pieces, self.flow.rows, self.flow.length)

    def enter(self, kwargs: dict[str, Any]) -> None:
        flow, forward = self.flow, self.forward
        if self.resized is None:
            return
        pieces = self.resized.pieces
        forward.trace.whole = [len(one.index) for one in pieces]
        embeds: Tensor = kwargs["inputs_embeds"]
        watch, after = Stopwatch(embeds.device), sum(len(one.kept) for one in pieces)
        if after < sum(forward.trace.whole):
            kept = [Selection.prune(upload(one.kept, embeds.device), len(one.index), True) for one in pieces]
            plan = Plan.of(flow.rows, flow.length, _places(pieces, embeds.device), kept)
            assert flow.left is not None
            positions, shift = self.stage.positions(forward, kwargs.get("position_ids"), flow.left, self.resized)
            kwargs["inputs_embeds"] = flow.leave_out(embeds, plan, positions, shift)
            if forward.companions is not None:
                forward.companions.shorten(plan, 0)
        titles = " + ".join(method.title for method in self.stage.methods)
        forward.trace.note_stage(titles, None, sum(forward.trace.whole), after, [watch.stop()])


class PixelStage(Stage):
    name, order, base, run = "pixels", 5, "PixelMethod", PixelRun
    uneven = False

    def __init__(self, facts: Facts, methods: Sequence[PixelMethod]) -> None:
        super().__init__(facts, methods)
        if tower_for(facts.family.tower(facts.model)).takes != "packed":
            name = getattr(facts.model.config, "model_type", "this model")
            raise ValueError(
                f"{self.methods[0].title} resizes patches that are packed as Qwen's are, and {name} takes pictures of "
                "a fixed size: make them smaller before the processor, with vtc.downsample(picture, processor, keep)."
            )

    def attach(self) -> Iterator[RemovableHandle]:
        tower = self.facts.family.tower(self.facts.model)
        yield tower.register_forward_pre_hook(self._before_tower, with_kwargs=True)
        yield tower.register_forward_hook(self._after_tower)
        yield tower.register_forward_hook(self._close, always_call=True)

    # -- around the tower --------------------------------------------------------------------------------------

    @uncompiled
    def _before_tower(self, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> Any:
        if not given:  # another thread's run, while this one attached the hook
            return None
        kwargs = dict(given[0])
        if found := [name for name in _PREPARED if kwargs.get(name) is not None]:
            raise ValueError(f"{found[0]}= was made for the whole picture, which is made smaller: leave it out.")
        named = "hidden_states" if "hidden_states" in kwargs else "pixel_values"
        pixels: Tensor = args[0] if args else kwargs.pop(named)
        grid: Tensor = args[1] if len(args) > 1 else kwargs["grid_thw"]
        packing = tower_for(module).packing(module)
        whole = grid.cpu()
        small = torch.tensor([self._smaller(thw, packing.merge) for thw in whole.tolist()], dtype=whole.dtype)
        context.push(self, {"whole": whole, "small": small})
        if bool((whole != small).any()):
            pixels, grid = repacked(pixels, whole.tolist(), small.tolist(), packing), upload(small, grid.device)
        return (pixels, *args[2:]), {**kwargs, "grid_thw": grid}

    def _smaller(self, thw: Sequence[int], merge: int) -> list[int]:
        """The grid of patches that a picture of such a grid gets."""
        t, h, w = thw[0], thw[1] // merge, thw[2] // merge
        for method in self.methods:
            t, h, w = method.smaller((t, h, w))
        return [t, h * merge, w * merge]

    @uncompiled
    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        grids: dict[str, Tensor] | None = context.top(self)
        if grids is None or not hasattr(output, "pooler_output"):
            return
        merge = tower_for(module).packing(module).merge
        kept = [kept_of(w, s, merge) for w, s in zip(grids["whole"].tolist(), grids["small"].tolist(), strict=True)]
        totals = [math.prod(thw) // merge**2 for thw in grids["whole"].tolist()]
        starts = torch.tensor([0, *totals]).cumsum(0)[:-1]
        at = upload(torch.cat([own + start for own, start in zip(kept, starts, strict=True)]), output[0].device)

        def spread(x: Tensor) -> Tensor:
            return x.new_zeros(sum(totals), x.shape[-1]).index_copy(0, at.to(x.device), x)

        output["pooler_output"] = spread(output.pooler_output)
        if getattr(output, "deepstack_features", None) is not None:
            output["deepstack_features"] = [spread(x) for x in output.deepstack_features]
        output[PIXEL_ITEM] = grids

    @uncompiled
    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        context.pop(self)

    # -- before the language model -----------------------------------------------------------------------------

    def check(self, forward: Forward) -> None:
        if not any(bool(prompt.visual.any()) for prompt in forward.prompts):
            return
        title = self.methods[0].title
        if length_of(forward.cache):
            raise ValueError(f"{title} takes pictures in the first turn only: begin a new conversation for this one.")
        if forward.host.get("input_ids") is None:
            raise ValueError(f"{title} needs input_ids to give the prompt the positions of a smaller picture.")

    def seen(self, forward: Forward, seen: list[Seen], outputs: list[Any]) -> list[Seen]:
        """What the tower saw: small pictures, at the last placeholders of each frame."""
        tower = self.facts.family.tower(self.facts.model)
        merge = tower_for(tower).packing(tower).merge
        pieces: list[Piece] = []
        grids: dict[str, tuple[Tensor, Tensor]] = {}
        found = []
        for one, output in zip(seen, outputs, strict=True):
            if not bool(one.visual.any()):
                found.append(one)
                continue
            if output is None or PIXEL_ITEM not in output:
                raise ValueError(
                    f"{self.methods[0].title} acts before the vision tower, which has run already: hand in pixels, "
                    "not encoded features, or make pictures smaller before (vtc.downsample)."
                )
            whole, small = output[PIXEL_ITEM]["whole"], output[PIXEL_ITEM]["small"]
            own = pieces_of(one.visual.nonzero(), one.pooled)
            numbers = images_of([int(piece[0, 0]) for piece in own], max(1, len(own) // len(whole)))
            if numbers is None or max(numbers) != len(whole) - 1:
                raise ValueError(MISMATCH)
            visual, pooled = torch.zeros_like(one.visual), []
            for piece, number, features in zip(own, numbers, one.pooled, strict=True):
                kept = kept_of(whole[number].tolist(), small[number].tolist(), merge)
                row, index = int(piece[0, 0]), piece[:, 1]
                pieces.append(Piece(row, one.modality, number, index, kept))
                visual[row, index[kept]] = True
                pooled.append(features[: len(kept)])  # only their number counts
            grids[one.modality] = whole, small
            found.append(one._replace(visual=visual, pooled=pooled, grid_thw=small))
        if pieces:
            pieces.sort(key=lambda one: (one.row, int(one.index[0])))
            forward.early[self] = Resized(pieces, grids)
        return found

    def positions(
        self, forward: Forward, given: Tensor | None, left: Tensor, resized: Resized
    ) -> tuple[Tensor, Tensor]:
        """Positions of the whole prompt's tokens as if it were one for the small pictures.

        Args:
            given: those that the language model was handed, None = consecutive ones.
            left: BoolTensor [B, L] in main memory, placeholders that are left over.

        Returns:
            [3, B, L]; LongTensor [B], how far down what follows the prompt moves.
        """
        host, more = forward.host, forward.given
        types, ids = host.get("mm_token_type_ids"), host["input_ids"]
        device = more["input_ids"].device if given is None else given.device
        told = isinstance(more.get("position_ids"), Tensor)
        if types is None or not (told or any(more.get(GRIDS[modality]) is not None for modality in resized.grids)):
            gone = upload(left, device).cumsum(dim=1)  # the model counts visual tokens like words
            base = torch.arange(left.shape[1], device=device).expand(3, *left.shape) if given is None else given[-3:]
            return base - gone, gone[:, -1]
        types = torch.nn.functional.pad(types, (0, ids.shape[1] - types.shape[1]))
        real = host["attention_mask"].bool() if "attention_mask" in host else torch.ones_like(ids, dtype=torch.bool)
        orders = {m: [one.number for one in resized.pieces if one.modality == m] for m in resized.grids}
        whole, small = ({m: grids[i][orders[m]] for m, grids in resized.grids.items()} for i in (0, 1))
        seconds = self._seconds(forward, orders.get("video", []))
        before = self.facts.family.prompt_positions(self.facts.model, ids, types, real, whole, seconds)
        if told and bool((more["position_ids"][-3:].cpu() - before)[:, real].any()):
            raise ValueError(
                f"{self.methods[0].title} numbers a prompt anew as the model itself does, and position_ids are other "
                "than that: leave them out."
            )
        stays = real & ~left
        width = int(stays.sum(dim=1).max())
        order = stays.to(torch.uint8).argsort(dim=1, stable=True)[:, -width:]  # what stays, on the right
        there = stays.gather(1, order)
        after = self.facts.family.prompt_positions(
            self.facts.model, ids.gather(1, order), types.gather(1, order), there, small, seconds
        )
        order = order.expand(3, -1, -1)
        new = before.scatter(2, order, torch.where(there, after, before.gather(2, order)))
        ends = [torch.where(valid, own, -1).amax(dim=(0, 2)) for own, valid in ((before, real), (after, there))]
        return upload(new, device), upload(ends[0] - ends[1], device)

    def _seconds(self, forward: Forward, order: Sequence[int]) -> Tensor | None:
        """Seconds per time step of the videos `order`, where the processor told."""
        seconds = forward.given.get("second_per_grid_ts")
        if seconds is None or not order:
            return None
        seconds = torch.as_tensor(seconds).cpu()
        return seconds if len(seconds) == len(order) else seconds[list(order)]


def kept_of(whole: Sequence[int], small: Sequence[int], merge: int) -> Tensor:
    """LongTensor [M]: which of a picture's tokens stand for those of its small grid: the last ones of each frame.

    Example: two frames of 2 x 3 tokens each that become 1 x 2: tokens 4 and 5, and 10 and 11.
    """
    frame, own = (thw[1] * thw[2] // merge**2 for thw in (whole, small))
    return torch.arange(whole[0] * frame).view(whole[0], frame)[:, frame - own :].flatten()


def repacked(
    pixels: Tensor, whole: Sequence[Sequence[int]], small: Sequence[Sequence[int]], packing: Packing
) -> Tensor:
    """Packed patches [P, C * T * p * p] of pictures of grids `whole`, (t, h, w) in patches, resized to grids `small`.

    A patch holds T frames of p x p pixels, and merge x merge of them that become a token follow each other.
    """
    own = pixels.split([math.prod(thw) for thw in whole])
    return torch.cat([x if a == b else _resized(x, a, b, packing) for x, a, b in zip(own, whole, small, strict=True)])


def _resized(x: Tensor, whole: Sequence[int], small: Sequence[int], packing: Packing) -> Tensor:
    merge, frames, side = packing
    t, h, w = whole
    cells = x.view(t, h // merge, w // merge, merge, merge, -1, frames, side, side)
    picture = cells.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * frames, -1, h * side, w * side)
    size = small[1] * side, small[2] * side
    done = torch.nn.functional.interpolate(picture.float(), size=size, mode="bicubic", antialias=True).to(x.dtype)
    cells = done.view(t, frames, -1, small[1] // merge, merge, side, small[2] // merge, merge, side)
    return cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(small), -1)


def _places(pieces: Sequence[Piece], device: torch.device) -> Places:
    sizes = tuple(len(one.index) for one in pieces)
    rows = torch.tensor([one.row for one in pieces]).repeat_interleave(torch.tensor(sizes))
    at = torch.stack([rows, torch.cat([one.index for one in pieces])])
    return Places(tuple(one.row for one in pieces), sizes, upload(at, device))


def _left(pieces: Sequence[Piece], rows: int, length: int) -> Tensor:
    """BoolTensor [B, L] in main memory: placeholders that stand for nothing."""
    left = torch.zeros(rows, length, dtype=torch.bool)
    for one in pieces:
        left[one.row, one.index] = True
        left[one.row, one.index[one.kept]] = False
    return left
