"""Stage `pixels`: pictures are made smaller, or lose patches, before the vision tower's first block.

Towers of packed patches take pictures of any size, so theirs are unpacked to pixels, resized and packed again. What the
tower makes of the small grid is spread over the places of the whole one, frame by frame the last ones, as the model
counts its placeholders. TowerInput the language model the others leave as if they had never been written, and positions
become those of a prompt for the small picture. Later stages see that picture and nothing else.

Of what is left, methods that choose leave blocks out (`PatchMethod`): the tower is handed the patches of the others,
with the positions and the boundaries of frames and windows that these have in the whole grid. Towers of a fixed grid
embed all patches, and lose these before their first block. The output is spread over the whole grid again, as the model
counts it, and before the language model the places without patches leave, as the stage `input` drops tokens: every
other token keeps its position, and later stages see that some are gone.

The tower may run before the forward that reads its features (`generate` does that): what was done to its input travels
with its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.engine import context
from vtc.engine.context import uncompiled
from vtc.engine.crop_rows import patches_of, put_back, rows_of, take
from vtc.engine.find_layout import MISMATCH, Seen, images_of, pieces_of
from vtc.engine.forward import Forward
from vtc.engine.pixel_blocks import Chosen, choose_crops, choose_packed
from vtc.engine.plan import Plan
from vtc.engine.resized import Piece, Resized, kept_of, repacked, small_positions
from vtc.engine.stage import Facts, Run, Stage
from vtc.engine.tower_call import PIXEL_ITEM, note, noted
from vtc.engine.tower_input import TowerInput, tower_report
from vtc.engine.tower_patches import close_patches, open_patches
from vtc.engine.versions import length_of
from vtc.layout import VisualSpan
from vtc.methods.base.method import Method
from vtc.methods.base.patches import PatchMethod
from vtc.methods.base.pixels import PixelMethod
from vtc.models.tower import tower_for
from vtc.reports import Elapsed, Stopwatch
from vtc.selection import Selection
from vtc.transfer import upload

#: what a caller may have made of the grid for the tower
_PREPARED = (
    *("position_ids", "cu_seqlens", "cu_window_seqlens", "window_index", "max_seqlen", "max_window_seqlen"),
    *("interp_indices", "interp_weights"),
)


@dataclass(frozen=True, eq=False)
class Done:
    """What was done to a forward's pictures: the tower's runs by modality, and `resized` where a method resizes."""

    resized: Resized | None
    runs: dict[str, TowerInput]

    @property
    def chosen(self) -> list[Chosen]:
        return [run.chosen for run in self.runs.values() if run.chosen is not None]

    def of_span(self, span: VisualSpan) -> Tensor:
        """BoolTensor [methods, N]: its tokens that are left after each method; separators always are."""
        run = self.runs[span.modality] if len(self.runs) > 1 else next(iter(self.runs.values()))
        assert run.chosen is not None
        return run.chosen.kept[:, span.patch.clamp(min=0)] | (span.patch < 0)


class PixelRun(Run):
    def __init__(self, stage: Any, forward: Forward) -> None:
        super().__init__(stage, forward)
        self.done: Done | None = forward.early.get(stage) if self.flow.spans else None
        if self.done is not None and self.done.resized is not None:  # before other stages count the prompt's words
            self.flow.left = self.done.resized.left(self.flow.rows, self.flow.length)

    def enter(self, kwargs: dict[str, Any]) -> None:
        if self.done is None:
            return
        facts = self.stage.facts
        tower, fold = facts.family.tower(facts.model), facts.family.fold(facts.model)
        told = partial(tower_report, tower, tower_for(tower), fold, [*self.done.runs.values()])
        self.forward.trace.towers.append(told)
        if self.done.resized is not None:
            self._leave_out(self.done.resized, kwargs)
        if self.done.chosen:
            self._drop(self.done, kwargs)

    def _leave_out(self, resized: Resized, kwargs: dict[str, Any]) -> None:
        """What is left over of pictures that were made smaller."""
        flow, forward, pieces = self.flow, self.forward, resized.pieces
        forward.trace.whole = [len(one.index) for one in pieces]
        embeds: Tensor = kwargs["inputs_embeds"]
        title = " + ".join(method.title for method in self.stage.resizers)
        watch, (before, after) = Stopwatch(embeds.device), resized.sizes
        if after < before:
            kept = [Selection.prune(upload(one.kept, embeds.device), len(one.index), True) for one in pieces]
            plan = Plan.of(flow.rows, flow.length, resized.places(embeds.device), kept)
            given = kwargs.get("position_ids")
            assert flow.left is not None
            positions, shift = small_positions(self.stage.facts, title, forward, given, flow.left, resized)
            kwargs["inputs_embeds"] = flow.leave_out(embeds, plan, positions, shift)
            if forward.companions is not None:
                forward.companions.shorten(plan, 0)
        forward.trace.note_stage(title, None, before, after, [watch.stop()], place="pixels")

    def _drop(self, done: Done, kwargs: dict[str, Any]) -> None:
        """The places of blocks that the tower has not seen."""
        flow, forward = self.flow, self.forward
        embeds: Tensor = kwargs["inputs_embeds"]
        watch, left = Stopwatch(embeds.device), [done.of_span(span) for span in flow.spans]
        selections = [
            Selection.prune(upload(own[-1].nonzero()[:, 0], embeds.device), own.shape[1], ascending=True)
            for own in left
        ]
        forward.trace.steps.append((0, selections))
        if not all(bool(own[-1].all()) for own in left):
            kwargs["inputs_embeds"] = flow.shorten(embeds, selections, 0)
            plan = flow.part.plan
            if forward.companions is not None and plan is not None:
                forward.companions.shorten(plan, 0)
        before, spent = sum(own.shape[1] for own in left), [watch.stop()]
        for i, method in enumerate(self.stage.choosers):
            after = sum(int(own[i].sum()) for own in left)
            chosen = [Elapsed(one.ms[i]) for one in done.chosen]
            forward.trace.note_stage(method.title, None, before, after, [*chosen, *spent], place="pixels")
            before, spent = after, []


class PixelStage(Stage):
    name, order, base, run = "pixels", 5, "PixelMethod", PixelRun
    uneven = False

    def __init__(self, facts: Facts, methods: Sequence[PixelMethod]) -> None:
        super().__init__(facts, methods)
        self.choosers = [method for method in self.methods if isinstance(method, PatchMethod)]
        self.resizers = [method for method in self.methods if not isinstance(method, PatchMethod)]
        for one, two in pairwise(self.methods):
            if one in self.choosers and two in self.resizers:
                raise ValueError(
                    f"{two.title} resizes whole pictures, and {one.title} leaves holes in them: name {two.title} first."
                )
        tower = facts.family.tower(facts.model)
        self.packed = tower_for(tower).takes == "packed"
        if self.resizers and self.packed:
            self._check_packed(tower)
        tower_for(tower).check_cut(tower)
        if not self.packed:
            self._check_fixed()

    def _check_packed(self, tower: nn.Module) -> None:
        """Raise ValueError if pictures cannot be made smaller before a tower of packed patches."""
        try:
            tower_for(tower).check_cut(tower)
            right = self.facts.family.axes(self.facts.model) == 3
        except ValueError:
            right = False
        if not right:
            name = getattr(self.facts.model.config, "model_type", "this model")
            raise ValueError(
                f"{self.resizers[0].title} resizes patches, and numbers tokens, as Qwen's are, and those of {name} are "
                "not: make pictures smaller before the processor, with vtc.downsample(picture, processor, keep)."
            )

    def _check_fixed(self) -> None:
        """Raise ValueError if a method cannot work before a tower of a fixed grid."""
        family, name = self.facts.family, getattr(self.facts.model.config, "model_type", "this model")
        for method in self.resizers:
            raise ValueError(
                f"{method.title} resizes patches that are packed as Qwen's are, and {name} takes pictures of a fixed "
                "size: make them smaller before the processor, with vtc.downsample(picture, processor, keep)."
            )
        if self.choosers and tower_for(family.tower(self.facts.model)).takes == "row":
            raise ValueError(
                f"{self.choosers[0].title} leaves patches out before the vision tower, and that of {name} is given "
                "pictures of any size in one row; choose a method of the stage 'input'."
            )
        if self.choosers and tower_for(family.tower(self.facts.model)).patches_given:
            raise ValueError(
                f"{self.choosers[0].title} leaves patches out before the vision tower, and that of {name} is given "
                "pictures of any size, cut into patches and padded; choose a method of the stage 'input'."
            )
        for method in self.choosers:
            if family.queries:
                raise ValueError(
                    f"{method.title} leaves patches out, and the visual tokens of {name} are learned queries, of which "
                    "none is a patch; choose a method of the stage 'input'."
                )
            if "image" not in method.modality:
                raise ValueError(
                    f"{method.title} compares the frames of a video, and the vision tower of {name} is given them as "
                    "single pictures; evs does it behind the tower."
                )
            if "image" in family.mixes:
                raise ValueError(
                    f"{method.title} leaves patches out, and {name} makes its visual tokens of several patches each, "
                    "by resizing; choose a method of the stage 'input'."
                )
            if method.by_threshold and method.tau is not None:
                raise ValueError(
                    f"{method.title} by a threshold leaves differently much of each picture, and the vision tower of "
                    f"{name} takes equally much of all: give a budget, such as keep=0.5."
                )
            several = family.joins_pieces or family.crop_projector(self.facts.model) is not None
            if several and isinstance(method.keep, int):
                raise ValueError(
                    f"{method.title} chooses before it is known how many crops a picture of {name} has: give keep as a "
                    "share of each, such as keep=0.5."
                )

    def check_beside(self, others: Sequence[Method]) -> None:
        for other in others:
            if self.choosers and other.stage == "input" and "grid" in other.requires():
                raise ValueError(
                    f"{other.title} needs the whole grid, in which {self.choosers[0].title} leaves holes: use one of "
                    "them."
                )

    def attach(self) -> Iterator[RemovableHandle]:
        tower = self.facts.family.tower(self.facts.model)
        before, after = (
            (self._before_packed, self._after_packed) if self.packed else (self._before_crops, self._after_crops)
        )
        yield tower.register_forward_pre_hook(before, with_kwargs=True)
        yield tower.register_forward_hook(after)
        yield tower.register_forward_hook(self._close, always_call=True)
        if not self.packed:
            encoder = tower_for(tower).encoder(tower)
            yield encoder.register_forward_pre_hook(self._before_blocks, with_kwargs=True)

    # -- around a tower of packed patches ----------------------------------------------------------------------

    @uncompiled
    def _before_packed(self, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> Any:
        if not given:  # another thread's run, while this one attached the hook
            return None
        kwargs = dict(given[0])
        if found := [name for name in _PREPARED if kwargs.get(name) is not None]:
            raise ValueError(f"{found[0]}= was made for the whole picture, which is made smaller: leave it out.")
        named = "hidden_states" if "hidden_states" in kwargs else "pixel_values"
        pixels: Tensor = args[0] if args else kwargs.pop(named)
        grid: Tensor = args[1] if len(args) > 1 else kwargs["grid_thw"]
        facts, whole = tower_for(module), grid.cpu()
        packing = facts.packing(module)
        small = torch.tensor([self._smaller(thw, packing.merge) for thw in whole.tolist()], dtype=whole.dtype)
        if bool((whole != small).any()):
            pixels, grid = repacked(pixels, whole.tolist(), small.tolist(), packing), upload(small, grid.device)
        chosen = choose_packed(self.choosers, pixels, small.tolist(), packing, facts) if self.choosers else None
        context.push(self, TowerInput(whole, small, chosen))
        if chosen is not None and not bool(chosen.last.all()):
            kwargs |= {name: upload(x, pixels.device) for name, x in facts.cut_to(module, small, chosen.last).items()}
            there = chosen.last.repeat_interleave(packing.merge**2).nonzero()[:, 0]
            pixels = pixels.index_select(0, upload(there, pixels.device))
            open_patches(chosen.last)
        return (pixels, *args[2:]), {**kwargs, "grid_thw": grid}

    def _smaller(self, thw: Sequence[int], merge: int) -> list[int]:
        """The grid of patches that a picture of such a grid gets."""
        t, h, w = thw[0], thw[1] // merge, thw[2] // merge
        for method in self.methods:
            t, h, w = method.smaller((t, h, w))
        return [t, h * merge, w * merge]

    @uncompiled
    def _after_packed(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        before: TowerInput | None = context.top(self)
        if before is None or before.whole is None or before.small is None or not hasattr(output, "pooler_output"):
            return
        merge = tower_for(module).packing(module).merge
        whole, small = before.whole.tolist(), before.small.tolist()
        totals = [math.prod(thw) // merge**2 for thw in whole]
        starts = torch.tensor([0, *totals]).cumsum(0)[:-1]
        places = torch.cat([kept_of(w, s, merge) + at for w, s, at in zip(whole, small, starts, strict=True)])
        if before.chosen is not None:
            places = places[before.chosen.last]
        at = upload(places, output[0].device)

        def spread(x: Tensor) -> Tensor:
            return x.new_zeros(sum(totals), x.shape[-1]).index_copy(0, at.to(x.device), x)

        output["pooler_output"] = spread(output.pooler_output)
        if getattr(output, "deepstack_features", None) is not None:
            output["deepstack_features"] = [spread(x) for x in output.deepstack_features]
        note(output, PIXEL_ITEM, before.as_item(), self.facts.family)

    # -- around a tower of a fixed grid ------------------------------------------------------------------------

    @uncompiled
    def _before_crops(self, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> None:
        if not given:
            return
        pixels: Tensor = args[0] if args else given[0]["pixel_values"]
        facts, config = tower_for(module), module.config
        size: Any = config.patch_size  # type: ignore[union-attr]
        fold, patch = self.facts.family.fold(self.facts.model), size[0] if isinstance(size, list | tuple) else size
        chosen, rows = choose_crops(self.choosers, pixels, patch * fold, facts), None
        if not bool(chosen.last.all()):
            patches = patches_of(chosen.last, len(pixels), pixels.shape[3] // (patch * fold), fold)
            rows = upload(rows_of(patches, int(facts.has_cls)), pixels.device)
            open_patches(patches)
        context.push(self, TowerInput(chosen=chosen, crops=len(pixels), rows=rows))

    @uncompiled
    def _before_blocks(self, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> Any:
        before: TowerInput | None = context.top(self)
        if before is None or before.rows is None:
            return None
        (kwargs,) = given
        if args:
            return (take(args[0], before.rows), *args[1:]), kwargs
        name = next(name for name in ("inputs_embeds", "hidden_states") if name in kwargs)
        return args, {**kwargs, name: take(kwargs[name], before.rows)}

    @uncompiled
    def _after_crops(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        before: TowerInput | None = context.top(self)
        if before is None or not hasattr(output, "last_hidden_state"):
            return
        assert before.chosen is not None
        if before.rows is not None:
            facts, fold = tower_for(module), self.facts.family.fold(self.facts.model)
            put_back(output, before.rows, int(facts.has_cls) + before.chosen.last.numel() // len(before.rows) * fold**2)
        note(output, PIXEL_ITEM, before.as_item(), self.facts.family)

    @uncompiled
    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        context.pop(self)
        close_patches()

    # -- before the language model -----------------------------------------------------------------------------

    def check(self, forward: Forward) -> None:
        there = [prompt.modality for prompt in forward.prompts if bool(prompt.visual.any())]
        for modality in there:
            if self.choosers and modality in self.facts.family.mixes:
                raise ValueError(
                    f"{self.choosers[0].title} leaves patches out, and {self.facts.family.model_types[0]} makes the "
                    f"tokens of a {modality} of several patches each, by pooling; choose a method of the stage 'input'."
                )
        if not there or not self.resizers:
            return
        title = self.resizers[0].title
        if length_of(forward.cache):
            raise ValueError(f"{title} takes pictures in the first turn only: begin a new conversation for this one.")
        if forward.host.get("input_ids") is None:
            raise ValueError(f"{title} needs input_ids to give the prompt the positions of a smaller picture.")

    def seen(self, forward: Forward, seen: list[Seen], outputs: list[Any]) -> list[Seen]:
        """What the tower saw: small pictures, at the last placeholders of each frame."""
        pieces: list[Piece] = []
        grids: dict[str, tuple[Tensor, Tensor]] = {}
        runs: dict[str, TowerInput] = {}
        found = []
        for one, output in zip(seen, outputs, strict=True):
            if not bool(one.visual.any()):
                found.append(one)
                continue
            if one.modality == "video" and self.facts.family.frames_alone:
                self._check_frames()
            item = noted(output, PIXEL_ITEM)
            if item is None:
                raise ValueError(
                    f"{self.methods[0].title} acts before the vision tower, which has run already: hand in pixels, "
                    "not encoded features, or make pictures smaller before (vtc.downsample)."
                )
            before = runs[one.modality] = TowerInput.of_item(item)
            if self.resizers:
                assert before.whole is not None
                assert before.small is not None
                grids[one.modality] = before.whole, before.small
                one = self._small(one, before.whole, before.small, pieces)
            found.append(one)
        if runs:
            pieces.sort(key=lambda one: (one.row, int(one.index[0])))
            forward.early[self] = Done(Resized(pieces, grids) if grids else None, runs)
        return found

    def _check_frames(self) -> None:
        """Raise ValueError where a method is about all frames of a video, which the tower is given one by one."""
        if self.resizers:
            raise ValueError(
                f"{self.resizers[0].title} cannot make a video smaller whose frames are encoded one by one: do so "
                "before the processor, with vtc.downsample(clip, processor, keep)."
            )
        for method in self.choosers:
            if "image" not in method.modality:
                raise ValueError(
                    f"{method.title} compares the frames of a video, which this vision tower is given one by one; evs "
                    "does it behind the tower."
                )

    def _small(self, seen: Seen, whole: Tensor, small: Tensor, pieces: list[Piece]) -> Seen:
        """What is known of the small pictures; their `pieces` are added to the list."""
        tower = self.facts.family.tower(self.facts.model)
        merge = tower_for(tower).packing(tower).merge
        own = pieces_of(seen.visual.nonzero(), seen.pooled)
        numbers = images_of([int(piece[0, 0]) for piece in own], max(1, len(own) // len(whole)))
        if numbers is None or max(numbers) != len(whole) - 1:
            raise ValueError(MISMATCH)
        visual, pooled = torch.zeros_like(seen.visual), []
        for piece, number, features in zip(own, numbers, seen.pooled, strict=True):
            kept = kept_of(whole[number].tolist(), small[number].tolist(), merge)
            row, index = int(piece[0, 0]), piece[:, 1]
            pieces.append(Piece(row, seen.modality, number, index, kept))
            visual[row, index[kept]] = True
            pooled.append(features[: len(kept)])  # only their number counts
        return seen._replace(visual=visual, pooled=pooled, grid_thw=small)
