"""Evict: stage `cache` — rows of the KV cache are dropped, layer by layer, and their memory is given back.

Every row of a touched layer carries tags (where it stood, which picture it belongs to), which follow it through beam
search and later evictions; so do the records that methods keep of the attention it received.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.budget import layer_number
from vtc.engine.attention import LayerView
from vtc.engine.flow import Flow, padded
from vtc.engine.kv_cache import CompressedLayer
from vtc.engine.trace import Eviction, Record
from vtc.engine.versions import cache_of
from vtc.layout import single_span
from vtc.methods.base.cache import CacheMethod
from vtc.models.decoder import decoder_for
from vtc.models.family import Adapter
from vtc.reports import Stopwatch
from vtc.signals import VisualTokens

BLOCK = 64  # queries listened to at a time
#: per row of a cache layer: its place in the conversation, its picture (-1 = text), that picture's number of tokens,
#: and what it is a part of, an index into KINDS
SLOT, OWNER, TOTAL, KIND = "slot", "owner", "total", "kind"
KINDS = ("text", "image", "video")


class Evictor:
    """The KV cache of a model under methods of the stage `cache`."""

    def __init__(self, model: nn.Module, adapter: Adapter, methods: Sequence[CacheMethod]) -> None:
        self.model, self.adapter, self.methods = model, adapter, tuple(methods)
        self.depth = len(adapter.decoder_layers(model))
        self.decoder = decoder_for(adapter.language_model(model))
        self.first = [0 if m.first == 0 else layer_number(m.first, self.depth, m.title) for m in self.methods]
        self.flow: Flow | None = None
        self.record = Record()
        self.heard: dict[tuple[int, int], Tensor] = {}  # (method, layer) -> gains of this forward, [B, K]
        self.watches: dict[int, list[Stopwatch]] = {}  # method -> time spent listening in this forward

    def attach(self) -> list[RemovableHandle]:
        if all(method.queries() == 0 for method in self.methods):
            return []
        layers = self.adapter.decoder_layers(self.model)
        attentions = [self.decoder.attention(layer) for layer in layers]
        return [x.register_forward_hook(self._after_attention, with_kwargs=True) for x in attentions]

    def check(self, given: dict[str, Any]) -> None:
        """Refuse, before any compute, a forward that leaves no cache."""
        check_use(self.methods, self.adapter.language_model(self.model), given)

    def begin(self, flow: Flow, record: Record) -> None:
        self.flow, self.record = flow, record

    def end(self) -> None:
        self.flow = None
        self.heard.clear()
        self.watches.clear()

    # -- listening ---------------------------------------------------------------------------------------------

    def _after_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        flow, cache = self.flow, cache_of(kwargs)
        if flow is None or cache is None:
            return
        i: int = module.layer_idx  # type: ignore[assignment]
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        seen = flow.seen_keys(i)
        held = self.decoder.cached_keys(module, cache.layers[i])
        view = LayerView(self.decoder, module, x, kwargs["position_embeddings"], held, True, seen)
        part = flow.parts[flow.number_of_part(i)]
        real = torch.ones_like(part.slot, dtype=torch.bool) if part.valid is None else part.valid
        for number, method in enumerate(self.methods):
            last = method.queries()
            if last == 0 or i < self.first[number] or not (flow.spans or method.every):
                continue
            asked = real if last is None else real & (real.flip(1).cumsum(dim=1).flip(1) <= last)
            watch = Stopwatch(x.device)
            self.heard[number, i] = self._listen(method, view, padded(asked))
            self.watches.setdefault(number, []).append(watch.stop())

    @staticmethod
    def _listen(method: CacheMethod, view: LayerView, at: Tensor) -> Tensor:
        keys = view.keys.shape[2]
        before = torch.arange(keys, device=at.device) if view.seen is None else view.seen.cumsum(dim=1) - 1
        before = before.expand(len(at), -1) + 1  # [B, K], real keys up to each one
        heard = torch.zeros(len(at), keys, device=at.device)
        for part in at.split(BLOCK, dim=1):
            visible = torch.where(part >= 0, before.gather(1, (part + view.past).clamp(min=0)), 0)
            heard += method.gain(view.rows(part), visible)
        return heard

    # -- evicting ----------------------------------------------------------------------------------------------

    def evict(self, cache: Any) -> None:
        """Drop what the methods that are due do not keep."""
        flow = self.flow
        if flow is None or not self.methods:
            return
        prefill, zero = bool(flow.spans), cache.layers[0]
        age = 0 if prefill else getattr(zero, "age", 0) + 1
        if isinstance(zero, CompressedLayer):
            zero.age = age
        due = [n for n, m in enumerate(self.methods) if prefill or (m.every and age % m.every == 0)]
        for (number, i), heard in self.heard.items():
            self._remember(cache, number, i, heard)
        if not due:
            return
        layers = [self.tagged(cache, i) for i in range(self.depth)]
        for number in due:
            method = self.methods[number]
            watch, before = Stopwatch(flow.device), [int((x.tags[OWNER] >= 0).sum()) for x in layers]
            for i in range(self.first[number], self.depth):
                self._evict_layer(i, layers[i], method, number)
            if prefill:
                after = [int((x.tags[OWNER] >= 0).sum()) for x in layers]
                means = round(sum(before) / self.depth), round(sum(after) / self.depth)
                watches = [*self.watches.get(number, []), watch.stop()]
                self.record.stages.append((method.title, self.depth, *means, watches, 0))
        if prefill:
            self.record.cached = [_real(x).sum(dim=1) for x in layers]

    def _remember(self, cache: Any, number: int, i: int, heard: Tensor) -> None:
        """Add what was heard in this forward to the record of a layer's rows."""
        layer, name = self._compressed(cache, i), f"record {number}"
        before = layer.tags.get(name)
        if before is not None:
            heard[:, : before.shape[1]] += before.to(heard.device)
        layer.tags[name] = heard

    def _compressed(self, cache: Any, i: int) -> CompressedLayer:
        """Layer `i` of the cache; a layer that has lost nothing so far becomes one that can."""
        flow, layer = self.flow, cache.layers[i]
        assert flow is not None
        if not isinstance(layer, CompressedLayer):
            visible = flow.visible(i, flow.parts[flow.number_of_part(i)])
            layer = cache.layers[i] = CompressedLayer.of(layer, 0, visible, None, None)
        return layer

    def tagged(self, cache: Any, i: int) -> CompressedLayer:
        """Layer `i` of the cache, with tags for the rows that this forward has added."""
        flow, layer = self.flow, self._compressed(cache, i)
        assert flow is not None
        assert layer.keys is not None
        part = flow.parts[flow.number_of_part(i)]
        held = layer.keys.shape[2]
        earlier = held - part.width
        known = layer.tags.get(SLOT)
        if known is None or known.shape[1] < earlier:  # rows of forwards without this engine: text, for all we know
            start = 0 if known is None else known.shape[1]
            slot = torch.arange(start, earlier, device=flow.device).expand(flow.rows, -1) + layer.dropped
            _extend(layer, slot, torch.full_like(slot, -1), torch.zeros_like(slot), torch.zeros_like(slot))
            known = layer.tags[SLOT]
        if not flow.spans and (seen := flow.seen_keys(i)) is not None:  # a later turn may have padding of its own
            layer.mask, layer.prompt = seen, held
        if known.shape[1] < held:
            owner = torch.full((flow.rows, flow.length), -1, device=flow.device)
            total, kind = torch.zeros_like(owner), torch.zeros_like(owner)
            offset = int(layer.tags[OWNER].amax()) + 1 if known.numel() else 0
            for number, span in enumerate(flow.spans):
                where = span.index.to(flow.device)
                owner[span.row, where], total[span.row, where] = offset + number, span.tokens
                kind[span.row, where] = KINDS.index(span.modality)
            _extend(layer, flow.seen + part.slot, *(tag.gather(1, part.slot) for tag in (owner, total, kind)))
        return layer

    def _evict_layer(self, i: int, layer: CompressedLayer, method: CacheMethod, number: int) -> None:
        real = _real(layer)
        keep = real.clone()
        for row in range(len(real)):
            owner = layer.tags[OWNER][row]
            units = owner.unique().tolist() if method.scope == "visual" else [None]
            for unit in units:
                if unit == -1:
                    continue
                where = (real[row] if unit is None else real[row] & (owner == unit)).nonzero().squeeze(1)
                if not len(where):
                    continue
                if unit is not None and KINDS[int(layer.tags[KIND][row, where[0]])] not in method.modality:
                    continue
                if unit is None:  # all that the row has said so far
                    slots = layer.tags[SLOT][row, where]
                    total = int(slots.max() - slots.min()) + 1
                else:
                    total = int(layer.tags[TOTAL][row, where[0]])
                tokens = VisualTokens(
                    features=torch.empty(len(where), 0, device=where.device),
                    span=single_span(max(total, len(where)), None),
                    index=torch.arange(len(where), device=where.device),
                    read=self._reader(method, number, i, layer, row, where),
                    depth=self.depth,
                )
                chosen = method.select(tokens).check(may_be_empty=method.may_drop_all)
                keep[row, where] = False
                keep[row, where[chosen.anchor]] = True
        slots = [layer.tags[SLOT][row][real[row] & ~keep[row]].clone() for row in range(len(real))]
        if any(map(len, slots)):
            self.record.evictions.append(Eviction(i, layer.get_seq_length(), slots))
            layer.evict(keep)

    def _reader(
        self, method: CacheMethod, number: int, i: int, layer: CompressedLayer, row: int, where: Tensor
    ) -> Callable[[str], Tensor]:
        def read(name: str) -> Tensor:
            if name not in method.requires():
                raise ValueError(f"{method.title} reads the signal {name!r} without listing it in `needs`.")
            if name == "attention_record":
                return layer.tags[f"record {number}"][row, where]
            if name == "survives":
                return self._survivors()[row][layer.tags[SLOT][row, where]]
            raise ValueError(f"{method.title} asks for {name!r}, which is not known of cached tokens.")

        return read

    def _survivors(self) -> Tensor:
        """BoolTensor [B, seen + L]: what the last decoder layer still sees of the conversation."""
        flow = self.flow
        assert flow is not None
        there = torch.ones(flow.rows, flow.seen + flow.length, dtype=torch.bool, device=flow.device)
        part = flow.part
        there[:, flow.seen :] = False
        slot = part.slot if part.valid is None else torch.where(part.valid, part.slot, part.slot[:, -1:])
        return there.scatter(1, flow.seen + slot, True)


def _real(layer: CompressedLayer) -> Tensor:
    """BoolTensor [B, held]: rows of the cache that are no padding."""
    assert layer.keys is not None
    rows, held = layer.keys.shape[0], layer.keys.shape[2]
    real = torch.ones(rows, held, dtype=torch.bool, device=layer.tags[SLOT].device)
    if layer.mask is not None:
        real[:, : layer.mask.shape[1]] = layer.mask.to(real.device)
    return real


def check_use(methods: Sequence[CacheMethod], language_model: nn.Module, given: dict[str, Any]) -> None:
    """Refuse a forward that leaves no cache, if there are methods that need one."""
    config: Any = language_model.config
    use = given.get("use_cache")
    if methods and not (getattr(config, "use_cache", True) if use is None else use):
        raise ValueError(f"{methods[0].title} compresses the KV cache, but use_cache is False; leave it on.")


def _extend(layer: CompressedLayer, slot: Tensor, owner: Tensor, total: Tensor, kind: Tensor) -> None:
    for name, new in ((SLOT, slot), (OWNER, owner), (TOTAL, total), (KIND, kind)):
        old = layer.tags.get(name)
        layer.tags[name] = new.clone() if old is None else torch.cat([old, new], dim=1)
