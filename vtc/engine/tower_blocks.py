"""TowerBlocks: hooks on the blocks of a vision tower, between whose two residual additions rows merge or leave.

What a block hands over is as long as the picture again (every patch shows the row that stands for it), so that whoever
looks at it between two blocks, and whatever follows the last one, need not know; the shorter rows travel along as an
attribute of that tensor, which is where the next block finds them. No other state passes from block to block, so a run
that stops early leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.engine import context
from vtc.engine.context import uncompiled
from vtc.engine.residual import Joint, Residual, dissolve
from vtc.engine.tower_budget import Budget
from vtc.engine.tower_patches import patches_there
from vtc.engine.tower_rows import TowerRows
from vtc.engine.tower_segment import Segment
from vtc.layout import single_span
from vtc.methods.base.encoder import BlockTokens, EncoderMethod
from vtc.models.tower import Tower, tower_for, tower_type
from vtc.reports import Stopwatch
from vtc.signals import SIGNALS, VisualTokens

LINK = "_vtc_rows"  # the attribute of what a block hands over
_MASKS = ("attention_mask", "attn_mask")


@dataclass(eq=False)
class TowerTrace:
    """What one run of the tower came to, for the report.

    Attributes:
        batch: pictures. tokens: of one of them, its prefix left out. prefix: tokens before them. In towers of packed
            pictures the whole row is one picture, and a token is the patches that stay together.
        steps: of each block that has run, rows (prefix included) in its attention and in its feed-forward part, and the
            squares of what attends within itself, summed: with all tokens, and with the rows that are left.
        rows: what is left.
        there: what had not left before the tower ran, as `patches_there` says it; all else is about that alone.
    """

    batch: int
    tokens: int
    prefix: int
    steps: list[tuple[int, int, int, int]] = field(default_factory=list)
    watches: list[Stopwatch] = field(default_factory=list)
    rows: TowerRows | None = None
    there: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Passed:
    """What passes from block to block.

    Attributes:
        block: the next one.
        rows, short: the rows and their hidden states [B, T, D], None while every token has its own.
        signals: (name, block) -> [B, patches], what the method is going to read.
    """

    trace: TowerTrace
    budget: Budget
    block: int = 0
    rows: TowerRows | None = None
    short: Tensor | None = None
    signals: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)


class Visit:
    """One block in one forward: what its modules have said, and what comes of it."""

    def __init__(self, passed: Passed, given: dict[str, Any], weighs: bool) -> None:
        self.passed, self.rows, self.given, self.weighs = passed, passed.rows, given, weighs
        self.heard: dict[str, Tensor] = {}
        self.inputs: dict[str, Any] = {}  # of the attention
        self.signals = dict(passed.signals)
        self.joint: Joint | None = None
        self.step: tuple[int, int, int, int] = (0, 0, 0, 0)

    def bias(self) -> Tensor:
        """[B, T], what is added to the logits of each row's key."""
        rows, short = self.passed.rows, self.passed.short
        assert rows is not None
        assert short is not None
        return rows.size.log().to(short.dtype)


