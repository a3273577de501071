"""Stage `encoder`: patches merge or leave between the blocks of the vision tower.

What the tower hands over is full length again: each patch shows the row that stands for it. Where one patch becomes one
token, the language model reads each such row once, at the place of the patch that the others joined; copies are equal
in every bit, so nothing more is lost by that. Elsewhere (2 x 2 patches to a token, frames that are pooled) only the
tower is cheaper, and the report says so.

The tower may run before the forward that reads its features (`generate` does that), or in `vtc.encode`: what has become
of its patches travels with its output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.engine import context
from vtc.engine.context import uncompiled
from vtc.engine.find_layout import Seen
from vtc.engine.forward import Forward
from vtc.engine.stage import Facts, Run, Stage
from vtc.engine.tower_blocks import TowerBlocks, TowerTrace
from vtc.engine.tower_call import ROWS_ITEM, note, noted
from vtc.engine.tower_report import tower_part
from vtc.methods.base.encoder import EncoderMethod
from vtc.methods.base.method import Method
from vtc.selection import Selection
from vtc.transfer import download_all, upload


class EncoderRun(Run):
    def enter(self, kwargs: dict[str, Any]) -> None:
        flow, trace, stage = self.flow, self.forward.trace, self.stage
        items: dict[str, dict[str, Any]] = self.forward.early.get(stage, {}) if flow.spans else {}
        if not items:
            return
        found = [item["trace"] for item in items.values() if "trace" in item]
        if found:
            trace.towers.append(lambda: tower_part(found, stage.blocks))
        method, present = stage.method, self._present()
        down = download_all([*(item["rows"] for item in items.values()), *present.values()])
        host = dict(zip(items, down, strict=False))
        there = dict(zip(present, down[len(items) :], strict=True))
        if not any(bool(rows.any()) for rows in host.values()):
            if any(own.there is not None for own in found):
                trace.notes.append(
                    f"{method.title}: keep={method.keep} is meant of whole pictures, and no more than that had been "
                    "left before the vision tower; it changed nothing."
                )
            return
        chosen, whole, before = [], 0, sum(len(index) for index in flow.index)
        for i, (span, index) in enumerate(zip(flow.spans, flow.index, strict=True)):
            rows = host.get(span.modality, next(iter(host.values())))  # videos that are images to the model
            if method.shorten and stage.facts.family.one_patch_each(stage.facts.model, span):
                patch = span.patch[there[i]] if i in there else span.patch
                chosen.append(standing(patch, rows).to(index.device))
            else:
                chosen.append(Selection.identity(len(index), index.device))
                whole += 1
        if whole and method.shorten:
            trace.notes.append(
                f"{method.title}: the vision tower hands over all patches again, as several of them make one token of "
                "this model; the language model is not shortened by it."
            )
        if whole < len(chosen):
            trace.steps.append((0, chosen))
            kwargs["inputs_embeds"] = flow.shorten(kwargs["inputs_embeds"], chosen, 0)
            plan = flow.part.plan
            assert plan is not None
            if self.forward.companions is not None:
                self.forward.companions.shorten(plan, 0)
        after = sum(len(index) for index in flow.index)
        watches = [watch for own in found for watch in own.watches]
        trace.note_stage(method.title, None, before, after, watches, place="encoder")

    def _present(self) -> dict[int, Tensor]:
        """LongTensors by number of the span: which of its tokens there are, of those that have lost some already."""
        flow = self.flow
        pairs = enumerate(zip(flow.spans, flow.index, strict=True))
        return {i: index for i, (span, index) in pairs if len(index) < span.tokens}


class EncoderStage(Stage):
    name, order, run = "encoder", 10, EncoderRun
    uneven, listens, shortens = False, False, False

    def __init__(self, facts: Facts, methods: Sequence[Method]) -> None:
        super().__init__(facts, methods)
        tower = facts.family.tower(facts.model)
        self.blocks = blocks_for(tower, methods, facts.family.last_block(facts.model), self._begin)
        self.method = self.blocks.method

    def check_beside(self, others: Sequence[Method]) -> None:
        for other in others:
            if self.method.shorten and other.stage == "input" and "grid" in other.requires():
                raise ValueError(
                    f"{other.title} needs the whole grid of tokens, which {self.method.title} shortens before: give "
                    f"{self.method.title} shorten=False, so that the language model's side sees every patch."
                )

    def attach(self) -> Iterator[RemovableHandle]:
        tower = self.facts.family.tower(self.facts.model)
        self.blocks.check_free()
        yield tower.register_forward_pre_hook(self._before_tower)
        yield tower.register_forward_hook(self._after_tower)
        yield tower.register_forward_hook(self._close, always_call=True)
        yield from self.blocks.attach()

    @uncompiled
    def _before_tower(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        context.push(self, {})

    def _begin(self, trace: TowerTrace) -> None:
        frame: dict[str, TowerTrace] | None = context.top(self)
        if frame is not None:
            frame["trace"] = trace

    @uncompiled
    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        frame: dict[str, TowerTrace] | None = context.top(self)
        if frame and hasattr(output, "last_hidden_state"):  # no bare tuple
            trace = frame["trace"]
            item = {"rows": moves(trace, output.last_hidden_state.device), "trace": trace}
            note(output, ROWS_ITEM, item, self.facts.family)

    @uncompiled
    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        context.pop(self)

    def seen(self, forward: Forward, seen: list[Seen], outputs: list[Any]) -> list[Seen]:
        found = {}
        for one, output in zip(seen, outputs, strict=True):
            if not bool(one.visual.any()):
                continue
            item = noted(output, ROWS_ITEM)
            if item is None:
                raise ValueError(
                    f"{self.method.title} acts inside the vision tower, which has run already and without it: hand in "
                    "pixels, or encode them on the wrapped model."
                )
            found[one.modality] = item
        forward.early[self] = found
        return seen


def blocks_for(tower: nn.Module, parts: Sequence[Method], last: int | None, begun: Any) -> TowerBlocks:
    """The hooks for the one method of the stage `encoder` in `parts`; ValueError with one sentence if it cannot be.

    Args:
        last: number of the last block that counts; None = all do.
    """
    for part in parts:
        if part.stage != "encoder":
            raise ValueError(
                f"{part.title} works at the stage {part.stage!r}, and a vision tower alone has the stage 'encoder' "
                "only: use a method that can act there, such as tome."
            )
        if not isinstance(part, EncoderMethod):
            raise ValueError(f"{part.title} is to act inside the vision tower: derive it from vtc.EncoderMethod.")
    if len(parts) > 1:
        raise ValueError(f"{' and '.join(part.title for part in parts)} both act inside the vision tower: give one.")
    (method,) = parts
    assert isinstance(method, EncoderMethod)
    return TowerBlocks(tower, method, last, begun)


def moves(trace: TowerTrace, device: torch.device) -> Tensor:
    """LongTensor [patches of all pictures, 2]: how far off the patch that each one is shown as is, and whether it has
    been dropped; of the tower's tokens, its prefix left out. Distances stay right whatever pictures stand beside.

    Patches that have left before the tower have not moved. Of packed rows, patches are units in the blocks' order.

    Example: of six patches 1, 3, 4 and 5 enter the tower, which merges the first of these into the third: 0 3 0 0 0 0.
    """
    rows, p, there = trace.rows, trace.prefix, trace.there
    total = trace.batch * trace.tokens if there is None else there.numel()
    full = torch.zeros(total, 2, dtype=torch.long, device=device)
    if rows is None:
        return full
    here = torch.arange(p, p + trace.tokens, device=rows.shown.device)
    away = rows.anchor.gather(1, rows.shown[:, p:]) - here
    gone = torch.zeros_like(away) if rows.gone is None else rows.gone[:, p:].long()
    if there is None:
        return torch.stack([away, gone], dim=-1).flatten(0, 1)
    at = upload(there.flatten().nonzero()[:, 0], here.device).view(trace.batch, -1)
    away = at.gather(1, here - p + away) - at
    return full.index_copy(0, at.flatten().to(device), torch.stack([away, gone], dim=-1).flatten(0, 1).to(device))


def standing(patch: Tensor, rows: Tensor) -> Selection:
    """Which of a span's tokens stay, of those that stand at the patches `patch` [N] (-1 = separators): of those that
    show the same row, the one whose patch it stands at, or the first where the picture was cut to a size without that
    patch. All in main memory.

    Example: six tokens of patches 0 to 5; `rows` moves 1 to 3 and 2 to 3, and patch 4 has been dropped: tokens 0, 3 and
    5 stay, and token 3 stands for 1, 2 and 3.
    """
    n = len(patch)
    here = torch.arange(n)
    own = rows[patch.clamp(min=0)]
    shown = torch.where(patch >= 0, patch + own[:, 0], -1 - here)  # separators stand for themselves
    gone = (patch >= 0) & (own[:, 1] > 0)
    _, group = shown.unique(return_inverse=True)
    stands = (patch == shown) | (patch < 0)
    rank = torch.where(stands, here, here + n)  # the one that it stands at, else the first
    first = torch.full((int(group.max()) + 1,), 2 * n).scatter_reduce_(0, group[~gone], rank[~gone], "amin")
    alive = first < 2 * n
    anchor, order = (first[alive] % n).sort()
    number = torch.full_like(first, -1)
    number[alive.nonzero()[:, 0][order]] = torch.arange(len(anchor))
    source = torch.where(gone, -1, number[group])
    weight = torch.zeros(n).index_fill_(0, anchor, 1.0)
    selection = Selection(anchor, source, weight)
    selection.ascending = True
    return selection
