"""TowerBlocks: hooks on the blocks of a vision tower, between whose two residual additions rows merge or leave.

What a block hands over is as long as the picture again (every patch shows the row that stands for it), so that whoever
looks at it between two blocks, and whatever follows the last one, need not know; the shorter rows travel along as an
attribute of that tensor, which is where the next block finds them. No other state passes from block to block, so a run
that stops early leaves nothing behind, and one that is recomputed for its gradients is the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.engine import context
from vtc.engine.context import uncompiled
from vtc.engine.residual import Joint, Residual, dissolve
from vtc.engine.tower_rows import TowerRows
from vtc.methods.base.encoder import BlockTokens, EncoderMethod
from vtc.models.tower import Tower, tower_for
from vtc.reports import Stopwatch

LINK = "_vtc_rows"  # the attribute of what a block hands over


@dataclass(eq=False)
class TowerTrace:
    """What one run of the tower came to, for the report.

    Attributes:
        tokens: of a picture, its prefix left out. prefix: tokens before them. batch: pictures.
        lengths: rows (prefix included) in the attention of each block that has run, and in its feed-forward part.
    """

    batch: int
    tokens: int
    prefix: int
    lengths: list[tuple[int, int]] = field(default_factory=list)
    watches: list[Stopwatch] = field(default_factory=list)
    rows: TowerRows | None = None


@dataclass(frozen=True, eq=False)
class Passed:
    """What passes from block to block.

    Attributes:
        counts: patches left behind each block that counts. block: the next one.
        rows, short: the rows and their hidden states, None while every token has its own.
    """

    trace: TowerTrace
    counts: tuple[int, ...]
    block: int = 0
    rows: TowerRows | None = None
    short: Tensor | None = None


class Visit:
    """One block in one forward: what its modules have said, and what comes of it."""

    def __init__(self, passed: Passed, proportional: bool) -> None:
        self.passed, self.rows, self.proportional = passed, passed.rows, proportional
        self.heard: dict[str, Tensor] = {}
        self.joint: Joint | None = None
        self.lengths = (0, 0)


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
        self.prefix = self.facts.prefix(tower)
        if method.proportional:
            self.facts.check_bias(tower)
        self.blocks: list[Any] = list(self.facts.blocks(tower))
        self.last = len(self.blocks) - 1 if last is None else last
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
        for i, (block, attention) in enumerate(zip(self.blocks, self.attentions, strict=True)):
            yield block.register_forward_pre_hook(partial(self._before_block, i), with_kwargs=True)
            yield block.register_forward_hook(self._after_block, prepend=True)
            yield block.register_forward_hook(self._close, always_call=True)
            if i <= self.last:
                q, k = self.facts.listened(block, attention)
                if q is not k:
                    yield q.register_forward_hook(partial(self._heard, "q"))
                yield k.register_forward_hook(partial(self._heard, "k"))
            if i and self.method.proportional:
                yield attention.register_forward_pre_hook(self._before_attention, with_kwargs=True)

    def close(self) -> None:
        """Forget what an interruption left open."""
        context.pop(self)

    @uncompiled
    def _before_block(self, i: int, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> Any:
        if not given:  # another thread's run, while this one attached the hook
            return None
        kwargs = given[0]
        named = None if args else next(iter(kwargs))
        x: Tensor = args[0] if named is None else kwargs[named]
        visit = Visit(self._arrive(i, x), self.method.proportional)
        passed, rows = visit.passed, visit.rows
        context.push(self, visit)
        x = x if passed.short is None else passed.short
        before, after = x.shape[1], self.prefix + passed.counts[min(i, self.last)]
        visit.lengths = before, after
        if after < before:
            visit.joint = Joint(partial(self._shorten, visit, i))
            x = Residual.of(x, visit.joint)
        if rows is not None:
            kwargs = self.facts.with_rows(kwargs, rows.anchor, self.prefix)
        return ((x, *args[1:]), kwargs) if named is None else (args, {**kwargs, named: x})

    def _arrive(self, i: int, x: Tensor) -> Passed:
        """What the block before has passed on with `x`; a new run at the first block."""
        if i:
            passed: Passed | None = x.__dict__.get(LINK) if isinstance(x, Tensor) else None
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
        tokens = x.shape[1] - self.prefix
        trace = TowerTrace(len(x), tokens, self.prefix)
        if self.begun is not None:
            self.begun(trace)
        return Passed(trace, self.method.counts(tokens, self.last + 1))

    @uncompiled
    def _heard(self, which: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        visit: Visit | None = context.top(self)
        if visit is None or visit.joint is None:
            return
        visit.heard[which] = output
        visit.joint.ready = visit.joint.ready or which == "k"

    @uncompiled
    def _before_attention(self, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> Any:
        visit: Visit | None = context.top(self)
        if visit is None or visit.rows is None or not given:
            return None
        assert visit.passed.short is not None
        bias = visit.rows.size.log().to(visit.passed.short.dtype)
        return args, self.facts.with_bias(module, given[0], bias)

    def _shorten(self, visit: Visit, i: int, whole: Tensor) -> Tensor:
        """The block's hidden states [B, T, D] after its first addition -> those of the rows that are left."""
        watch, rows = Stopwatch(whole.device), visit.rows
        before, after = visit.lengths
        if rows is None:
            rows = TowerRows.whole(*whole.shape[:2], whole.device)
        keys = self.facts.metric(self.attentions[i], visit.heard.pop("k").detach())
        tokens = BlockTokens(keys, rows.size, self.prefix, before - after, i, self.last + 1)
        visit.rows, step = rows.step(self.method.join(tokens), after)
        short = step.apply(whole)
        visit.passed.trace.watches.append(watch.stop())
        return short

    @uncompiled
    def _after_block(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        visit: Visit | None = context.top(self)
        if visit is None:
            return None
        x: Tensor = output[0] if isinstance(output, tuple) else output
        passed, joint = visit.passed, visit.joint
        if joint is not None and not joint.met:
            raise RuntimeError(
                f"{type(module).__name__} does not add its attention to its input in a way that vtc knows, so that "
                f"{self.method.title} cannot act inside it."
            )
        for given in args:
            dissolve(given)
        visit.joint = None  # which holds the visit
        passed.trace.lengths.append(visit.lengths)
        passed.trace.rows = visit.rows
        following = replace(passed, block=passed.block + 1, rows=visit.rows, short=None)
        if visit.rows is not None:
            following = replace(following, short=x)
            x = visit.rows.expand(x)
        setattr(x, LINK, following)
        if visit.rows is None:
            return None
        return (x, *output[1:]) if isinstance(output, tuple) else x

    @uncompiled
    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        context.pop(self)


def rows_here() -> tuple[TowerRows | None, bool]:
    """The rows that the block now running was given, None where every token has its own; whether a row attracts as much
    attention as the tokens in it."""
    visit = next((x for x in context.states() if isinstance(x, Visit)), None)
    return (None, True) if visit is None else (visit.rows, visit.proportional)
