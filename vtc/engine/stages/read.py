"""Stage `cache`, methods that drop nothing: a decode step attends to a part of the cached visual tokens.

In a forward of one token the layer before the method's first one attends to everything, and its attention says which
tokens the layers behind it read: a gather by index, one index set per layer, when that layer asks its cache for its
keys (`CompressedLayer.update`). Nothing is moved, so the next choice costs no more than the first; a forward of several
tokens reads everything. While a choice stands, what was gathered is kept, and new tokens are put behind it.

Example: layer 2 decides, layer 3 has lost two of the video's tokens to another method (t = text, v = video):

    layer 2 holds      t v v v v t      attention  . 1 7 2 5 .      active  0 0 1 0 1 0
    layer 3 holds      t v   v   t      slots      0 1   3   5      of the active slots 2 and 4 it holds none
    layer 3 reads      t         t      rows [0, 3] of its four, and whatever was generated since
    layer 4 holds      t v v v v t      reads rows [0, 2, 4, 5]
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.budget import layer_number
from vtc.engine.attention import LayerView, check_attending
from vtc.engine.context import uncompiled
from vtc.engine.forward import Forward
from vtc.engine.kv_cache import CompressedLayer, rows_held
from vtc.engine.kv_tags import SLOT, real_rows, rows_of_kind, tagged
from vtc.engine.reading import Reading
from vtc.engine.refuse import check_use, check_whole
from vtc.engine.stage import Facts, Run, Stage
from vtc.engine.versions import cache_of
from vtc.methods.base.cache import ActiveMethod, CacheMethod
from vtc.methods.base.method import Method

#: per row of the deciding layer: the attention it received in the last step, whether it is active
HEARD, ACTIVE = "heard", "active"


class ReadRun(Run):
    stage: ReadStage

    def enter(self, kwargs: dict[str, Any]) -> None:
        """A forward of several tokens reads everything again, and the next step chooses from nothing."""
        if any(past is not None and past.per_head for past in self.flow.pasts):
            raise ValueError(
                f"{self.stage.method.title} reads some of the cached tokens, the same in every KV head, and the "
                "heads of this cache hold different ones: start again without past_key_values."
            )
        decider = self.flow.past(self.stage.first - 1)
        if decider is not None and self.flow.length > 1:
            decider.tags.pop(HEARD, None)
            decider.tags.pop(ACTIVE, None)
            decider.readings = None

    def leave(self, cache: Any) -> None:
        """After a forward with pictures: note what every row of the cache is."""
        flow = self.flow
        if cache is None:
            return
        for past in flow.pasts:
            if past is not None:
                past.reading = None
        if not flow.spans:
            return
        self.forward.trace.notes += self.stage.facts.only_some(self.stage.method)
        for i in (self.stage.first - 1, *self.stage.reads):
            layer = tagged(flow, cache, i)
            if layer.keys is not None and layer.prompt < layer.held:  # nothing of this forward was dropped
                layer.take_in(flow.seen_keys(i))

    def decide(self, cache: Any, view: LayerView) -> None:
        """The deciding layer has attended: choose what the layers behind it read in this step."""
        flow, stage = self.flow, self.stage
        layer = cache.layers[stage.first - 1]
        visual = rows_of_kind(layer, stage.method.modality)
        heard = view.rows(flow.last)[:, 0, : layer.prompt] * visual  # [B, prompt]
        before, active = layer.tags.get(HEARD), layer.tags.get(ACTIVE)
        stale = visual.any(dim=1)
        if before is not None:
            stale = stale & stage.method.stale(before.to(heard.device), heard)
        layer.tags[HEARD] = heard
        anew = active is None or bool(stale.any())
        if anew:
            chosen = stage.method.active(heard, visual)
            kept = None if active is None else stage.method.reused(active.to(chosen.device), visual)
            active = chosen if kept is None else torch.where(stale[:, None], chosen, kept)
        else:
            assert active is not None
            active = stage.method.reused(active.to(heard.device), visual)
        known = layer.readings
        if anew or known is None or active is not layer.tags[ACTIVE]:
            layer.tags[ACTIVE], known = active, self._readings(cache, layer, active)
        layer.readings = known
        for i, reading in known.items():
            cache.layers[i].reading = reading
            flow.states[i] = cache.layers[i].state
        self.forward.trace.note_decode(stage.method.title, stage.first, stale.any())
        self.forward.trace.active = (active.sum(), visual.sum())

    def _readings(self, cache: Any, decider: CompressedLayer, active: Tensor) -> dict[int, Reading]:
        """What the layers from `first` on read: their text, and of the deciding layer's tokens `active` [B, prompt]."""
        flow, stage = self.flow, self.stage
        wanted = torch.zeros(len(active), flow.seen + 1, dtype=torch.long, device=active.device)
        wanted = (
            wanted.scatter_add(1, decider.tags[SLOT][:, : decider.prompt].long().to(active.device), active.long()) > 0
        )
        made: dict[Hashable, Reading] = {}  # where layers hold the same rows
        readings: dict[int, Reading] = {}
        for i in stage.reads:
            layer = cache.layers[i]
            if not isinstance(layer, CompressedLayer):
                continue
            layer.reading = None
            state = (layer.state, i if layer.evicted else None)
            if state not in made:
                slot, visual = layer.tags[SLOT][:, : layer.prompt].long(), rows_of_kind(layer, stage.method.modality)
                real = real_rows(layer)[:, : layer.prompt]
                keep = real & (~visual | wanted.gather(1, slot.to(active.device)).to(visual.device))
                counts = keep.sum(dim=1).tolist()
                made[state] = Reading.of(keep, max(counts), len(set(counts)) > 1)
            readings[i] = made[state]
        return readings


