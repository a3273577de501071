"""Stage `cache`: rows of the KV cache are dropped, layer by layer, and their memory is given back.

Every row of a touched layer carries tags (`kv_tags.py`), which follow it through beam search and later evictions; so do
the records that methods keep of the attention it received.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.engine.attention import LayerView
from vtc.engine.context import uncompiled
from vtc.engine.flow import padded
from vtc.engine.forward import Forward
from vtc.engine.kv_cache import CompressedLayer
from vtc.engine.kv_tags import KIND, KINDS, OWNER, SLOT, TOTAL, compressed_layer, real_rows, settle, tagged
from vtc.engine.refuse import check_use
from vtc.engine.stage import Facts, Run, Stage
from vtc.engine.trace import Eviction
from vtc.engine.versions import cache_of
from vtc.layout import single_span
from vtc.methods.base.cache import ActiveMethod, CacheMethod
from vtc.methods.base.method import Method
from vtc.reports import Stopwatch
from vtc.signals import SIGNALS, VisualTokens

BLOCK = 64  # queries listened to at a time


@dataclass(frozen=True, eq=False)
class CachedRows:
    """Some rows of one layer of the cache, as signals of the place `cache` read them: `rows` LongTensor [N]."""

    run: EvictRun
    layer: CompressedLayer
    number: int  # of the method
    batch_row: int
    rows: Tensor

    @property
    def record(self) -> Tensor:
        """[N], what the method's `gain` made of the attention that each has received."""
        return self.layer.tags[self.run.record_of(self.number)][self.batch_row, self.rows]

    @property
    def survives(self) -> Tensor:
        """BoolTensor [N]: whether the last decoder layer still sees each."""
        return self.run.survivors()[self.batch_row][self.layer.tags[SLOT][self.batch_row, self.rows]]


class EvictRun(Run):
    stage: EvictStage

    def __init__(self, stage: EvictStage, forward: Forward) -> None:
        super().__init__(stage, forward)
        self.heard: dict[tuple[int, int], Tensor] = {}  # (method, layer) -> gains of this forward, [B, K]
        self.watches: dict[int, list[Stopwatch]] = {}  # method -> time spent listening in this forward

    def listen(self, method: CacheMethod, view: LayerView, at: Tensor) -> Tensor:
        """Gains [B, K] of all keys from the queries in slots `at` [B, R] (-1 = none), a block of them at a time."""
        keys = view.keys.shape[2]
        before = torch.arange(keys, device=at.device) if view.seen is None else view.seen.cumsum(dim=1) - 1
        before = before.expand(len(at), -1) + 1  # [B, K], real keys up to each one
        heard = torch.zeros(len(at), keys, device=at.device)
        for part in at.split(BLOCK, dim=1):
            visible = torch.where(part >= 0, before.gather(1, (part + view.past).clamp(min=0)), 0)
            heard += method.gain(view.rows(part), visible)
        return heard

    def record_of(self, number: int) -> str:
        """The tag of a method's record: a cache that goes on under another method keeps its own apart."""
        return f"record {number} of {self.stage.methods[number]}"

    def leave(self, cache: Any) -> None:
        """Drop what the methods that are due do not keep."""
        flow, methods = self.flow, self.stage.methods
        if cache is None:
            return
        prefill, zero = bool(flow.spans), cache.layers[0]
        if not prefill and not any(method.every for method in methods):
            return
        touched = self._touched(cache)
        if not touched.any():
            return
        age = 0 if prefill else getattr(zero, "age", 0) + 1
        if isinstance(zero, CompressedLayer):
            zero.age = age
        due = [n for n, m in enumerate(methods) if prefill or (m.every and age % m.every == 0)]
        for (number, i), heard in self.heard.items():
            self._remember(cache, number, i, heard)
        if not due:
            return
        layers = [tagged(flow, cache, i) for i in range(self.stage.depth)]
        for layer in layers:
            layer.touched = touched
        for number in due:
            method, trace = methods[number], self.forward.trace
            watch, before = Stopwatch(flow.device), [int((x.tags[OWNER] >= 0).sum()) for x in layers]
            for i in range(self.stage.first[number], self.stage.depth):
                self._evict_layer(i, layers[i], method, number, touched)
            if prefill:
                after = [int((x.tags[OWNER] >= 0).sum()) for x in layers]
                means = round(sum(before) / self.stage.depth), round(sum(after) / self.stage.depth)
                watches = [*self.watches.get(number, []), watch.stop()]
                trace.note_stage(method.title, self.stage.depth, *means, watches)
        settle(flow, cache)
        if prefill:
            self.forward.trace.cached = [real_rows(x).sum(dim=1) for x in layers]

    def _touched(self, cache: Any) -> Tensor:
        """BoolTensor [B]: batch rows that have, or have had, something visual; plain text beside them is left alone."""
        flow, last = self.flow, cache.layers[-1]
        rows = torch.zeros(flow.rows, dtype=torch.bool, device=flow.device)
        if isinstance(last, CompressedLayer) and last.touched is not None:
            rows = last.touched.to(flow.device).clone()
        for span in flow.spans:
            rows[span.row] = True
        return rows

    def _remember(self, cache: Any, number: int, i: int, heard: Tensor) -> None:
        """Add what was heard in this forward to the record of a layer's rows."""
        layer, name = compressed_layer(self.flow, cache, i), self.record_of(number)
        before = layer.tags.get(name)
        if before is not None:
            heard[:, : before.shape[1]] += before.to(heard.device)
        layer.tags[name] = heard

    def _evict_layer(self, i: int, layer: CompressedLayer, method: CacheMethod, number: int, touched: Tensor) -> None:
        real = real_rows(layer)
        keep = real.clone()
        for row in touched.nonzero()[:, 0].tolist():
            # candidates of assisted decoding, or an answer that is scored, are not the prompt's to choose from
            mine = real[row] if self.flow.ends is None else real[row] & self._before_end(layer, row)
            owner = layer.tags[OWNER][row]
            units = owner.unique().tolist() if method.scope == "visual" else [None]
            for unit in units:
                if unit == -1:
                    continue
                where = (mine if unit is None else mine & (owner == unit)).nonzero().squeeze(1)
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
                    read=self._reader(method, CachedRows(self, layer, number, row, where)),
                    layer=i,
                    depth=self.stage.depth,
                )
                chosen = method.select(tokens).check(may_be_empty=method.may_drop_all)
                if chosen.tokens_out and chosen.merges:
                    raise ValueError(
                        f"{method.title} returned a Selection that merges tokens, but cached rows can only be dropped: "
                        "return Selection.prune(kept, total)."
                    )
                keep[row, where] = False
                keep[row, where[chosen.anchor]] = True
        slots = [layer.tags[SLOT][row][real[row] & ~keep[row]].clone() for row in range(len(real))]
        if any(map(len, slots)):
            self.forward.trace.evictions.append(Eviction(i, layer.get_seq_length(), slots))
            layer.evict(keep)

    def _before_end(self, layer: CompressedLayer, row: int) -> Tensor:
        """BoolTensor [held]: what stands before the end of the row's prompt."""
        assert self.flow.ends is not None
        return layer.tags[SLOT][row] < self.flow.seen + self.flow.ends[row]

    def _reader(self, method: CacheMethod, rows: CachedRows) -> Callable[[str], Tensor]:
        def read(name: str) -> Tensor:
            if name not in method.requires():
                raise ValueError(f"{method.title} reads the signal {name!r} without listing it in `needs`.")
            if SIGNALS[name].place != "cache":
                raise ValueError(f"{method.title} asks for {name!r}, which is not known of cached tokens.")
            return SIGNALS[name].of(rows)

        return read

    def survivors(self) -> Tensor:
        """BoolTensor [B, seen + L]: what the last decoder layer still sees of the conversation."""
        flow = self.flow
        there = torch.ones(flow.rows, flow.seen + flow.length, dtype=torch.bool, device=flow.device)
        part = flow.part
        there[:, flow.seen :] = False
        slot = part.slot if part.valid is None else torch.where(part.valid, part.slot, part.slot[:, -1:])
        return there.scatter(1, flow.seen + slot, True)


