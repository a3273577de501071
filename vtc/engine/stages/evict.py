"""Stage `cache`: rows of the KV cache are dropped, layer by layer, and their memory is given back.

Every row of a touched layer carries tags (`kv_tags.py`), which follow it through beam search and later evictions; so do
the records that methods keep of the attention it received.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.engine.attention import LayerView
from vtc.engine.context import uncompiled
from vtc.engine.flow import padded
from vtc.engine.forward import Forward
from vtc.engine.kv_cache import CompressedLayer, evict
from vtc.engine.kv_tags import KIND, KINDS, OWNER, SLOT, TOTAL, compressed_layer, settle, tagged
from vtc.engine.refuse import check_use
from vtc.engine.stage import Facts, Run, Stage, checked
from vtc.engine.trace import Eviction
from vtc.engine.versions import cache_of
from vtc.layout import single_span
from vtc.methods.base.cache import ActiveMethod, CacheMethod
from vtc.methods.base.method import Method, top_k
from vtc.reports import Stopwatch
from vtc.signals import SIGNALS, VisualTokens
from vtc.transfer import download_all, upload, upload_all

LARGEST = 2**24  # attention held at a time, in numbers


@dataclass(eq=False)
class Group:
    """Layers of the cache that hold the same rows, and what those are, in main memory.

    Attributes:
        layers: their numbers. slot, owner, total, kind: LongTensors [B, held], see `kv_tags.py`.
        real: BoolTensor [B, held], False for padding.
    """

    layers: list[int]
    slot: Tensor
    owner: Tensor
    total: Tensor
    kind: Tensor
    real: Tensor


@dataclass(eq=False)
class Units:
    """Cached tokens that are chosen among, those of one picture or all of a row; one or several equally large ones.

    Attributes:
        rows: [U], of the batch. where: LongTensor [U, N] in main memory, the rows of the cache. total: tokens there
            were of each before anything was dropped.
        here, on: `where` and `rows` on the device, LongTensors [U, N] and [U, 1].
    """

    rows: list[int]
    where: Tensor
    total: int
    here: Tensor
    on: Tensor


@dataclass(frozen=True, eq=False)
class CachedRows:
    """Some rows of one layer of the cache, as signals of the place `cache` read them; or of several layers that hold
    the same, and of several units of tokens, for a method that takes them together."""

    run: EvictRun
    layers: list[CompressedLayer]
    number: int  # of the method
    units: Units

    @property
    def record(self) -> Tensor:
        """[N], or [layers, U, N]: what the method's `gain` made of the attention that each has received."""
        records = self.run.records(self.number, self.layers)[:, self.units.on, self.units.here]
        return records if self.run.stage.methods[self.number].stacks else records[0, 0]

    @property
    def survives(self) -> Tensor:
        """BoolTensor [N]: whether the last decoder layer still sees each."""
        row, here = self.units.rows[0], self.units.here[0]
        return self.run.survivors[row, self.layers[0].tags[SLOT][row, here]]


