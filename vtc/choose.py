"""Choose: run the methods of a stage over all spans of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vtc.layout import VisualLayout, VisualSpan
from vtc.methods.base import Method
from vtc.record import Record
from vtc.report import Stopwatch
from vtc.selection import Selection
from vtc.signals import VisualTokens

Reader = Callable[[Method, VisualSpan], Callable[[str], Tensor]]


def choose(
    methods: Sequence[Method], layout: VisualLayout, embeds: Tensor, reader: Reader, reorder: bool, record: Record
) -> list[Selection]:
    """One Selection per span, of all methods one after another.

    Args:
        embeds: [B, L, D], image features in place.
        reader: gives a method its signals for a span.
        reorder: let a method put its tokens in another order than the picture's.
        record: gets one stage per method.
    """
    views = [
        VisualTokens(
            features=embeds[span.row, span.index.to(embeds.device)],
            span=span,
            index=torch.arange(span.tokens, device=embeds.device),
            read=reader(methods[0], span),
        )
        for span in layout.spans
    ]
    chosen: list[Selection | None] = [None] * len(views)
    for method in methods:
        watch, before = Stopwatch(embeds.device), sum(len(view.features) for view in views)
        done: dict[tuple[int, int], Selection] = {}  # one picture is chosen from once, for all who ask about it
        for i, span in enumerate(layout.spans):
            key = (span.picture, span.row // layout.expansion if method.query_aware else 0)
            if key not in done:
                selection = method.select(replace(views[i], read=reader(method, span))).check()
                done[key] = selection if reorder else selection.sorted()
            selection, earlier = done[key], chosen[i]
            chosen[i] = selection if earlier is None else earlier.then(selection)
            views[i] = views[i].after(selection.anchor, selection.apply(views[i].features))
        after = sum(len(view.features) for view in views)
        record.stages.append((method.title, None, before, after, [watch.stop()]))
    selections = [selection for selection in chosen if selection is not None]
    record.steps.append((0, selections))
    return selections