class EvictStage(Stage):
    name, order, run = "cache", 40, EvictRun
    base, can_merge = "CacheMethod", False

    @classmethod
    def takes(cls, method: Method) -> bool:
        return isinstance(method, CacheMethod) and method.stage == cls.name and not isinstance(method, ActiveMethod)

    def __init__(self, facts: Facts, methods: Sequence[CacheMethod]) -> None:
        super().__init__(facts, methods)
        self.depth = facts.depth
        self.first = [method.first_layer(self.depth) for method in self.methods]

    def attach(self) -> Iterator[RemovableHandle]:
        if all(method.queries() == 0 for method in self.methods):
            return
        for i, layer in enumerate(self.facts.layers):
            attention = self.facts.decoder.attention(layer)
            yield attention.register_forward_hook(partial(self._after_attention, i), with_kwargs=True)

    def check(self, forward: Forward) -> None:
        check_use(self.methods, self.facts.language_model, forward)
        if not forward.candidates:
            return
        again = next((method for method in self.methods if method.every), None)
        if again is not None:
            raise ValueError(
                f"{again.title} with every={again.every} drops cached tokens while decoding, by attention of "
                "candidates that may be taken back: decode without an assistant and without prompt_lookup_num_tokens, "
                "or leave every= out."
            )
        if forward.cache is not None and any(bool(prompt.visual.any()) for prompt in forward.prompts):
            raise ValueError(
                f"{self.methods[0].title} drops cached tokens after the prompt, but candidates that come with the "
                "prompt have seen them: decode without an assistant and without prompt_lookup_num_tokens."
            )

    @uncompiled
    def _after_attention(
        self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        forward, cache = Forward.of(self), cache_of(kwargs)
        run: EvictRun | None = None if forward is None else forward.runs.get(self)  # type: ignore[assignment]
        if run is None or cache is None:
            return
        flow, decoder = run.flow, self.facts.decoder
        asking = [
            (number, method)
            for number, method in enumerate(self.methods)
            if method.queries() != 0 and i >= self.first[number] and (flow.spans or method.every)
        ]
        if not asking:
            return
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        held = decoder.cached_keys(module, cache.layers[i])
        view = LayerView(decoder, module, x, kwargs["position_embeddings"], held, True, flow.seen_keys(i))
        part = flow.parts[flow.number_of_part(i)]
        real = torch.ones_like(part.slot, dtype=torch.bool) if part.valid is None else part.valid
        if flow.ends is not None:
            real = real & (part.slot < flow.ends[:, None])
        for number, method in asking:
            last = method.queries()
            asked = real if last is None else real & (real.flip(1).cumsum(dim=1).flip(1) <= last)
            watch = Stopwatch(x.device)
            with torch.no_grad():
                run.heard[number, i] = run.listen(method, view, padded(asked))
            run.watches.setdefault(number, []).append(watch.stop())
