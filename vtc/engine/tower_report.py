"""What a run of a vision tower came to, as a report says it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vtc.cost import TowerCost
from vtc.engine.tower_blocks import TowerBlocks, TowerTrace
from vtc.layout import single_span
from vtc.reports import Report, ReportSpan, StageReport, TowerReport


def tower_part(traces: Sequence[TowerTrace], blocks: TowerBlocks) -> TowerReport:
    """The tower's account of one forward, whose pictures and videos may be a run each: block by block."""
    depth = max(len(trace.steps) for trace in traces)
    left, full, kept = ([0] * depth for _ in range(3))
    patches = 4 if blocks.packed else 1  # that stay together
    for trace in traces:
        whole = trace.prefix + trace.tokens
        for i, (before, after, every, own) in enumerate(trace.steps):
            cost = TowerCost.of(blocks.blocks[i], blocks.attentions[i], blocks.facts.width(blocks.attentions[i]))
            left[i] += patches * trace.batch * (after - trace.prefix)
            full[i] += trace.batch * cost.flops(patches * whole, patches * whole, every)
            kept[i] += trace.batch * cost.flops(patches * before, patches * after, own)
    pictures, tokens = sum(trace.batch for trace in traces), sum(trace.batch * trace.tokens for trace in traces)
    return TowerReport(pictures, patches * tokens, tuple(left), tuple(zip(full, kept, strict=True)))


def tower_report(trace: TowerTrace, blocks: TowerBlocks) -> Report:
    """The report of a tower that is wrapped alone: each picture is a span, of its patches."""
    part = tower_part([trace], blocks)
    side = math.isqrt(trace.tokens)
    span = single_span(trace.tokens, (1, side, side) if side * side == trace.tokens else None)
    spans = []
    for row in range(trace.batch):
        anchor = source = torch.arange(trace.tokens)
        if trace.rows is not None:
            anchor = trace.rows.anchor[row, trace.prefix :].cpu() - trace.prefix
            source = trace.rows.shown[row, trace.prefix :].cpu() - trace.prefix
            order = anchor.argsort()
            anchor, source = anchor[order], order.argsort()[source]
            if trace.rows.gone is not None:
                source = torch.where(trace.rows.gone[row, trace.prefix :].cpu(), -1, source)
        spans.append(ReportSpan(row, "image", span.grid, anchor, source, span.tiles, span.boxes()))
    before = after = trace.batch * trace.tokens
    if trace.steps:
        after = trace.batch * (trace.steps[-1][1] - trace.prefix)
    ms = sum(watch.ms for watch in trace.watches)
    stage = StageReport(blocks.method.title, None, before, after, ms, place="encoder")
    return Report(spans=spans, stages=[stage], tower=part)
