"""Choose: run the methods of a stage over all spans of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vtc.engine.per_frame import select_scoped
from vtc.engine.trace import Record
from vtc.layout import VisualLayout, VisualSpan
from vtc.methods.base.method import Method
from vtc.reports import Stopwatch
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
    for number, method in enumerate(methods):
        watch, before = Stopwatch(embeds.device), sum(len(view.features) for view in views)
        # one picture is chosen from once, for all who ask about it
        keys = [(s.modality, s.picture, s.row // layout.expansion if method.query_aware else 0) for s in layout.spans]
        asked = {key: keys.index(key) for key in keys}
        asked = {key: i for key, i in asked.items() if key[0] in method.modality}
        done = select_scoped(method, [replace(views[i], read=reader(method, layout.spans[i])) for i in asked.values()])
        checked = [selection.check() for selection in Selection.on_host(done)]
        found = {
            key: selection if reorder and layout.spans[i].unbroken else selection.sorted()
            for (key, i), selection in zip(asked.items(), checked, strict=True)
        }
        for i, key in enumerate(keys):
            size, earlier = len(views[i].features), chosen[i]
            selection = found.setdefault(key, Selection.prune(torch.arange(size), size))  # not its modality
            chosen[i] = selection if earlier is None else earlier.then(selection)
            if number + 1 < len(methods):
                own = selection.to(embeds.device)
                views[i] = views[i].after(own.anchor, own.apply(views[i].features))
        after = sum(found[key].tokens_out for key in keys)
        width = embeds.shape[-1]
        flops = sum(method.module_flops(one.tokens_in, one.tokens_out, width) for one in checked)
        record.stages.append((method.title, None, before, after, [watch.stop()], flops))
    selections = [selection for selection in chosen if selection is not None]
    record.steps.append((0, selections))
    return selections
