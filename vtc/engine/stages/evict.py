"""Stage `cache`: rows of the KV cache are dropped or merged, layer by layer, and their memory is given back.

Every row of a touched layer carries tags (`kv_tags.py`), which follow it through beam search and later evictions; so do
the records that methods keep of the attention it received. What a method says is a `Held` for the tokens of a picture
in a layer: what each KV head keeps, and what it makes of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.budget import token_count
from vtc.engine.attention import LayerView
from vtc.engine.cached_rows import CachedRows, Group, Units
from vtc.engine.context import uncompiled
from vtc.engine.forward import Forward
from vtc.engine.kv_cache import BIAS, CompressedLayer, by_head, evict, rows_held
from vtc.engine.kv_merge import Rotation, merged
from vtc.engine.kv_tags import KIND, KINDS, OWNER, SLOT, TOTAL, note_places, real_rows, settle, tagged
from vtc.engine.listening import Listening
from vtc.engine.refuse import check_heads, check_use, check_whole
from vtc.engine.stage import Facts, Stage, checked
from vtc.engine.trace import Eviction, HeldRows
from vtc.engine.versions import cache_of
from vtc.held import Held
from vtc.layout import single_span
from vtc.methods.base.cache import ActiveMethod, CacheMethod, PairedMethod
from vtc.methods.base.method import Method, top_k
from vtc.reports import Stopwatch
from vtc.signals import SIGNALS, VisualTokens
from vtc.transfer import download_all, upload, upload_all

TAGS = (SLOT, OWNER, TOTAL, KIND)


class EvictRun(Listening):
    stage: EvictStage

    def __init__(self, stage: EvictStage, forward: Forward) -> None:
        super().__init__(stage, forward)
        self.held: dict[int, Tensor] = {}  # layer -> rows that its cache holds now, mean over heads [B] in main memory
        self.real: dict[int, Tensor] = {}  # layer -> which of its rows are no padding, [B, G or 1, held]

    @cached_property
    def survivors(self) -> Tensor:
        """BoolTensor [B, seen + L]: what the last decoder layer still sees of the conversation."""
        flow = self.flow
        there = torch.ones(flow.rows, flow.seen + flow.length, dtype=torch.bool, device=flow.device)
        part = flow.part
        there[:, flow.seen :] = False
        slot = part.slot if part.valid is None else torch.where(part.valid, part.slot, part.slot[:, -1:])
        return there.scatter(1, flow.seen + slot, True)

    def rotation(self, layer: CompressedLayer, i: int) -> Rotation:
        """How the keys of layer `i` are turned."""
        decoder = self.stage.facts.decoder
        return Rotation(self.flow, decoder, decoder.attention(self.stage.facts.layers[i]), layer, i)

    def leave(self, cache: Any) -> None:
        """Drop, or merge, what the methods that are due do not keep."""
        flow, methods = self.flow, self.stage.methods
        if cache is None:
            return
        prefill, zero, touched = bool(flow.spans), cache.layers[self.stage.acts[0]], self._touched(cache)
        if touched is None or (not prefill and not any(method.every for method in methods)):
            return
        age = 0 if prefill else getattr(zero, "age", 0) + 1
        if isinstance(zero, CompressedLayer):
            zero.age = age
        due = [n for n, m in enumerate(methods) if prefill or (m.every and age % m.every == 0)]
        self.remember(cache)
        if not due:
            return
        layers = {i: tagged(flow, cache, i) for i in self.stage.acts}
        for i, layer in layers.items():
            layer.touched = touched
            if self.stage.turns_keys:
                note_places(flow, layer, i)
        for number in due:
            watch = Stopwatch(flow.device)
            groups, here = self._groups(layers, touched)
            before = sum(_visual(group) for group in groups) / len(layers)
            for group in groups:
                group.units = self._units(layers, group, number, here)
            budgets = self._budgets(layers, groups, number)
            lost = sum(self._hold(layers, group, len(here), number, budgets) for group in groups) / len(layers)
            self.forget_stacks()
            if prefill:
                watches = [*self.watches.get(number, []), watch.stop()]
                self.forward.trace.note_stage(methods[number].title, self.stage.depth, before, before - lost, watches)
                self.forward.trace.notes += self.stage.facts.only_some(methods[number])
        for number, method in enumerate(methods):
            if method.scope == "visual" and not method.every:  # it will not choose among these again
                for layer in layers.values():
                    layer.tags.pop(self.record_of(number), None)
        settle(flow, cache)
        if prefill:
            self.forward.trace.cached = {i: self.held[i] for i in layers}

    def _touched(self, cache: Any) -> Tensor | None:
        """BoolTensor [B]: batch rows that have, or have had, something visual; plain text beside them is left alone.
        None = there are none."""
        last = cache.layers[self.stage.acts[-1]]
        now = torch.zeros(self.flow.rows, dtype=torch.bool)
        now[[span.row for span in self.flow.spans]] = True
        before = last.touched if isinstance(last, CompressedLayer) else None
        if before is None and not self.flow.spans:
            return None
        here = upload(now, self.flow.device)
        return here if before is None else here | before.to(here.device)

    def _groups(self, layers: dict[int, CompressedLayer], touched: Tensor) -> tuple[list[Group], list[bool]]:
        """The layers by what they hold, and which rows of the batch are touched, read from the device all at once."""
        numbers: dict[tuple[int, ...], list[int]] = {}
        for i, layer in layers.items():
            key = (*(id(layer.tags[name]) for name in TAGS), id(layer.mask), id(layer.store))
            numbers.setdefault(key, []).append(i)
        tensors = [touched]
        for first in (layers[own[0]] for own in numbers.values()):
            tensors += [first.tags[name] for name in TAGS]
            tensors += [real_rows(first)] if first.mask is not None or first.masks_heads else []
        read = iter(download_all(tensors))
        here, groups = next(read).tolist(), []
        for own in numbers.values():
            slot, owner, total, kind = (by_head(next(read).long()) for _ in range(4))
            first = layers[own[0]]
            masked = first.mask is not None or first.masks_heads
            real = by_head(next(read)) if masked else torch.ones_like(slot, dtype=torch.bool)
            groups.append(Group(own, slot, owner, total, kind, real.expand_as(slot)))
            for i in own:
                self.real[i] = groups[-1].real
        return groups, here

    def _units(self, layers: dict[int, CompressedLayer], group: Group, number: int, here: list[bool]) -> list[Units]:
        """What the method chooses among in these layers, together what it takes together."""
        method, found = self.stage.methods[number], {}
        for row in range(len(here)):
            if not here[row]:
                continue
            mine = group.real[row]
            if self.flow.ends is not None:
                # candidates of assisted decoding, or an answer that is scored, are not the prompt's to choose from
                mine = mine & (group.slot[row] < self.flow.seen + self.flow.ends[row])
            for name, among in _among(method, group, row, mine):
                counts = among.sum(dim=1).tolist()
                if not any(counts) or self._done(layers, group, number, name):
                    continue
                slots = group.slot[row][among]
                owned = method.scope == "visual" or (method.scope == "apart" and name >= 0)
                total = int(group.total[row][among][0]) if owned else int(slots.max() - slots.min()) + 1
                if method.scope == "apart" and not owned:  # of the text, whose range the pictures lie in
                    total = max(counts[0], total - _visual_between(group, row, slots))
                shared = len(counts) > 1 and not method.per_head
                if len(set(counts)) > 1 or (shared and counts[0] > token_count(method.keep, total)):
                    raise ValueError(
                        f"{method.title} is to choose among tokens of which each KV head of this cache holds its own: "
                        "start again without past_key_values, or go on with the method that has chosen them."
                    )
                where = among.nonzero()[:, 1].view(len(counts), -1)
                if shared:  # nothing is to go
                    continue
                begins = method.sinks > 0 and int(slots.min()) == int(group.slot[row][group.real[row]].min())
                alone = () if scores_together(method) else (len(found),)
                found.setdefault((where.shape, total, begins and not owned, *alone), []).append((row, name, where))
        units, device = [], self.flow.device
        for (_, total, begins, *_), alike in found.items():
            rows, names, where = [row for row, *_ in alike], [name for _, name, _ in alike], [x for *_, x in alike]
            stacked = torch.stack(where)
            on_device = upload_all([stacked, torch.tensor(rows)[:, None, None]], device)
            units.append(Units(rows, names, stacked, total, begins, *on_device))
        return units

    def _done(self, layers: dict[int, CompressedLayer], group: Group, number: int, name: int) -> bool:
        """Whether the method has chosen among these tokens for good."""
        method = self.stage.methods[number]
        if name < 0 or method.every or not (method.per_head or method.uneven_layers):
            return False
        return all((self.record_of(number), name) in layers[i].chosen for i in group.layers)

    def _budgets(
        self, layers: dict[int, CompressedLayer], groups: list[Group], number: int
    ) -> dict[tuple[int, int, int], int]:
        """(row, picture, layer) -> how many of its tokens that layer holds, of methods that tell layers apart."""
        method, asked = self.stage.methods[number], {}
        if not method.uneven_layers:
            return {}
        for group in groups:
            for units in group.units:
                for i in group.layers:
                    if i >= self.stage.first[number]:
                        tokens = self._tokens(layers, [i], units, number)
                        asked.setdefault((units.rows[0], units.names[0]), {})[i] = tokens
        found = {}
        for (row, name), by_layer in asked.items():
            numbers = sorted(by_layer)
            counts = method.layer_budgets([by_layer[i] for i in numbers])
            if counts is not None:
                found |= {(row, name, i): int(count) for i, count in zip(numbers, counts, strict=True)}
        return found

    def _hold(
        self,
        layers: dict[int, CompressedLayer],
        group: Group,
        batch: int,
        number: int,
        budgets: dict[tuple[int, int, int], int],
    ) -> Tensor | float:
        """Let the layers of a group hold what a method says; how many visual tokens they lose, mean over heads."""
        method = self.stage.methods[number]
        for i in group.layers:
            self.held[i] = group.real.sum(dim=2).float().mean(dim=1)
        numbers = group.layers = [i for i in group.layers if i >= self.stage.first[number]]
        if not numbers or not group.units:
            return 0
        mine = [layers[i] for i in numbers]
        heads = mine[0].heads if method.per_head else group.slot.shape[1]
        held = group.slot.shape[2]
        real = group.real.expand(-1, heads, -1)
        whole = real.sum(dim=2)  # [B, heads]
        counts = whole.expand(len(mine), -1, -1).clone()  # [layers, B, heads]
        stays, goes = [], []  # places in all of [layers, B, heads, held]
        merges: list[tuple[int, int, Tensor, Held]] = []
        noted: list[list[HeldRows]] = [[] for _ in mine]
        head = torch.arange(heads)[:, None]
        for units in group.units:
            start = (torch.arange(len(mine))[:, None] * batch + torch.tensor(units.rows)) * heads * held
            start = start[..., None, None] + head * held  # [layers, U, heads, 1]
            goes.append((start + units.where).flatten())
            chosen = self._chosen(layers, numbers, units, number, budgets)
            if isinstance(chosen, Tensor):  # [layers, U, heads or 1, M]
                chosen = chosen.expand(-1, -1, heads, -1)
                places = units.here.expand(len(mine), -1, heads, -1).gather(3, chosen)
                stays.append((upload(start, places.device) + places).flatten())
                for row in units.rows:
                    counts[:, row] -= units.size - chosen.shape[3]
                if method.per_head:
                    for u, row in enumerate(units.rows):
                        told = group.slot[row].gather(1, units.where[u])
                        for n in range(len(mine)):
                            noted[n].append(HeldRows(row, told, Held(chosen[n, u], units.size)))
                continue
            row, told = units.rows[0], group.slot[units.rows[0]].gather(1, units.where[0])
            for n, one in enumerate(chosen):
                anchor = one.anchor.expand(heads, -1)
                there = anchor >= 0
                places = units.here[0].expand(heads, -1).gather(1, anchor.clamp(min=0))
                places = upload(start[n, 0], places.device) + places
                uneven = method.uneven_heads
                stays.append(places[there] if uneven else places.flatten())
                left = there.sum(dim=1).cpu() if uneven else anchor.shape[1]
                counts[n, row] -= units.size - left
                if one.merges or one.weighs:
                    merges.append((n, row, units.here[0], one))
                noted[n].append(HeldRows(row, told, one))
        cut = [bool((counts[n] < whole).any()) for n in range(len(mine))]
        if not any(cut):
            return 0
        self._merge(mine, numbers, merges)
        everything = upload(real, self.flow.device).expand(len(mine), -1, -1, -1)
        keep = everything.reshape(-1).index_fill(0, upload(torch.cat(goes), everything.device), False)
        keep = keep.index_fill_(0, torch.cat(stays), True).view(everything.shape)
        slot, owner, gone = by_head(mine[0].tags[SLOT]), by_head(mine[0].tags[OWNER]), everything & ~keep
        most = int((whole - counts).max())
        lost = gone.to(torch.uint8).argsort(dim=3, descending=True, stable=True)[..., :most]  # [layers, B, heads, most]
        where, there = slot.expand_as(gone).gather(3, lost), gone.gather(3, lost)
        for n, i in enumerate(numbers):
            self.held[i] = counts[n].float().mean(dim=1)
            if cut[n]:
                event = Eviction(i, mine[n].get_seq_length(), where[n], there[n], tuple(noted[n]))
                self.forward.trace.evictions.append(event)
            names = {(self.record_of(number), name) for units in group.units for name in units.names}
            mine[n].chosen = mine[n].chosen | names
        some = [n for n in range(len(mine)) if cut[n]]
        if len(some) < len(mine):
            keep, counts = keep[some], counts[some]
        evict([mine[n] for n in some], keep, counts)
        return (gone & (owner >= 0)).sum() / heads

    def _merge(
        self, mine: list[CompressedLayer], numbers: list[int], merges: list[tuple[int, int, Tensor, Held]]
    ) -> None:
        """Let the rows that stay take in those that go, and note how many tokens they stand for."""
        for n, row, where, held in merges:
            layer = mine[n]
            if held.merges:
                keys, values = layer.whole()
                rotation = self.rotation(layer, numbers[n])
                layer.keys, layer.values = merged(keys, values, row, where, held, rotation)
                layer.store = None  # whole now; what is left of it goes back into one
            if held.rows is not None:
                bias, groups = layer.tags.get(BIAS), held.rows.shape[0]
                if bias is None:
                    bias = torch.zeros(self.flow.rows, groups, layer.held, device=self.flow.device)
                bias = by_head(bias)
                bias = bias.expand(-1, max(groups, bias.shape[1]), -1).clone()
                anchor = held.anchor.expand(bias.shape[1], -1)
                there = anchor >= 0
                places = where.expand(bias.shape[1], -1).gather(1, anchor.clamp(min=0))
                head = torch.arange(bias.shape[1], device=bias.device)[:, None].expand_as(places)
                bias[row, head[there], places[there]] = held.rows.expand(bias.shape[1], -1)[there].log().to(bias)
                layer.tags[BIAS] = bias

    def _chosen(
        self,
        layers: dict[int, CompressedLayer],
        numbers: list[int],
        units: Units,
        number: int,
        budgets: dict[tuple[int, int, int], int],
    ) -> Tensor | list[Held]:
        """What stays of the units in each layer: LongTensor [layers, U, G, M], or layer by layer a Held."""
        method = self.stage.methods[number]
        if scores_together(method):
            tokens = self._tokens(layers, numbers, units, number)
            score, heads = method.score(tokens), units.where.shape[1] if method.per_head else 1
            score = method.guarded(tokens, score)
            whole = (len(numbers), len(units.rows), *score.shape[-2 if method.per_head else -1 :])
            if score.shape not in (whole[2:], whole) or score.shape[-1] != units.size:
                raise ValueError(
                    f"score(tokens) of {method.title}, which stacks, returned shape {tuple(score.shape)}; expected "
                    f"{(*whole[:-1], units.size)}, or {(*whole[2:-1], units.size)} for all alike."
                )
            kept = top_k(score, method.count(tokens))
            kept = kept.expand(len(numbers), len(units.rows), *kept.shape[-2 if method.per_head else -1 :])
            return kept if method.per_head else kept[:, :, None].expand(-1, -1, heads, -1)
        if method.stacks and method.queries() == 0 and not method.uneven_layers:
            # it hears nothing that a layer could be told by
            return [self._one(layers, numbers[:1], units, number, None)] * len(numbers)
        row, name = units.rows[0], units.names[0]
        return [self._one(layers, [i], units, number, budgets.get((row, name, i))) for i in numbers]

    def _tokens(
        self, layers: dict[int, CompressedLayer], numbers: list[int], units: Units, number: int
    ) -> VisualTokens:
        n, method = units.size, self.stage.methods[number]
        rows = CachedRows(self, [layers[i] for i in numbers], numbers, number, units)
        return VisualTokens(
            features=torch.empty(n, 0, device=self.flow.device),
            span=single_span(max(units.total, n), None),
            index=torch.arange(n, device=self.flow.device),
            read=self._reader(method, rows),
            layer=numbers[0] if len(numbers) == 1 else None,
            depth=self.stage.depth,
            begins=units.begins,
        )

    def _one(
        self, layers: dict[int, CompressedLayer], numbers: list[int], units: Units, number: int, budget: int | None
    ) -> Held:
        method = self.stage.methods[number]
        tokens = replace(self._tokens(layers, numbers, units, number), budget=budget)
        if type(method).hold is CacheMethod.hold and not method.per_head:
            given = method.select(tokens)
            (chosen,) = checked(method, [given], [units.size], method.may_drop_all)
            if chosen.tokens_out and chosen.merges and not method.merges:
                raise ValueError(
                    f"{method.title} returned a Selection that merges tokens without saying that it does: set "
                    "merges = True, or return Selection.prune(kept, total)."
                )
            held = method.merge(tokens, Held.of(chosen.to(self.flow.device)))
        else:
            held = method.hold(tokens).to(self.flow.device)
        if not type(method).__module__.startswith("vtc.methods."):
            held.check(layers[numbers[0]].heads)
        return held

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
    kind, own = type(method), ("select", "hold", "merge", "head_budgets")
    plain = all(getattr(kind, name) is getattr(CacheMethod, name) for name in own)
    return method.stacks and plain and not method.uneven_layers


def _visual_between(group: Group, row: int, slots: Tensor) -> int:
    """How many visual tokens there were of the pictures among some slots of a batch row, before any was dropped."""
    own = (group.owner[row] >= 0) & (group.slot[row] > slots.min()) & (group.slot[row] < slots.max())
    found = dict(zip(group.owner[row][own].tolist(), group.total[row][own].tolist(), strict=True))
    return sum(found.values())


def _visual(group: Group) -> float:
    """Visual tokens that the layers of a group hold, mean over heads."""
    return len(group.layers) * float(((group.owner >= 0) & group.real).sum()) / group.owner.shape[1]


def _among(method: CacheMethod, group: Group, row: int, mine: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(picture, or -1 for text; BoolTensor [G, held]) of what a method chooses among in a batch row, of which `mine`
    [G, held] may be chosen."""
    if method.scope == "all":  # all that the row has said so far
        yield -1, mine
        return
    owner = group.owner[row]
    for name in owner.unique().tolist():
        among = mine & (owner == name)
        if name >= 0 and bool(among.any()):
            kind = int(group.kind[row][among][0])
            if KINDS[kind] in method.modality:
                yield name, among
        elif name < 0 and method.scope == "apart":
            yield name, among


