"""Stage `input`: tokens go between projector and language model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from vtc.engine.flow import Flow
from vtc.engine.per_crop import select_scoped
from vtc.engine.stage import Facts, Run, Stage, checked, identical, in_order
from vtc.layout import alone
from vtc.methods.base.method import Method
from vtc.reports import Stopwatch
from vtc.selection import Selection
from vtc.signals import VisualTokens


class InputRun(Run):
    def enter(self, kwargs: dict[str, Any]) -> None:
        flow = self.flow
        if not flow.spans:
            return
        embeds: Tensor = kwargs["inputs_embeds"]
        selections = self._choose(flow, embeds)
        flow.found = None  # the visual tokens are not held twice
        if identical(selections):
            return
        kwargs["inputs_embeds"] = flow.shorten(embeds, selections, 0)
        plan = flow.part.plan
        if self.forward.companions is not None and plan is not None:
            kwargs["inputs_embeds"] = self.forward.companions.enter(plan, kwargs["inputs_embeds"])

    def _choose(self, flow: Flow, embeds: Tensor) -> list[Selection]:
        """One Selection per span, of all methods one after another, among embeds [B, L, D], features in place.

        Spans that show the same picture share one choice: rows of a beam search, several questions about one picture
        (unless the method listens to the question).
        """
        assert flow.layout is not None
        assert flow.found is not None
        spans, methods, trace = flow.spans, self.stage.methods, self.forward.trace
        company = alone(spans)
        tokens = zip(spans, flow.found.places.split(flow.found.features), flow.index, company, strict=True)
        views = [
            VisualTokens(own, span, index, self.forward.tower(methods[0], span), depth=self.stage.depth, alone=single)
            for span, own, index, single in tokens
        ]
        chosen: list[Selection | None] = [None] * len(views)
        for number, method in enumerate(methods):
            watch, before = Stopwatch(embeds.device), sum(len(view.features) for view in views)
            keys = [
                (
                    s.modality,
                    s.picture,
                    s.row // flow.layout.expansion if method.query_aware else 0,
                    method.heeds_others and single,
                )
                for s, single in zip(spans, company, strict=True)
            ]
            asked = {key: keys.index(key) for key in keys if key[0] in method.modality}
            done = select_scoped(
                method, [replace(views[i], read=self.forward.tower(method, spans[i])) for i in asked.values()]
            )
            done = checked(method, done, [len(views[i].features) for i in asked.values()])
            done = in_order(
                [one.to(embeds.device) for one in done], [flow.compact and spans[i].unbroken for i in asked.values()]
            )
            found = dict(zip(asked, done, strict=True))
            for i, key in enumerate(keys):
                size, earlier = len(views[i].features), chosen[i]
                if key not in found:  # not its modality
                    found[key] = Selection.identity(size, embeds.device)
                selection = found[key]
                chosen[i] = selection if earlier is None else earlier.then(selection)
                if number + 1 < len(methods):
                    views[i] = views[i].after(selection.anchor, selection.apply(views[i].features))
            after = sum(found[key].tokens_out for key in keys)
            width = embeds.shape[-1]
            flops = sum(method.module_flops(one.tokens_in, one.tokens_out, width) for one in done)
            trace.note_stage(method.title, None, before, after, [watch.stop()], flops)
        selections = [selection for selection in chosen if selection is not None]
        trace.steps.append((0, [selection.detached() for selection in selections]))
        return selections


class InputStage(Stage):
    name, order, run = "input", 20, InputRun
    uneven = False

    def __init__(self, facts: Facts, methods: list[Method]) -> None:
        super().__init__(facts, methods)
        self.depth = facts.depth
        for later in self.methods[1:]:
            if "grid" in later.requires():
                raise ValueError(f"{later.title} needs the whole grid: put it first among the methods.")
