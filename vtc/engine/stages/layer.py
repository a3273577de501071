"""Stage `layer`: tokens go between decoder layers.

Before a layer: choose, and shorten its hidden states. After its attention and its feed-forward part: measure what a
method has asked for (`layer_signals.py`) — there, and in no other layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc import ops
from vtc.engine.attention import LayerView, check_attending, reads_attention
from vtc.engine.context import uncompiled
from vtc.engine.forward import Forward
from vtc.engine.kv_cache import rows_held
from vtc.engine.layer_signals import Door, LayerSignals
from vtc.engine.stage import Facts, Run, Stage, checked, identical, in_order
from vtc.engine.versions import cache_of
from vtc.layout import VisualSpan, alone
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method
from vtc.reports import Stopwatch
from vtc.selection import Selection
from vtc.signals import SIGNALS, VisualTokens, of_place


class LayerRun(Run):
    """What has been heard, and how many tokens each layer saw, in one forward."""

    stage: LayerStage

    def __init__(self, stage: LayerStage, forward: Forward) -> None:
        super().__init__(stage, forward)
        self.before: dict[int, LayerSignals] = {}  # by the layer they were measured in
        self.history: dict[LayerMethod, Tensor] = {}  # summed transitions, [B, S]
        self.watches: dict[LayerMethod, list[Stopwatch]] = {}  # time spent listening since the last choice
        self.sizes: list[list[int]] = []  # tokens of each span that each layer has seen
        self.kept: dict[str, Tensor] = {}  # signals that were measured where the language model begins

    def measure_at_door(self, embeds: Tensor) -> None:
        """Signals of the tokens [B, L, D] that come in, before any stage drops some."""
        names = {name for method in self.stage.methods for name in of_place(method.requires(), "layer")}
        measured = {name: door for name in names if (door := SIGNALS[name].door) is not None}
        if self.flow.spans and measured:
            here = Door(embeds, self.flow.visual_and_text()[0], self.flow.text_after)
            self.kept = {name: door(here) for name, door in measured.items()}

    # -- listening ---------------------------------------------------------------------------------------------

    @property
    def anything(self) -> bool:
        """Whether any visual token is left."""
        return any(len(where) for where in self.flow.where)

    def listen(self, methods: list[LayerMethod], x: Tensor, out: Tensor) -> None:
        """A module made `out` [B, S, D] of `x`: add its transition to the methods' history."""
        watch, x, out = Stopwatch(x.device), x.detach(), out.detach()
        ratio, cosine = ops.transition(x, out)
        valid = self.flow.part.valid
        real = torch.ones_like(ratio, dtype=torch.bool) if valid is None else valid.to(ratio.device)
        for method in methods:
            made = method.transition(ratio, cosine, real).to(self.flow.device)
            self.history[method] = self.history[method] + made if method in self.history else made
        self.watches.setdefault(methods[0], []).append(watch.stop())

    def view(self, i: int, attention: nn.Module, x: Tensor, kwargs: dict[str, Any], filled: bool) -> LayerView:
        """The attention of layer `i` over normed hidden states x; `filled`: its cache holds their keys already."""
        cache, sight = cache_of(kwargs), self.flow.sight
        layer = None if cache is None or i >= len(cache.layers) else cache.layers[i]
        if filled and sight.cuts(layer):  # it has let go of what the attention has just seen
            layer, filled = None, False
        decoder = self.stage.facts.decoder
        there = layer is not None and layer.is_initialized and (layer.keys.numel() or getattr(layer, "store", None))
        held = decoder.cached_keys(attention, rows_held(layer)) if there else None
        seen, sees = self.flow.seen_keys(i), sight.range(i)
        return LayerView(decoder, attention, x, kwargs.get("position_embeddings"), held, filled, seen, sees)

    def measure(self, i: int, method: LayerMethod, attention: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> None:
        """The layer before the one where `method` chooses has attended: read what it will want to know."""
        watch = Stopwatch(x.device)
        signals = LayerSignals(self.flow, self.view(i, attention, x.detach(), kwargs, filled=True))
        with torch.no_grad():
            signals.measure(tuple(n for n in of_place(method.requires(), "layer") if SIGNALS[n].attention))
        self.before[i] = signals
        self.watches.setdefault(method, []).append(watch.stop())

    # -- choosing ----------------------------------------------------------------------------------------------

    def counts(self, number: int) -> tuple[int, ...]:
        """Tokens of span `number` that the layers before the one in progress have seen."""
        return tuple(sizes[number] for sizes in self.sizes[:-1])

    def asked(self, i: int) -> list[int]:
        """Numbers of the spans that the method before layer `i` is to choose from."""
        method, _ = self.stage.steps[i]
        return [
            number
            for number, span in enumerate(self.flow.spans)
            if len(self.flow.where[number])
            and span.modality in method.modality
            and method.due(span.tokens, self.counts(number), self.stage.depth)
        ]

    def choose(self, i: int, module: Any, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Hidden states [B, S, D] before layer `i` -> what its method leaves of them."""
        flow, (method, _) = self.flow, self.stage.steps[i]
        watch, before = Stopwatch(hidden.device), sum(map(len, flow.where))
        with torch.no_grad():  # a choice has no gradient, and what it computes is not computed again for any
            found = self._found(i, module, hidden.detach(), kwargs)
        for number, where in enumerate(flow.where):
            if number not in found:  # everything has gone, or it is not for this method
                found[number] = Selection.identity(len(where), flow.device)
        own = [flow.compact and span.unbroken for span in flow.spans]
        selections = in_order([found[number] for number in range(len(own))], own)
        if not identical(selections):  # or there would be two copies of everything
            hidden = flow.shorten(hidden, selections, i)
            plan = flow.part.plan
            assert plan is not None
            self.history = {m: x.gather(1, plan.index) for m, x in self.history.items()}
            if self.forward.companions is not None:
                self.forward.companions.shorten(plan, i)
        watches = [*self.watches.pop(method, []), watch.stop()]
        self.forward.trace.note_stage(method.title, i, before, sum(map(len, flow.where)), watches)
        self.forward.trace.steps.append((i, [selection.detached() for selection in selections]))
        return hidden

    def _found(self, i: int, module: Any, hidden: Tensor, kwargs: dict[str, Any]) -> dict[int, Selection]:
        """What the method before layer `i` selects of each span that it is asked about."""
        flow, (method, step), facts = self.flow, self.stage.steps[i], self.stage.facts
        if method.reads == "previous":
            signals = self.before.pop(i - 1)
        else:
            view = None
            if reads_attention(method):
                normed = facts.decoder.normed(module, hidden)
                view = self.view(i, facts.decoder.attention(module), normed, kwargs, filled=False)
            signals = LayerSignals(flow, view)
        signals.states, signals.kept, signals.history = hidden, self.kept, self.history.get(method)
        asked = self.asked(i)
        assert flow.places is not None
        row, slot = flow.places.at.to(hidden.device)
        features, company = flow.places.split(hidden[row, slot]), alone(flow.spans)
        views = [
            VisualTokens(
                features=features[number],
                span=flow.spans[number],
                index=flow.index[number],
                read=LayerReader(
                    method, signals, number, self.forward.tower(method, flow.spans[number]), hidden.device
                ),
                step=step,
                layer=i,
                depth=self.stage.depth,
                counts=self.counts(number),
                alone=company[number],
            )
            for number in asked
        ]
        sizes = [len(view.features) for view in views]
        found = checked(method, method.select_many(views), sizes, method.may_drop_all)
        return {number: selection.to(flow.device) for number, selection in zip(asked, found, strict=True)}


@dataclass(frozen=True, eq=False)
class LayerReader:
    """Reads signals of a decoder layer, and what the tower says, for one span or for all of a batch together.

    Attributes:
        span: its number; None = all, which are equally large.
    """

    method: LayerMethod
    signals: LayerSignals
    span: int | None
    tower: Callable[[str], Tensor]
    device: torch.device

    def __call__(self, name: str) -> Tensor:
        if name in SIGNALS and SIGNALS[name].place == "layer" and name in self.method.requires():
            return self.signals.of(name, self.span).to(self.device)
        return self.tower(name)

    @staticmethod
    def stack(readers: Sequence[LayerReader]) -> LayerReader | None:
        """A reader of all spans of the batch; None where these are not all, or the tower is asked, too."""
        one = readers[0]
        names = one.method.requires()
        layered = all(SIGNALS[name].place == "layer" and SIGNALS[name].together for name in names)
        if not layered or len(readers) < len(one.signals.flow.spans) or not one.signals.even(names):
            return None
        return replace(one, span=None)


class LayerStage(Stage):
    name, order, run = "layer", 30, LayerRun
    base = "LayerMethod"

    @classmethod
    def takes(cls, method: Method) -> bool:
        return isinstance(method, LayerMethod) and method.stage == cls.name

    def __init__(self, facts: Facts, methods: list[LayerMethod]) -> None:
        super().__init__(facts, methods)
        self.depth = facts.depth
        if facts.decoder.stacked:
            raise ValueError(
                f"{self.methods[0].title} drops tokens between decoder layers, and those of this language model hand "
                "on several states of each token, which are not supported: use a method that acts before them, such as "
                "divprune."
            )
        self.steps: dict[int, tuple[LayerMethod, int]] = {}  # layer -> what chooses before it, and its which step
        for method in self.methods:
            for step, layer in enumerate(method.steps(self.depth)):
                if layer in self.steps:
                    other = self.steps[layer][0]
                    raise ValueError(
                        f"{other.title} and {method.title} both act before decoder layer {layer}; "
                        "give one of them other layers=."
                    )
                self.steps[layer] = (method, step)
            check_attending(method, facts.language_model, self._read(method))
            self._check_shared(method)
            if isinstance(method.keep, float):
                method.counts(10_000, self.depth)  # refuses a budget that no picture can be held to

    def _read(self, method: LayerMethod) -> set[int]:
        """The decoder layers whose attention the method reads or listens to."""
        heard, steps = method.reads == "previous", method.steps(self.depth)
        read = {i - heard for i in steps} if heard or reads_attention(method) else set[int]()
        return read | ({*method.listens(self.depth)} if "transition" in method.requires() else set())

    def _check_shared(self, method: LayerMethod) -> None:
        """Refuse steps behind a layer whose keys later ones read again: there, what is dropped would still be seen."""
        holders = self.facts.decoder.holders(self.facts.language_model.config)
        last = min((held for i, held in enumerate(holders) if held != i), default=self.depth)
        late = [layer for layer in method.steps(self.depth) if layer > last]
        if late:
            raise ValueError(
                f"{method.title} drops tokens before layer {late[0]}, and layers of this language model from "
                f"{self.depth - sum(held != i for i, held in enumerate(holders))} on see those of layer {last} again: "
                f"give it layers= of at most {last}."
            )

    def attach(self) -> Iterator[RemovableHandle]:
        decoder = self.facts.decoder
        for i, layer in enumerate(self.facts.layers):
            yield layer.register_forward_pre_hook(partial(self._before_layer, i), with_kwargs=True)
            listeners = self._listeners(i)
            if self._hears(i) is not None or listeners:
                hook = partial(self._after_attention, i)
                yield decoder.attention(layer).register_forward_hook(hook, with_kwargs=True)
            if listeners:
                yield decoder.feed_forward(layer).register_forward_hook(partial(self._after_feed_forward, i))

    def begin(self, forward: Forward, kwargs: dict[str, Any]) -> LayerRun:
        run = LayerRun(self, forward)
        embeds: Tensor = kwargs["inputs_embeds"]
        run.measure_at_door(forward.companions.entering(embeds) if forward.companions else embeds)
        return run

    def first_inside(self) -> int | None:
        return min(self.steps, default=None)

    def check_spans(self, spans: Sequence[VisualSpan]) -> None:
        """Refuse budgets that pictures of this size cannot be held to."""
        for method in self.methods:
            for total in {span.tokens for span in spans if span.modality in method.modality}:
                method.counts(total, self.depth)

    def _hears(self, layer: int) -> LayerMethod | None:
        """The method that wants to hear the attention of `layer`, to choose before the next one."""
        method, _ = self.steps.get(layer + 1, (None, 0))
        return method if method is not None and method.reads == "previous" else None

    def _listeners(self, layer: int) -> list[LayerMethod]:
        return [m for m in self.methods if "transition" in m.requires() and layer in m.listens(self.depth)]

    # -- hooks -------------------------------------------------------------------------------------------------

    @uncompiled
    def _before_layer(self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward = Forward.of(self, kwargs)
        run: LayerRun | None = None if forward is None else forward.runs.get(self)  # type: ignore[assignment]
        if forward is None or run is None or not run.flow.spans:
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if forward.done:  # computed again, for its gradients
            short = run.flow.shorten_again(hidden, i)
        else:
            run.sizes.append([len(where) for where in run.flow.where])
            if i not in self.steps or not run.asked(i):
                return None
            short = run.choose(i, module, hidden, {**kwargs, **(run.flow.for_layer(i, hidden, kwargs) or {})})
            run.sizes[-1] = [len(where) for where in run.flow.where]
        return ((short, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": short})

    def _heard(self) -> LayerRun | None:
        """The run of the forward in progress, if there is anything to listen to."""
        forward = Forward.of(self)
        run: LayerRun | None = None if forward is None else forward.runs.get(self)  # type: ignore[assignment]
        return run if run is not None and not run.forward.done and run.anything else None

    @uncompiled
    def _after_attention(
        self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        run = self._heard()
        if run is None:
            return
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        if listeners := self._listeners(i):
            run.listen(listeners, x, output[0])
        if (method := self._hears(i)) is not None:
            run.measure(i, method, module, x, kwargs)

    @uncompiled
    def _after_feed_forward(self, i: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run = self._heard()
        if run is not None:
            made = output[0] if isinstance(output, tuple) else output  # experts say how they were chosen, too
            run.listen(self._listeners(i), args[0], made)
