"""Active: while decoding, the later layers attend to a part of the cached visual tokens; the others rest beside it.

Methods of the stage `cache` that drop nothing (`ActiveMethod`). In a forward of one token the layer before the method's
first one attends to everything, and its attention says which tokens the layers behind it will read; what they do not
read is set aside, and recalled when the choice is made anew or a forward of several tokens comes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.budget import layer_number
from vtc.engine.attention import LayerView
from vtc.engine.flow import Flow
from vtc.engine.kv_cache import CompressedLayer
from vtc.engine.kv_evict import KIND, KINDS, SLOT, Evictor, check_use
from vtc.engine.trace import Record
from vtc.engine.versions import cache_of
from vtc.methods.base.cache import ActiveMethod
from vtc.models.family import Adapter

#: per row of the deciding layer: the attention it received in the last step, whether it is active
HEARD, ACTIVE = "heard", "active"


class Activator:
    """The KV cache of a model under an `ActiveMethod`, or under none."""

    def __init__(self, model: nn.Module, adapter: Adapter, evictor: Evictor, methods: Sequence[ActiveMethod]) -> None:
        self.model, self.adapter, self.evictor, self.methods = model, adapter, evictor, tuple(methods)
        self.flow: Flow | None = None
        self.record = Record()
        if not methods:
            return
        if len(methods) > 1:
            raise ValueError(f"{methods[0].title} and {methods[1].title} both say which cached tokens are active.")
        for other in evictor.methods:
            if other.every:
                raise ValueError(
                    f"{other.title} with every= drops cached tokens while decoding, where {methods[0].title} sets them "
                    "aside; leave one of them out."
                )
        self.method = methods[0]
        self.depth = len(adapter.decoder_layers(model))
        self.first = layer_number(self.method.first, self.depth, self.method.title)

    def attach(self) -> list[RemovableHandle]:
        if not self.methods:
            return []
        layer = self.adapter.decoder_layers(self.model)[self.first - 1]
        attention = self.evictor.decoder.attention(layer)
        return [attention.register_forward_hook(self._after_attention, with_kwargs=True)]

    def check(self, given: dict[str, Any]) -> None:
        """Refuse, before any compute, a forward that leaves no cache."""
        check_use(self.methods, self.adapter.language_model(self.model), given)

    def before(self, cache: Any, step: bool) -> None:
        """Recall everything, unless this is a decode step that a method is to decide on."""
        if self.methods and step:
            return
        for layer in getattr(cache, "layers", ()):
            if isinstance(layer, CompressedLayer):
                layer.recall()
                layer.tags.pop(HEARD, None)
                layer.tags.pop(ACTIVE, None)

    def begin(self, flow: Flow, record: Record) -> None:
        self.flow, self.record = flow, record

    def end(self) -> None:
        self.flow = None

    def after(self, cache: Any) -> None:
        """After a forward with pictures: note what every row of the cache is."""
        flow = self.flow
        if flow is None or not self.methods or not flow.spans:
            return
        for i in range(self.first - 1, self.depth):
            layer = self.evictor.tagged(cache, i)
            assert layer.keys is not None
            held = layer.keys.shape[2]
            if layer.prompt < held:  # nothing of this forward was dropped: the cache is as it was, and longer
                layer.mask, layer.prompt = flow.seen_keys(i), held

    def _after_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        flow, cache = self.flow, cache_of(kwargs)
        if flow is None or flow.spans or flow.length > 1 or cache is None:
            return
        layer = cache.layers[self.first - 1]
        if not isinstance(layer, CompressedLayer) or KIND not in layer.tags:
            return
        visual = _among(layer, self.method.modality)
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        seen = flow.seen_keys(self.first - 1)
        decoder = self.evictor.decoder
        held = decoder.cached_keys(module, layer)
        view = LayerView(decoder, module, x, kwargs["position_embeddings"], held, True, seen)
        heard = view.rows(flow.last)[:, 0, : layer.prompt] * visual  # [B, prompt]
        before = layer.tags.get(HEARD)
        layer.tags[HEARD] = heard
        stale = visual.any(dim=1)
        if before is not None:
            stale = stale & self.method.stale(before.to(heard.device), heard)
        anew = int(stale.sum())
        if anew:
            active = self.method.active(heard, visual)
            if before is not None:
                active = torch.where(stale[:, None], active, layer.tags[ACTIVE].to(active.device))
            layer.tags[ACTIVE] = active
            self._set_aside(cache, layer, active)
        self.record.note_decode(self.method.title, self.first, anew > 0)

    def _set_aside(self, cache: Any, decider: CompressedLayer, active: Tensor) -> None:
        """Let the layers from `first` on hold their text and the tokens `active` [B, prompt] of the deciding layer."""
        flow = self.flow
        assert flow is not None
        wanted = torch.zeros(len(active), flow.seen + 1, dtype=torch.long, device=active.device)
        wanted = wanted.scatter_add(1, decider.tags[SLOT].to(active.device), active.long()) > 0
        layers = cache.layers[self.first :]
        keeps: dict[Hashable, Tensor] = {}  # layers of one state hold the same rows
        states = []
        for layer in layers:
            layer.recall()
            states.append(layer.state)
            if layer.state not in keeps:
                slot, visual = layer.tags[SLOT].to(active.device), _among(layer, self.method.modality)
                keeps[layer.state] = _held(layer) & (~visual | wanted.gather(1, slot)).to(visual.device)
        sizes = torch.stack([keep.sum(dim=1).to(active.device) for keep in keeps.values()]).tolist()
        groups: dict[Hashable, object] = {}
        for state, counts in zip(keeps, sizes, strict=True):
            # without padding, layers that hold equally many rows at equal positions can share masks
            groups[state] = object() if len(set(counts)) > 1 else None
        widths = {state: max(counts) for state, counts in zip(keeps, sizes, strict=True)}
        for i, (layer, state) in enumerate(zip(layers, states, strict=True), start=self.first):
            group = groups[state]
            layer.set_aside(keeps[state], widths[state], group is not None, group or ("active", id(layer.shift)))
            flow.states[i] = layer.state
        video = int(_among(decider, self.method.modality).sum())
        self.record.active = (int(active.sum()), video)


def _held(layer: CompressedLayer) -> Tensor:
    """BoolTensor [B, prompt]: rows of the prompt that are no padding."""
    tag = layer.tags[SLOT]
    return torch.ones_like(tag, dtype=torch.bool) if layer.mask is None else layer.mask.to(tag.device)


def _among(layer: CompressedLayer, modality: tuple[str, ...]) -> Tensor:
    """BoolTensor [B, prompt]: rows that are visual tokens of one of these kinds."""
    kinds = torch.tensor([KINDS.index(name) for name in modality], device=layer.tags[KIND].device)
    return torch.isin(layer.tags[KIND], kinds) & _held(layer)
