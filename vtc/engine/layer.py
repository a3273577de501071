"""Layers: hooks on the decoder layers, through which methods of the stage `layer` hear and drop tokens.

Before a layer: choose, shorten, and tell it the mask and positions of what is left (`flow.py`). After its attention and
its feed-forward part: measure what a method has asked for (`readings.py`) — there, and in no other layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc import ops
from vtc.engine.attention import LayerView
from vtc.engine.flow import Flow
from vtc.engine.layer_signals import Readings
from vtc.engine.trace import Record
from vtc.engine.versions import cache_of
from vtc.layout import VisualSpan
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method
from vtc.models.decoder import decoder_for
from vtc.models.family import Adapter
from vtc.reports import Stopwatch
from vtc.selection import Selection
from vtc.signals import LAYER_SIGNALS, VisualTokens

TowerReader = Callable[[Method, VisualSpan], Callable[[str], Tensor]]


class Layers:
    """The decoder layers of a model under methods of the stage `layer`; `flow` is the forward in progress."""

    def __init__(self, model: nn.Module, adapter: Adapter, methods: Sequence[LayerMethod]) -> None:
        self.model, self.adapter, self.methods = model, adapter, tuple(methods)
        self.depth = len(adapter.decoder_layers(model))
        self.decoder = decoder_for(adapter.language_model(model))
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
            if isinstance(method.keep, float):
                method.counts(10_000, self.depth)  # refuses a budget that no picture can be held to
        self.flow: Flow | None = None
        self.record = Record()
        self.tower_reader: TowerReader | None = None
        self.raters: Tensor | None = None
        self.deepstack: tuple[list[Tensor], Tensor] | None = None
        self.current = 0  # layer in progress
        self._clear()

    def _clear(self) -> None:
        self.before: dict[int, Readings] = {}  # by the layer they were measured in
        self.history: dict[LayerMethod, Tensor] = {}  # summed transitions, [B, S]
        self.watches: dict[LayerMethod, list[Stopwatch]] = {}  # time spent listening since the last choice
        self.sizes: list[list[int]] = []  # tokens of each span that each layer has seen

    def attach(self) -> list[RemovableHandle]:
        handles: list[RemovableHandle] = []
        for i, layer in enumerate(self.adapter.decoder_layers(self.model)):
            handles.append(layer.register_forward_pre_hook(self._before_layer, with_kwargs=True))
            previous = self._previous(i)
            if previous or self._listeners(i):
                attention = self.decoder.attention(layer)
                handles.append(attention.register_forward_hook(self._after_attention, with_kwargs=True))
            if self._listeners(i):
                handles.append(self.decoder.feed_forward(layer).register_forward_hook(self._after_mlp))
            if self.steps:
                handles.append(layer.register_forward_hook(self._after_layer))
        return handles

    def wants(self, name: str) -> bool:
        return any(name in method.requires() for method in self.methods)

    def begin(self, flow: Flow, record: Record, tower_reader: TowerReader | None) -> None:
        self.flow, self.record, self.tower_reader = flow, record, tower_reader

    def check(self, spans: Sequence[VisualSpan]) -> None:
        """Refuse, before the language model runs, budgets that pictures of this size cannot be held to."""
        for method in self.methods:
            for total in {span.tokens for span in spans if span.modality in method.modality}:
                method.counts(total, self.depth)

    def end(self) -> None:
        self.flow = self.tower_reader = self.raters = self.deepstack = None
        self._clear()

    def _previous(self, layer: int) -> LayerMethod | None:
        """The method that wants to hear the attention of `layer`, to choose before the next one."""
        method, _ = self.steps.get(layer + 1, (None, 0))
        return method if method is not None and method.reads == "previous" else None

    def _listeners(self, layer: int) -> list[LayerMethod]:
        return [m for m in self.methods if "transition" in m.requires() and layer in m.listens(self.depth)]

    # -- hooks -------------------------------------------------------------------------------------------------

    def _before_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flow = self.flow
        if flow is None:
            return None
        i = self.current = self._number(module)
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        changes = flow.for_layer(i, hidden, kwargs)
        if self.steps and flow.spans:
            self.sizes.append([len(where) for where in flow.where])
        if i in self.steps and self._asked(i):
            hidden = self._choose(i, module, hidden, {**kwargs, **(changes or {})})
            self.sizes[-1] = [len(where) for where in flow.where]
            changes = flow.for_layer(i, hidden, kwargs)
        if changes is None:
            return None
        kwargs = {**kwargs, **changes}
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def _after_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        flow = self.flow
        if flow is None or not any(len(where) for where in flow.where):
            return
        i: int = module.layer_idx  # type: ignore[assignment]
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        if listeners := self._listeners(i):
            self._listen(listeners, x, output[0])
        method = self._previous(i)
        if method is not None:
            wanted = tuple(name for name in method.requires() if name in LAYER_SIGNALS)
            watch = Stopwatch(x.device)
            readings = Readings(flow, self._view(i, module, x, kwargs, filled=True), wanted)
            readings.close()
            self.before[i] = readings
            self.watches.setdefault(method, []).append(watch.stop())

    def _after_mlp(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        flow = self.flow
        if flow is not None and any(len(where) for where in flow.where):
            self._listen(self._listeners(self.current), args[0], output)

    def _after_layer(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """DeepStack (Qwen3-VL): adds rows to visual tokens after the first layers, as their number now changes."""
        if self.flow is None or self.deepstack is None:
            return None
        i, (features, mask) = self._number(module), self.deepstack
        if i >= len(features):
            return None
        output = output.clone()
        here = mask.to(output.device)
        output[here] = output[here] + features[i].to(output)
        return output

    # -- listening ---------------------------------------------------------------------------------------------

    def _listen(self, methods: list[LayerMethod], x: Tensor, out: Tensor) -> None:
        flow = self.flow
        assert flow is not None
        watch = Stopwatch(x.device)
        ratio, cosine = ops.transition(x, out)
        valid = flow.part.valid
        real = torch.ones_like(ratio, dtype=torch.bool) if valid is None else valid.to(ratio.device)
        for method in methods:
            made = method.transition(ratio, cosine, real).to(flow.device)
            self.history[method] = self.history[method] + made if method in self.history else made
        self.watches.setdefault(methods[0], []).append(watch.stop())

    def _view(self, i: int, attention: nn.Module, x: Tensor, kwargs: dict[str, Any], filled: bool) -> LayerView:
        flow = self.flow
        assert flow is not None
        cache = cache_of(kwargs)
        layer = None if cache is None or i >= len(cache.layers) else cache.layers[i]
        there = layer is not None and layer.is_initialized and layer.keys.numel()
        held = self.decoder.cached_keys(attention, layer) if there else None
        return LayerView(self.decoder, attention, x, kwargs["position_embeddings"], held, filled, flow.seen_keys(i))

    # -- choosing ----------------------------------------------------------------------------------------------

    def _counts(self, number: int) -> tuple[int, ...]:
        """Tokens of span `number` that the layers before the one in progress have seen."""
        return tuple(sizes[number] for sizes in self.sizes[:-1])

    def _asked(self, i: int) -> list[int]:
        """Numbers of the spans that the method before layer `i` is to choose from."""
        flow, (method, _) = self.flow, self.steps[i]
        assert flow is not None
        return [
            number
            for number, span in enumerate(flow.spans)
            if len(flow.where[number])
            and span.modality in method.modality
            and method.due(span.tokens, self._counts(number), self.depth)
        ]

    def _choose(self, i: int, module: Any, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        flow, (method, step) = self.flow, self.steps[i]
        assert flow is not None
        watch, before = Stopwatch(hidden.device), sum(map(len, flow.where))
        if method.reads == "previous":
            readings = self.before.pop(i - 1)
        else:
            normed = self.decoder.normed(module, hidden) if self._hears(method) else hidden
            readings = Readings(flow, self._view(i, self.decoder.attention(module), normed, kwargs, filled=False))
        asked = self._asked(i)
        views = [
            VisualTokens(
                features=hidden[flow.spans[number].row, flow.where[number].to(hidden.device)],
                span=flow.spans[number],
                index=flow.index[number],
                read=self._reader(method, readings, number, hidden),
                step=step,
                depth=self.depth,
                counts=self._counts(number),
            )
            for number in asked
        ]
        found = dict(zip(asked, Selection.on_host(method.select_many(views)), strict=True))
        selections = []
        for number, span in enumerate(flow.spans):
            selection = found.get(number)
            if selection is None:  # everything has gone, or it is not for this method
                size = len(flow.where[number])
                selections.append(Selection.prune(torch.arange(size), size))
                continue
            selection = selection.check(may_be_empty=method.may_drop_all)
            selections.append(selection if flow.compact and span.unbroken else selection.sorted())
        if not all(selection.is_identity for selection in selections):  # or there would be two copies of everything
            hidden = flow.shorten(hidden, selections, i)
            plan = flow.part.plan
            assert plan is not None
            self.history = {m: x.gather(1, plan.index) for m, x in self.history.items()}
            if self.deepstack is not None:
                features, _ = self.deepstack
                self.deepstack = ([plan.merged(x) if n >= i else x for n, x in enumerate(features)], plan.visual())
        watches = [*self.watches.pop(method, []), watch.stop()]
        self.record.note_step(method.title, i, before, sum(map(len, flow.where)), watches, selections)
        return hidden

    def _hears(self, method: LayerMethod) -> bool:
        return any(name in LAYER_SIGNALS and name != "transition" for name in method.requires())

    def _reader(self, method: LayerMethod, readings: Readings, number: int, hidden: Tensor) -> Callable[[str], Tensor]:
        flow, tower = self.flow, self.tower_reader
        assert flow is not None
        assert tower is not None
        span = flow.spans[number]

        def read(name: str) -> Tensor:
            if name not in method.requires():
                raise ValueError(f"{method.title} reads the signal {name!r} without listing it in `needs`.")
            if name not in LAYER_SIGNALS:
                return tower(method, span)(name)
            if name == "transition":
                return self.history[method][span.row, flow.where[number]]
            after = flow.text_after[span.row]
            if name == "text_states":
                return hidden[span.row, after[after >= 0].to(hidden.device)]
            if name == "text_raters":
                assert self.raters is not None
                return self.raters[span.row][after >= 0]
            return readings.of(name, number)

        return read

    def _number(self, layer: Any) -> int:
        return self.decoder.attention(layer).layer_idx