class ReadStage(Stage):
    name, order, run = "cache", 41, ReadRun
    base, can_merge, shortens = "CacheMethod", False, False

    @classmethod
    def takes(cls, method: Method) -> bool:
        return method.stage == cls.name and isinstance(method, ActiveMethod)

    def __init__(self, facts: Facts, methods: Sequence[ActiveMethod]) -> None:
        super().__init__(facts, methods)
        if len(methods) > 1:
            raise ValueError(f"{methods[0].title} and {methods[1].title} both say which cached tokens are active.")
        self.method, self.depth = methods[0], facts.depth
        self.first = layer_number(self.method.first, self.depth, self.method.title)
        check_attending(self.method, facts.language_model, [self.first - 1])
        self.reads = [i for i in facts.whole if i >= self.first]
        if self.first - 1 not in facts.whole:
            there = ", ".join(str(i + 1) for i in facts.whole[:-1])
            raise ValueError(
                f"{self.method.title} chooses by the attention of the layer before first={self.first}, which does not "
                f"see the whole conversation: give it first= one of {there}."
            )

    def check_beside(self, others: Sequence[Method]) -> None:
        for other in others:
            if isinstance(other, CacheMethod) and other.per_head:
                raise ValueError(
                    f"{self.method.title} reads some of the cached tokens, the same in every KV head, and "
                    f"{other.title} leaves each head its own: leave one of them out, or per_head=False."
                )
            if isinstance(other, CacheMethod) and other.every:
                raise ValueError(
                    f"{other.title} with every= drops cached tokens while decoding, among which {self.method.title} "
                    "chooses; leave one of them out."
                )

    def attach(self) -> Iterator[RemovableHandle]:
        layer = self.facts.layers[self.first - 1]
        attention = self.facts.decoder.attention(layer)
        yield attention.register_forward_hook(self._after_attention, with_kwargs=True)

    def check(self, forward: Forward) -> None:
        check_use(self.methods, self.facts.language_model, forward)
        check_whole(self.method, self.facts, forward)
        if forward.candidates:
            raise ValueError(
                f"{self.method.title} chooses step by step what a token attends to, which candidates that come "
                "together cannot follow: decode without an assistant and without prompt_lookup_num_tokens."
            )

    @uncompiled
    def _after_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        forward, cache = Forward.of(self), cache_of(kwargs)
        run: ReadRun | None = None if forward is None else forward.runs.get(self)  # type: ignore[assignment]
        flow = None if forward is None else forward.flow
        if run is None or flow is None or flow.length > 1 or cache is None:
            return
        layer = cache.layers[self.first - 1]
        if not isinstance(layer, CompressedLayer) or not layer.kinds & {*self.method.modality}:
            return
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        seen = flow.seen_keys(self.first - 1)
        decoder = self.facts.decoder
        held = decoder.cached_keys(module, rows_held(layer))
        run.decide(cache, LayerView(decoder, module, x, kwargs.get("position_embeddings"), held, True, seen))