class EvictRun(Run):
    stage: EvictStage

    def __init__(self, stage: EvictStage, forward: Forward) -> None:
        super().__init__(stage, forward)
        self.heard: dict[tuple[int, int], Tensor] = {}  # (method, layer) -> gains of this forward, [B, K]
        self.watches: dict[int, list[Stopwatch]] = {}  # method -> time spent listening in this forward
        self.held: dict[int, Tensor] = {}  # layer -> rows that its cache holds now, LongTensor [B] in main memory
        self._asked: dict[tuple[int, int | None], Tensor] = {}
        self._records: dict[tuple[int, ...], Tensor] = {}

    # -- listening ---------------------------------------------------------------------------------------------

    def asked(self, part: int, last: int | None) -> Tensor:
        """LongTensor [B, R]: slots of the prompt's `last` tokens in a part (None = of all), -1 = none."""
        key = (part, last)
        if key not in self._asked:
            own = self.flow.parts[part]
            real = torch.ones_like(own.slot, dtype=torch.bool) if own.valid is None else own.valid
            if self.flow.ends_here is not None:
                real = real & (own.slot < self.flow.ends_here[:, None])
            most = self.flow.most(part)
            if last is not None:
                real, most = real & (real.flip(1).cumsum(dim=1).flip(1) <= last), min(most, last)
            self._asked[key] = padded(real, most)
        return self._asked[key]

    def listen(self, method: CacheMethod, view: LayerView, at: Tensor) -> Tensor:
        """Gains [B, K] of all keys from the queries in slots `at` [B, R] (-1 = none)."""
        if type(method).gain is CacheMethod.gain:  # their plain sum, which needs no rows
            return view.received(at) * (at >= 0).sum(dim=1, keepdim=True)
        keys = view.keys.shape[2]
        before = torch.arange(keys, device=at.device) if view.seen is None else view.seen.cumsum(dim=1) - 1
        before = before.expand(len(at), -1) + 1  # [B, K], real keys up to each one
        heard = torch.zeros(len(at), keys, device=at.device)
        for part in at.split(max(1, LARGEST // (len(at) * keys)), dim=1):
            visible = torch.where(part >= 0, before.gather(1, (part + view.past).clamp(min=0)), 0)
            heard += method.gain(view.rows(part), visible)
        return heard

    def record_of(self, number: int) -> str:
        """The tag of a method's record: a cache that goes on under another method keeps its own apart."""
        return f"record {number} of {self.stage.methods[number]}"

    def records(self, number: int, layers: list[CompressedLayer]) -> Tensor:
        """[layers, B, K]: the records of a method."""
        key = (number, *map(id, layers))
        if key not in self._records:
            name = self.record_of(number)
            self._records[key] = torch.stack([layer.tags[name] for layer in layers])
        return self._records[key]

    def _remember(self, cache: Any, number: int, i: int, heard: Tensor) -> None:
        """Add what was heard in this forward to the record of a layer's rows."""
        layer, name = compressed_layer(self.flow, cache, i), self.record_of(number)
        before = layer.tags.get(name)
        if before is not None:
            heard[:, : before.shape[1]] += before.to(heard.device)
        layer.tags[name] = heard

    @cached_property
    def survivors(self) -> Tensor:
        """BoolTensor [B, seen + L]: what the last decoder layer still sees of the conversation."""
        flow = self.flow
        there = torch.ones(flow.rows, flow.seen + flow.length, dtype=torch.bool, device=flow.device)
        part = flow.part
        there[:, flow.seen :] = False
        slot = part.slot if part.valid is None else torch.where(part.valid, part.slot, part.slot[:, -1:])
        return there.scatter(1, flow.seen + slot, True)

    # -- dropping ----------------------------------------------------------------------------------------------

    def leave(self, cache: Any) -> None:
        """Drop what the methods that are due do not keep."""
        flow, methods = self.flow, self.stage.methods
        if cache is None:
            return
        prefill, zero, touched = bool(flow.spans), cache.layers[0], self._touched(cache)
        if touched is None or (not prefill and not any(method.every for method in methods)):
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
            watch = Stopwatch(flow.device)
            groups, here = self._groups(layers, touched)
            before = sum(len(group.layers) * int((group.owner >= 0).sum()) for group in groups) / self.stage.depth
            lost = sum(self._evict(layers, group, here, number) for group in groups) / self.stage.depth
            self._records.clear()
            if prefill:
                watches = [*self.watches.get(number, []), watch.stop()]
                self.forward.trace.note_stage(methods[number].title, self.stage.depth, before, before - lost, watches)
        settle(flow, cache)
        if prefill:
            self.forward.trace.cached = [self.held[i] for i in range(self.stage.depth)]

    def _touched(self, cache: Any) -> Tensor | None:
        """BoolTensor [B]: batch rows that have, or have had, something visual; plain text beside them is left alone.
        None = there are none."""
        last, now = cache.layers[-1], torch.zeros(self.flow.rows, dtype=torch.bool)
        now[[span.row for span in self.flow.spans]] = True
        before = last.touched if isinstance(last, CompressedLayer) else None
        if before is None and not self.flow.spans:
            return None
        here = upload(now, self.flow.device)
        return here if before is None else here | before.to(here.device)

    def _groups(self, layers: list[CompressedLayer], touched: Tensor) -> tuple[list[Group], list[bool]]:
        """The layers by what they hold, and which rows of the batch are touched, read from the device all at once."""
        numbers: dict[tuple[int, ...], list[int]] = {}
        for i, layer in enumerate(layers):
            key = (*(id(layer.tags[name]) for name in (SLOT, OWNER, TOTAL, KIND)), id(layer.mask))
            numbers.setdefault(key, []).append(i)
        tensors = [touched]
        for first in (layers[own[0]] for own in numbers.values()):
            tensors += [first.tags[name] for name in (SLOT, OWNER, TOTAL, KIND)]
            tensors += [] if first.mask is None else [first.mask]
        read = iter(download_all(tensors))
        here, groups = next(read).tolist(), []
        for own in numbers.values():
            slot, owner, total, kind = (next(read) for _ in range(4))
            real, mask = torch.ones_like(slot, dtype=torch.bool), layers[own[0]].mask
            if mask is not None:
                real[:, : mask.shape[1]] = next(read)
            groups.append(Group(own, slot, owner, total, kind, real))
        return groups, here

    def _units(self, group: Group, method: CacheMethod, here: list[bool]) -> list[Units]:
        """What the method chooses among in these layers, together what it takes together."""
        found: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        for row in range(len(here)):
            if not here[row]:
                continue
            mine, owner = group.real[row], group.owner[row]
            if self.flow.ends is not None:
                # candidates of assisted decoding, or an answer that is scored, are not the prompt's to choose from
                mine = mine & (group.slot[row] < self.flow.seen + self.flow.ends[row])
            parts: list[tuple[Tensor, int]] = []
            if method.scope == "visual":
                for unit in owner.unique().tolist():
                    where = (mine & (owner == unit)).nonzero()[:, 0] if unit >= 0 else owner[:0]
                    if len(where) and KINDS[int(group.kind[row, where[0]])] in method.modality:
                        parts.append((where, int(group.total[row, where[0]])))
            elif mine.any():  # all that the row has said so far
                where = mine.nonzero()[:, 0]
                slots = group.slot[row, where]
                parts.append((where, int(slots.max() - slots.min()) + 1))
            for where, total in parts:
                alone = () if scores_together(method) else (len(found),)
                found.setdefault((len(where), total, *alone), []).append((row, where))
        units, device = [], self.flow.device
        for (_, total, *_), alike in found.items():
            rows, where = [row for row, _ in alike], torch.stack([where for _, where in alike])
            units.append(Units(rows, where, total, *upload_all([where, torch.tensor(rows)[:, None]], device)))
        return units

    def _evict(self, layers: list[CompressedLayer], group: Group, here: list[bool], number: int) -> Tensor | int:
        """Drop what a method does not keep in the layers of a group; how many visual tokens that makes."""
        for i in group.layers:
            self.held[i] = group.real.sum(dim=1)
        group.layers = [i for i in group.layers if i >= self.stage.first[number]]
        if not group.layers:
            return 0
        held, mine = group.slot.shape[1], [layers[i] for i in group.layers]
        counts = [self.held[i].tolist() for i in group.layers]
        cut = [False] * len(mine)
        stays, goes = [], []  # places in all of [layers, B, held]
        for units in self._units(group, self.stage.methods[number], here):
            start = (torch.arange(len(mine))[:, None] * len(here) + torch.tensor(units.rows)) * held  # [layers, U]
            kept = self._chosen(layers, group, units, number)
            if isinstance(kept, Tensor):  # [layers, U, M]
                stays.append(
                    upload(start, kept.device)[..., None] + units.here.expand(len(mine), -1, -1).gather(2, kept)
                )
            for n in range(len(mine)):
                stay = kept[n]
                if not isinstance(kept, Tensor):
                    stays.append(int(start[n]) + units.here[0, stay])
                left = units.where.shape[1] - stay.shape[-1]
                cut[n] = cut[n] or left > 0
                for row in units.rows:
                    counts[n][row] -= left
            goes.append((start[..., None] + units.where).flatten())
        if not any(cut):
            return 0
        real = upload(group.real, self.flow.device).expand(len(mine), -1, -1)
        keep = real.reshape(-1).index_fill(0, upload(torch.cat(goes), real.device), False)
        keep = keep.index_fill_(0, torch.cat([x.flatten() for x in stays]), True).view(real.shape)
        slot, owner, gone = mine[0].tags[SLOT], mine[0].tags[OWNER], real & ~keep
        most = max(int((self.held[i] - torch.tensor(own)).max()) for i, own in zip(group.layers, counts, strict=True))
        lost = gone.to(torch.uint8).argsort(dim=2, descending=True, stable=True)[..., :most]  # [layers, B, most]
        where, there = slot.expand_as(gone).gather(2, lost), gone.gather(2, lost)
        for n, i in enumerate(group.layers):
            self.held[i] = torch.tensor(counts[n])
            if cut[n]:
                self.forward.trace.evictions.append(Eviction(i, mine[n].get_seq_length(), where[n], there[n]))
        some = [n for n in range(len(mine)) if cut[n]]
        if len(some) < len(mine):
            keep = keep[some]
        evict([mine[n] for n in some], keep, [counts[n] for n in some])
        return (gone & (owner >= 0)).sum()

    def _chosen(self, layers: list[CompressedLayer], group: Group, units: Units, number: int) -> Tensor | list[Tensor]:
        """What stays of the units in each layer of the group: LongTensor [layers, U, M], or layer by layer [M]."""
        method = self.stage.methods[number]
        if scores_together(method):
            tokens = self._tokens(layers, group.layers, units, number)
            score, one = method.score(tokens), (len(tokens.features),)
            all_of_them = (len(group.layers), len(units.rows), *one)
            if score.shape not in (one, all_of_them):
                raise ValueError(
                    f"score(tokens) of {method.title}, which stacks, returned shape {tuple(score.shape)}; expected "
                    f"{all_of_them}, or {one} for all alike."
                )
            kept = top_k(score, method.count(tokens))
            return kept.expand(len(group.layers), len(units.rows), -1)
        if method.stacks and method.queries() == 0:  # it hears nothing that a layer could be told by
            return [self._select(layers, group.layers[:1], units, number)] * len(group.layers)
        return [self._select(layers, [i], units, number) for i in group.layers]

    def _tokens(self, layers: list[CompressedLayer], numbers: list[int], units: Units, number: int) -> VisualTokens:
        n, method = units.where.shape[1], self.stage.methods[number]
        rows = CachedRows(self, [layers[i] for i in numbers], number, units)
        return VisualTokens(
            features=torch.empty(n, 0, device=self.flow.device),
            span=single_span(max(units.total, n), None),
            index=torch.arange(n, device=self.flow.device),
            read=self._reader(method, rows),
            layer=numbers[0] if len(numbers) == 1 else None,
            depth=self.stage.depth,
        )

    def _select(self, layers: list[CompressedLayer], numbers: list[int], units: Units, number: int) -> Tensor:
        method = self.stage.methods[number]
        given = method.select(self._tokens(layers, numbers, units, number))
        (chosen,) = checked(method, [given], [units.where.shape[1]], method.may_drop_all)
        if chosen.tokens_out and chosen.merges:
            raise ValueError(
                f"{method.title} returned a Selection that merges tokens, but cached rows can only be dropped: "
                "return Selection.prune(kept, total)."
            )
        return chosen.anchor.to(self.flow.device)

    def _reader(self, method: CacheMethod, rows: CachedRows) -> Callable[[str], Tensor]:
        def read(name: str) -> Tensor:
            if name not in method.requires():
                raise ValueError(f"{method.title} reads the signal {name!r} without listing it in `needs`.")
            if SIGNALS[name].place != "cache":
                raise ValueError(f"{method.title} asks for {name!r}, which is not known of cached tokens.")
            return SIGNALS[name].of(rows)

        return read


def scores_together(method: CacheMethod) -> bool:
    """Whether the method scores several layers, and several units of tokens, at once."""
    return method.stacks and type(method).select is Method.select


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
        for number, method in asking:
            watch = Stopwatch(x.device)
            with torch.no_grad():
                at = run.asked(flow.number_of_part(i), method.queries())
                run.heard[number, i] = run.listen(method, view, at)
            run.watches.setdefault(number, []).append(watch.stop())