class EvictStage(Stage):
    name, order, run = "cache", 40, EvictRun
    base, shortens = "CacheMethod", False

    @classmethod
    def takes(cls, method: Method) -> bool:
        return isinstance(method, CacheMethod) and not isinstance(method, ActiveMethod | PairedMethod)

    def __init__(self, facts: Facts, methods: Sequence[CacheMethod]) -> None:
        super().__init__(facts, methods)
        self.depth, self.acts = facts.depth, facts.whole
        self.first = [method.first_layer(self.depth) for method in self.methods]
        for method, first in zip(self.methods, self.first, strict=True):
            if not self.acts or self.acts[-1] < first:
                raise ValueError(
                    f"{method.title} drops cached tokens in layers that hold the whole conversation, and from layer "
                    f"{first} on this language model has none; use a method of another stage, such as divprune."
                )
            check_heads(method, facts.language_model, facts.decoder)
        self.turns_keys = any(method.merges or "plain_keys" in method.requires() for method in self.methods)

    def attach(self) -> Iterator[RemovableHandle]:
        if all(method.queries() == 0 for method in self.methods):
            return
        for i in self.acts:
            attention = self.facts.decoder.attention(self.facts.layers[i])
            yield attention.register_forward_hook(partial(self._after_attention, i), with_kwargs=True)

    def check(self, forward: Forward) -> None:
        check_use(self.methods, self.facts.language_model, forward)
        check_whole(self.methods[0], self.facts, forward)
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
            number
            for number, method in enumerate(self.methods)
            if method.queries() != 0 and i >= self.first[number] and (flow.spans or method.every)
        ]
        if not asking:
            return
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        held = decoder.cached_keys(module, rows_held(cache.layers[i]))
        seen, sees = flow.seen_keys(i), flow.sight.range(i)
        view = LayerView(decoder, module, x, kwargs.get("position_embeddings"), held, True, seen, sees)
        for number in asking:
            watch = Stopwatch(x.device)
            with torch.no_grad():
                run.hear(number, i, view)
            run.watches.setdefault(number, []).append(watch.stop())