class TowerBlocks:
    """Merges or drops rows of one vision tower, as one method says.

    Args:
        last: number of the last block that counts, None = of all; those behind it run on what is left.
        begun: called with what will be known of a run when it begins.
    """

    def __init__(
        self,
        tower: nn.Module,
        method: EncoderMethod,
        last: int | None = None,
        begun: Callable[[TowerTrace], None] | None = None,
    ) -> None:
        self.tower, self.method, self.begun = tower, method, begun
        self.facts: Tower = tower_for(tower)
        self.facts.check(tower)
        self.packed, self.grids = self.facts.takes == "packed", object()
        if self.packed and not method.packs:
            raise ValueError(
                f"{method} cannot act inside {tower_type(tower)}, whose pictures are packed into one row: there are "
                "tome(stage=encoder) and pitome(stage=encoder)."
            )
        self.prefix = self.facts.prefix(tower)
        if method.weighs:
            self.facts.check_bias(tower)
        self.blocks: list[Any] = list(self.facts.blocks(tower))
        self.last = len(self.blocks) - 1 if last is None else last
        method.check_depth(self.last + 1)
        self.signals: dict[int, list[str]] = {}  # of each block, what is measured for the method
        for name, block in sorted({pair for i in range(self.last + 1) for pair in method.hears(i, self.last + 1)}):
            self.signals.setdefault(block, []).append(name)
        self.attentions = self.facts.attentions(tower)

    def check_free(self) -> None:
        """Raise ValueError if others have hooks on this tower."""
        for hook in self.blocks[0]._forward_pre_hooks.values():
            owner = getattr(getattr(hook, "func", None), "__self__", None)
            if isinstance(owner, TowerBlocks) and owner is not self:
                raise ValueError(
                    "this vision tower is already wrapped through another model object; vtc.unwrap that one first."
                )

    # -- hooks -------------------------------------------------------------------------------------------------

    def attach(self) -> Iterator[RemovableHandle]:
        if self.packed:
            yield self.tower.register_forward_pre_hook(self._before_tower, with_kwargs=True)
            yield self.tower.register_forward_hook(self._after_tower, always_call=True)
        for i, (block, attention) in enumerate(zip(self.blocks, self.attentions, strict=True)):
            yield block.register_forward_pre_hook(partial(self._before_block, i), with_kwargs=True)
            yield block.register_forward_hook(self._after_block, prepend=True)  # others are to see the whole
            yield block.register_forward_hook(self._close, always_call=True)
            if i <= self.last:
                q, k = self.facts.listened(block, attention)
                if q is not k:
                    yield q.register_forward_hook(partial(self._heard, "q"))
                yield k.register_forward_hook(partial(self._heard, "k"))
            yield attention.register_forward_pre_hook(self._before_attention, with_kwargs=True)
            if i in self.signals:
                yield attention.register_forward_hook(partial(self._after_attention, i))
            if self.facts.widens and self.method.weighs:
                wide, narrow = self.facts.joints(attention)
                yield wide.register_forward_hook(partial(self._widen, attention))
                yield narrow.register_forward_pre_hook(partial(self._narrow, attention))

    def close(self) -> None:
        """Forget what an interruption left open."""
        context.pop(self)
        context.pop(self.grids)

    @uncompiled
    def _before_tower(self, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> None:
        if given:
            grid = given[0].get("grid_thw", args[1] if len(args) > 1 else None)
            context.push(self.grids, None if grid is None else grid.tolist())

    @uncompiled
    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        context.pop(self.grids)

    @uncompiled
    def _before_block(self, i: int, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> Any:
        if not given:  # another thread's run, while this one attached the hook
            return None
        args, kwargs = _without_mask(args, given[0], check=i == 0)
        named = None if args else next(iter(kwargs))
        x: Tensor = args[0] if named is None else kwargs[named]
        visit = Visit(self._arrive(i, x, kwargs), kwargs, self.method.weighs)
        passed, rows = visit.passed, visit.rows
        context.push(self, visit)
        if passed.short is not None:
            x = self.facts.from_rows(passed.short)
        before, after = passed.budget.rows(i)
        if rows is not None:
            kwargs = self.facts.with_rows(kwargs, rows.anchor, self.prefix, passed.budget.groups(i))
        visit.step = before, after, self._squares(passed.budget.rows(0)[0], visit.given), self._squares(before, kwargs)
        if after < before:
            visit.joint = Joint(partial(self._shorten, visit, i))
            x = Residual.of(x, visit.joint)
        return ((x, *args[1:]), kwargs) if named is None else (args, {**kwargs, named: x})

    def _squares(self, rows: int, kwargs: dict[str, Any]) -> int:
        """Products of queries and keys per head of a picture's `rows`; of packed ones, of patches."""
        return sum(n * n for n in self.facts.segments(kwargs) or []) if self.packed else rows * rows

    def _arrive(self, i: int, x: Tensor, kwargs: dict[str, Any]) -> Passed:
        """What the block before has passed on with `x`; a new run at the first block."""
        if i:
            passed: Passed | None = getattr(x, LINK, None)
            if passed is not None:  # taken off, so that whoever keeps hidden states does not keep the shorter ones, too
                delattr(x, LINK)
            if passed is None or passed.block != i:
                raise RuntimeError(
                    f"block {i} of the vision tower was not given what the block before it put out, so that "
                    f"{self.method.title} cannot go on there: unwrap the tower to run parts of it."
                )
            return passed
        if torch.is_grad_enabled() and self.facts.checkpoints(self.tower):
            raise ValueError(
                f"gradient checkpointing computes blocks of the vision tower again, where {self.method.title} cannot "
                "hear them: switch it off for the tower."
            )
        rows = self.facts.as_rows(x)
        tokens = rows.shape[1] - self.prefix
        groups = self.facts.groups(self.tower, kwargs) if self.packed else None
        grids = context.top(self.grids) if self.packed else None
        there = patches_there()
        budget = Budget.of(self.method, self.last + 1, tokens, self.prefix, groups, grids, there)
        trace = TowerTrace(len(rows), tokens, self.prefix, there=there)
        if self.begun is not None:
            self.begun(trace)
        return Passed(trace, budget)

    @uncompiled
    def _heard(self, which: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        visit: Visit | None = context.top(self)
        if visit is None:
            return
        visit.heard[which] = output
        if visit.joint is not None and which == "k":
            visit.joint.ready = True

    @uncompiled
    def _before_attention(self, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> Any:
        visit: Visit | None = context.top(self)
        if visit is None or not given:
            return None
        visit.inputs = given[0]
        if visit.rows is None or not self.method.weighs:
            return None
        return args, self.facts.with_bias(module, given[0], visit.bias())

    @uncompiled
    def _widen(self, attention: nn.Module, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        visit: Visit | None = context.top(self)
        if visit is None or visit.passed.rows is None:
            return None
        return self.facts.widened(attention, output, visit.bias())

    @uncompiled
    def _narrow(self, attention: nn.Module, module: nn.Module, args: tuple[Any, ...]) -> Any:
        visit: Visit | None = context.top(self)
        if visit is None or visit.passed.rows is None:
            return None
        return self.facts.narrowed(attention, args[0]), *args[1:]

    @uncompiled
    def _after_attention(self, i: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        visit: Visit | None = context.top(self)
        if visit is None:
            return
        q, k, _ = self._attention(visit, i)
        for name in self.signals[i]:
            signal = SIGNALS[name]
            if signal.stand_in is not None and not self.facts.cls_first(self.tower):
                signal = SIGNALS[signal.stand_in]
            visit.signals[name, i] = signal.of(Segment(q, k))[:, self.prefix :]

    @uncompiled
    def _after_block(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        visit: Visit | None = context.top(self)
        if visit is None:
            return None
        x: Tensor = output[0] if isinstance(output, tuple) else output
        passed, joint, rows = visit.passed, visit.joint, visit.rows
        if joint is not None and not joint.met:
            raise RuntimeError(
                f"{type(module).__name__} does not add its attention to its input in a way that vtc knows, so that "
                f"{self.method.title} cannot act inside it."
            )
        for given in args:
            dissolve(given)
        visit.joint = None  # which holds the visit
        visit.heard.clear()
        passed.trace.steps.append(visit.step)
        passed.trace.rows = rows
        signals = visit.signals if passed.block < max(self.signals, default=-1) else {}
        short = None
        if rows is not None:
            short = self.facts.as_rows(x)
            x = self.facts.from_rows(rows.expand(short))
        if passed.block + 1 < len(self.blocks):
            setattr(x, LINK, replace(passed, block=passed.block + 1, rows=rows, short=short, signals=signals))
        if rows is None:
            return None
        return (x, *output[1:]) if isinstance(output, tuple) else x

    @uncompiled
    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        context.pop(self)

    # -- between the two additions -----------------------------------------------------------------------------

    def _shorten(self, visit: Visit, i: int, native: Tensor) -> Tensor:
        """The block's hidden states after its first addition -> those of the rows that are left."""
        watch, rows, budget = Stopwatch(native.device), visit.rows, visit.passed.budget
        whole, (before, after) = self.facts.as_rows(native), budget.rows(i)
        if rows is None:
            rows = TowerRows.whole(whole.shape[0], whole.shape[1], whole.device)
        keys, gone, lengths = self.facts.metric(self.attentions[i], visit.heard["k"].detach()), before - after, None
        groups = budget.groups(i)
        if groups is not None:
            keys, gone, lengths = _apart(keys, groups.now), budget.gone(i), torch.tensor(groups.now)
        tokens = BlockTokens(
            keys,
            rows.size if groups is None else _apart(rows.size[..., None], groups.now)[..., 0],
            self.prefix,
            self.facts.cls_first(self.tower),
            gone,
            visit.passed.trace.tokens,
            i,
            self.last + 1,
            partial(self._attention, visit, i),
            partial(self._pictures, visit, whole, after - self.prefix),
            lengths,
        )
        joined = self.method.join(tokens)
        if groups is not None:
            joined = joined._replace(target=_together(joined.target, groups.now))
        visit.rows, step = rows.step(joined, after, None if self.method.merges else keys, self.prefix)
        short = self.facts.from_rows(step.apply(whole))
        visit.passed.trace.watches.append(watch.stop())
        return short

    def _attention(self, visit: Visit, i: int) -> tuple[Tensor, Tensor, float]:
        k = visit.heard["k"].detach()
        q = visit.heard["q"].detach() if "q" in visit.heard else k
        ((q, k),) = self.facts.queries_keys(self.attentions[i], q, k, visit.inputs, None)
        return q, k, q.shape[-1] ** -0.5

    def _pictures(self, visit: Visit, whole: Tensor, left: int) -> list[VisualTokens]:
        """The patches of each picture, of hidden states [B, T, D], for a method that keeps `left` of them."""
        n = whole.shape[1] - self.prefix
        side, cut = math.isqrt(n), visit.passed.trace.there is not None
        grid = (1, side, side) if side * side == n and not cut else None
        span, here = single_span(n, grid), torch.arange(n, device=whole.device)

        def read(row: int, name: str) -> Tensor:
            found = [value[row] for (own, _), value in sorted(visit.signals.items()) if own == name]
            return torch.stack(found) if "L" in SIGNALS[name].shape else found[-1]

        return [
            VisualTokens(x[self.prefix :].detach(), span, here, partial(read, row), budget=left)
            for row, x in enumerate(whole)
        ]


def visit_here() -> Visit | None:
    """The block of a vision tower that is running, if rows merge or leave in that tower."""
    return next((x for x in context.states() if isinstance(x, Visit)), None)


def _apart(x: Tensor, sizes: list[int]) -> Tensor:
    """[1, sum of sizes, d] -> [G, largest, d]: each group a row of its own; what fills up the others is anything."""
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    at = (starts[:, None] + torch.arange(max(sizes))).clamp(max=x.shape[1] - 1)
    return x[0][at.to(x.device)]


def _together(target: Tensor, sizes: list[int]) -> Tensor:
    """Places [G, largest] within each group -> [1, sum of sizes] within the row that the groups lie in."""
    starts, lengths = torch.tensor([0, *sizes[:-1]]).cumsum(0), torch.tensor(sizes)
    real = torch.arange(target.shape[1]) < lengths[:, None]
    flat = target + starts[:, None].to(target.device)
    return flat.flatten()[real.flatten().nonzero()[:, 0].to(target.device)][None]


def _without_mask(args: tuple[Any, ...], kwargs: dict[str, Any], check: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments without a mask, which is to hide nothing: looked at if `check`, ValueError if it does."""
    if check and kwargs.get("is_causal"):
        raise ValueError("a vision tower that attends causally cannot lose patches between its blocks.")
    masks = [x for x in (*args[1:2], *(kwargs.get(name) for name in _MASKS)) if isinstance(x, Tensor)]
    if not masks:
        return args, kwargs
    if check and not all(bool(x.all() if x.dtype == torch.bool else (x == 0).all()) for x in masks):
        raise ValueError(
            "the vision tower was given an attention mask that hides some patches from others (padding, or several "
            "pictures in one row), under which patches cannot merge or leave: give it one picture a row, without "
            "padding."
        )
    args = tuple(None if n == 1 and isinstance(x, Tensor) else x for n, x in enumerate(args))
    return args, {name: None if name in _MASKS and isinstance(x, Tensor) else x for name, x in kwargs.items()}
