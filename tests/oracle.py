"""The oracle: the full-length model in which dropped tokens cannot be seen. A wrapped model must equal it.

It shares no code with the engine. The sequence keeps its full length in every layer and in the cache; from the layer on
at which a token was dropped its key is masked out, in prefill and in every decode step; rows of anchors are replaced by
explicit weighted sums; rows that the cache lost are masked in that layer, and in that head, from that moment on, and
what took others in there is replaced in its keys and values. The oracle needs only the decisions, read from the wrapped
model's record. A recurrent layer, in which nothing can be masked, is fed the tokens that are left, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tests.memory_oracle import memory_oracle
from vtc.proof.recurrent import fed_directly


def lm_of(model: Any) -> Any:
    """The language model without its head, as transformers finds it; of Nemotron, one level further down."""
    found = model.get_decoder()
    return getattr(found, "model", found)


@dataclass
class Choice:
    """What was decided for one span at one step: among the tokens at `index`, places in the row."""

    row: int
    index: list[int]
    anchor: list[int]
    source: list[int]
    weight: Tensor
    whole: list[int]  # places of all the span's tokens, before any step
    features: Tensor | None = None  # a trained module's own outputs

    def runs(self) -> list[list[int]]:
        """`index` in parts that had no text between them: one for an image, one per frame for some videos."""
        number, parts = {}, {}
        for i, p in enumerate(self.whole):
            number[p] = number[p - 1] if i and p - 1 in number else i
        for p in self.index:
            parts.setdefault(number[p], []).append(p)
        return list(parts.values())

    @property
    def slots(self) -> list[int]:
        """Where the outputs are read: the m-th output at the m-th of the anchors' places."""
        return sorted(self.index[a] for a in self.anchor)


@dataclass
class Merge:
    """What one layer's cache made of some of its tokens, when the conversation had `length` of them: row by row."""

    length: int
    layer: int
    row: int
    places: list[list[int]]  # [head][n], in the conversation; one head stands for all
    held: Any  # vtc.held.Held


@dataclass
class Decisions:
    """Everything a wrapped model decided in one forward, and what its cache lost since."""

    steps: list[tuple[int, list[Choice]]] = field(default_factory=list)  # (from layer, one Choice per span)
    evicted: list[tuple[int, int, list[list[list[int]]]]] = field(
        default_factory=list
    )  # (length, layer, lost[row][head])
    merged: list[Merge] = field(default_factory=list)
    resting: dict[tuple[int, int], list[list[int]]] = field(default_factory=dict)  # (length before, layer): likewise
    beside: bool = False  # places are those of a memory, and nothing leaves the row

    def visual(self) -> list[tuple[int, list[int], list[int]]]:
        """Per span in the row: its row, all its places, and those left at the end."""
        if not self.steps or self.beside:
            return []
        pairs = zip(self.steps[0][1], self.steps[-1][1], strict=True)
        return [(first.row, first.index, last.slots) for first, last in pairs]


def decisions(model: Any) -> Decisions:
    """The decisions of the last forward or generate of a wrapped model."""
    record = model._vtc_engine.trace
    now = [s.index.tolist() for s in record.spans]  # places of each span's tokens, in reading order
    made = Decisions(beside=hasattr(record, "beside"))
    for layer, selections in record.steps:
        choices = []
        for i, (span, c) in enumerate(zip(record.spans, selections, strict=True)):
            whole = span.index.tolist()
            anchor, source = c.anchor.tolist(), c.source.tolist()
            choices.append(Choice(span.row, now[i], anchor, source, c.weight.cpu(), whole, c.features))
            now[i] = choices[-1].slots
        made.steps.append((layer, choices))
    for eviction in record.evictions:
        lost = [[x.tolist() for x in row] for row in eviction.by_head]
        made.evicted.append((eviction.length, eviction.layer, lost))
        for one in eviction.held:
            if one.held.merges or one.held.weighs:
                made.merged.append(Merge(eviction.length, eviction.layer, one.row, one.places.tolist(), one.held))
    return made


@contextmanager
def watched(model: Any) -> Iterator[dict[tuple[int, int], list[list[int]]]]:
    """Notes, for every forward of a wrapped model, which cached tokens each layer did not read: `Decisions.resting`."""
    found: dict[tuple[int, int], list[list[int]]] = {}

    def after(i: int, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        cache: Any = kwargs.get("cache", kwargs.get("past_key_values"))
        assert cache is not None
        reading = getattr(cache.layers[i], "reading", None)
        if reading is None:
            return
        layer = cache.layers[i]
        real = torch.ones(len(reading.rows), layer.prompt, dtype=torch.bool) if layer.mask is None else layer.mask
        read = torch.zeros_like(real)
        there = torch.ones_like(reading.rows, dtype=torch.bool) if reading.valid is None else reading.valid
        read.scatter_(1, reading.rows, there)
        slots = layer.tags["slot"][:, : layer.prompt]
        found[cache.get_seq_length() - 1, i] = [row[out].tolist() for row, out in zip(slots, real & ~read, strict=True)]

    layers = lm_of(model).layers
    handles = [x.register_forward_hook(partial(after, i), with_kwargs=True) for i, x in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def oracle(model: Any, made: Decisions, rows: int, compact: bool, earlier: Decisions | None = None) -> Iterator[Any]:
    """The unwrapped `model`, answering as the wrapped one should, for a prompt batch of `rows` rows.

    Rows repeated by beam search follow each other, so row r of a longer batch is row r // (batch // rows). `earlier`
    are the decisions of a first turn that is in the cache; only with positions as they were.
    """
    if getattr(lm_of(model).config, "cross_attention_layers", None):
        with memory_oracle(model, made, rows):
            yield model
        return
    play = _Play(model, made, rows, compact, earlier)
    lm = lm_of(model)
    handles = [model.register_forward_pre_hook(play.before_model, with_kwargs=True)]
    handles.append(lm.register_forward_pre_hook(play.before_lm, with_kwargs=True))
    for i, layer in enumerate(lm.layers):
        handles.append(layer.register_forward_pre_hook(partial(play.before_layer, i), with_kwargs=True))
        handles.append(layer.register_forward_hook(partial(play.after_layer, i)))
    handles += fed_directly({i: x for i, layer in enumerate(lm.layers) if (x := recurrent(layer))}, play.left)
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def round_off(model: Any) -> float:
    """How far logits may be apart, as a share of the largest: gated delta networks solve a system of equations in each
    chunk of tokens, and padding moves the chunks."""
    return 1e-4 if "linear_attention" in (getattr(lm_of(model).config, "layer_types", None) or ()) else 1e-5


def recurrent(layer: Any) -> Any:
    """The module of a decoder layer that mixes tokens without attention; None = it attends."""
    found = (getattr(layer, name, None) for name in ("linear_attn", "conv"))
    if getattr(layer, "block_type", None) == "linear_attention" and hasattr(layer, "mixer"):
        return layer.mixer
    return next((module for module in found if module is not None), None)


class _Play:
    """The hooks of one oracle; `stages[n]` is what holds from layer `stages[n].first` on."""

    def __init__(self, model: Any, made: Decisions, rows: int, compact: bool, earlier: Decisions | None) -> None:
        self.lm, self.made, self.rows, self.compact = lm_of(model), made, rows, compact
        self.earlier, self.stages = earlier, []
        self.start = -1  # length of the cache when the forward with the pictures began
        self.applied: set[tuple[int, int]] = set()  # merges of each cache
        config = self.lm.config
        several = config.is_heterogeneous if hasattr(config, "is_heterogeneous") else False
        own = list(config.per_layer_config) if several else [config] * len(self.lm.layers)
        self.of_layers = [one.num_attention_heads for one in own]
        self.heads, self.groups = self.of_layers[0], own[0].num_key_value_heads  # those of the layer in progress
        self.tables: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> what its keys were rotated by, [B, T, d]
        self.given: Tensor | None = None  # the caller's attention mask
        self.numbers: list[list[Tensor]] = []  # per stage, of each forward [B, T]: what a window counts

    def before_model(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Caches keep everything: what a window hides is a matter of masks here."""
        self.given = kwargs.get("attention_mask")
        name = "cache" if "cache" in signature(module.forward).parameters else "past_key_values"
        cache: Any = kwargs.get("cache", kwargs.get("past_key_values"))
        if cache is None and self.windowed and kwargs.get("use_cache", True):
            kwargs = {**kwargs, name: DynamicCache()}
        held: list[Any] = [] if cache is None else cache.layers
        for i, layer in enumerate(held):
            if type(layer) is DynamicSlidingWindowLayer:
                assert not layer.is_initialized
                held[i] = DynamicLayer()
        return args, kwargs

    @property
    def windowed(self) -> bool:
        return any(self.window(i) is not None for i in range(len(self.lm.layers)))

    def window(self, i: int) -> int | None:
        """How many tokens back layer `i` sees, itself included."""
        kinds = getattr(self.lm.config, "layer_types", None)
        if kinds and kinds[i] != "sliding_attention":
            return None
        return getattr(self.lm.config, "sliding_window", None)

    def holder(self, i: int) -> int:
        """The layer whose keys layer `i` reads: its own, or the last of its kind that stores them for others."""
        config = self.lm.config
        modes = getattr(config, "kv_sharing_modes", None)
        if not modes or modes[i] != "reuse":
            return i
        return max(n for n in range(i) if modes[n] == "store" and config.layer_types[n] == config.layer_types[i])

    def before_lm(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = dict(kwargs)
        embeds: Tensor = kwargs["inputs_embeds"]
        cache: Any = kwargs.get("cache", kwargs.get("past_key_values"))
        self.seen = cache.get_seq_length() if cache is not None else 0
        for merge in self.made.merged:
            if self.seen >= merge.length and (id(merge), id(cache)) not in self.applied:
                self.applied.add((id(merge), id(cache)))
                assert cache is not None
                self.merge(cache.layers[merge.layer], merge)
        self.batch, self.length, _ = embeds.shape
        self.masks, user = kwargs.get("attention_mask"), self.given
        ones = torch.ones(self.batch, self.seen + self.length, dtype=torch.bool)
        self.user = ones if user is None else user.bool()
        ids = kwargs.get("position_ids")
        if ids is None:
            ids = torch.arange(self.seen, self.seen + self.length)[None]
        self.grid = ids.dim() == 3
        axes = len((getattr(self.lm.config, "rope_parameters", None) or {}).get("mrope_section") or "thw")
        self.ids = (ids[-axes:].expand(axes, -1, -1) if self.grid else ids[None]).expand(
            -1, self.batch, -1
        )  # [A, B, T]
        if self.start < 0:
            self.start = self.seen
            self.stages = [_Stage(0, self.batch, [], [[]] * self.batch)]
            for layer, choices in self.made.steps:
                mine = [(r, c) for r in range(self.batch) for c in choices if c.row == r // (self.batch // self.rows)]
                stage = _Stage(layer, self.batch, mine, self.stages[-1].dropped)
                self.stages = [*self.stages, stage] if layer or self.stages[0].mine else [stage]
        # as dense rows, because which of them are added depends on the layer
        self.deepstack: list[Tensor] = []
        if kwargs.get("visual_pos_masks") is not None:
            for x in kwargs["deepstack_visual_embeds"]:
                dense = torch.zeros(self.batch, self.length, x.shape[-1])
                dense[kwargs["visual_pos_masks"]] = x
                self.deepstack.append(dense)
            kwargs["visual_pos_masks"] = kwargs["deepstack_visual_embeds"] = None
        self.ahead: dict[int, Tensor] = {}  # likewise, of rows that are added before a layer
        if kwargs.get("vision_mask") is not None:
            for i, x in kwargs["deepstack_features"].items():
                self.ahead[i] = torch.zeros(self.batch, self.length, x.shape[-1])
                self.ahead[i][kwargs["vision_mask"][..., 0]] = x
            kwargs["vision_mask"] = kwargs["deepstack_features"] = None
        if self.seen == self.start:
            for stage in self.stages:
                if stage.first == 0:
                    kwargs["inputs_embeds"] = stage.merge(embeds, beside=bool(self.ahead))
        self.positions = []
        for stage in self.stages:
            self.ids = stage.renumber(self.ids, self.seen == self.start) if self.compact else self.ids
            self.positions.append(self.ids)
        if self.seen == self.start:
            self.numbers = [[] for _ in self.stages]
        for own, ids in zip(self.numbers, self.positions, strict=True):
            own.append(ids[0])
        if kwargs.get("logits_to_keep"):  # Gemma 4 leaves other rows out of its last layers
            kwargs["logits_to_keep"] = 0
        kwargs["attention_mask"] = torch.zeros(self.batch, 1, self.length, self.seen + self.length)
        return args, kwargs

    def left(self, i: int, row: int) -> Tensor:
        """The tokens of this forward that a row still has in layer `i`."""
        there = self.user[row, self.seen :].clone()
        stage = [one for one in self.stages if one.first <= i][-1]
        if self.seen == self.start:
            there[stage.dropped[row]] = False
        return there.nonzero()[:, 0]

    def before_layer(self, i: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number = max(n for n, stage in enumerate(self.stages) if stage.first <= i)
        stage, hidden, self.heads = self.stages[number], args[0], self.of_layers[i]
        names = list(signature(module.forward).parameters)
        kwargs, args = {**kwargs, **dict(zip(names[1:], args[1:], strict=False))}, args[:1]
        hidden = hidden + self.ahead[i] if i and i in self.ahead else hidden
        for one in self.stages:
            if self.seen == self.start and one.first == i:
                hidden = hidden if i == 0 else one.merge(hidden)
                self.deepstack = [one.merge(x, beside=True) for x in self.deepstack]
                # what a token is, where it enters empty, is the first of them
                self.ahead = {n: one.merge(x, beside=i > 0 or n > min(self.ahead)) for n, x in self.ahead.items()}
        hidden = hidden + self.ahead[0] if i == 0 and 0 in self.ahead else hidden
        if recurrent(module) is not None or getattr(module, "block_type", None) in ("moe", "mlp"):
            return (hidden,), kwargs
        end = self.seen + self.length
        visible = self.user[:, None].repeat(1, self.heads, 1)  # [B, H, K]
        for r in range(self.batch):
            visible[r, :, [self.start + p for p in stage.dropped[r]]] = False
            for layer, choices in self.earlier.steps if self.earlier else []:
                for choice in choices:
                    if layer <= i:
                        visible[r, :, sorted(set(choice.index) - set(choice.slots))] = False
            for length, layer, lost in [*(self.earlier.evicted if self.earlier else []), *self.made.evicted]:
                if layer == self.holder(i) and self.seen >= length:
                    for head in range(self.heads):
                        visible[r, head, one_of(lost[r // (self.batch // self.rows)], head, self.heads)] = False
        for r, slots in enumerate(self.made.resting.get((self.seen, i), [])):
            visible[r, :, slots] = False
        places = torch.arange(end)
        allowed = visible[:, :, None, :] & self.sees(i, number, places)  # [B, H, T, K]
        allowed |= ~allowed.any(-1, keepdim=True)  # padding looks at anything
        mask = torch.zeros(self.batch, self.heads, self.length, end)
        for merge in self.made.merged:
            if merge.layer == i and self.seen >= merge.length and merge.held.weighs:
                self.weigh(mask, merge)
        kwargs = {**kwargs, "attention_mask": mask.masked_fill(~allowed, torch.finfo(torch.float32).min)}
        if self.compact and hasattr(self.lm, "rotary_emb"):
            positions = self.positions[number]
            rotary = self.lm.rotary_emb
            if i not in getattr(self.lm.config, "rope_scaling_layers", [i]):
                rotary = self.lm.rotary_emb_unscaled
            kind = [self.lm.config.layer_types[i]] if len(signature(rotary.forward).parameters) > 2 else []
            kwargs["position_embeddings"] = rotary(hidden, positions if self.grid else positions[0], *kind)
        if self.seen == self.start and "position_embeddings" in kwargs:
            self.tables[i] = kwargs["position_embeddings"]
        return (hidden,), kwargs

    def sees(self, layer: int, stage: int, places: Tensor) -> Tensor:
        """BoolTensor [B or 1, 1, T, K]: which places a layer's queries see when nothing is dropped: those before them,
        as far as a window of so many tokens reaches, and what the model itself shows them besides."""
        queries, window = places[self.seen :, None], self.window(layer)
        sees, near = (places <= queries)[None, None], torch.ones(1, 1, 1, 1, dtype=torch.bool)
        if window is not None:
            count = torch.cat(self.numbers[stage], dim=1) if self.compact else places[None]
            near = (count[:, None, :] > count[:, self.seen :, None] - window)[:, None]
        made = self.masks[self.lm.config.layer_types[layer]] if isinstance(self.masks, dict) else self.masks
        if made is None or made.dim() != 4:
            return sees & near
        made = made if made.dtype == torch.bool else made > -1
        far = places > queries if window is None else (places > queries) | (places <= queries - window)
        return (sees & near) | (made & far)

    def copies(self, row: int) -> list[int]:
        """The batch rows that are row `row` of the prompt."""
        return [r for r in range(self.batch) if r // (self.batch // self.rows) == row]

    def merge(self, layer: Any, merge: Merge) -> None:
        """Put what a merge makes of a plain cache's keys and values in the places of its anchors, sum by sum."""
        held, tables = merge.held, self.tables[merge.layer]
        keys, values = layer.keys.clone(), layer.values.clone()
        for r in self.copies(merge.row):
            for g in range(self.groups):
                places = one_of(merge.places, g, self.groups)
                anchor, source = (one_of(x.tolist(), g, self.groups) for x in (held.anchor, held.source))
                for new, old, weights in ((keys, layer.keys, held.keys), (values, layer.values, held.values)):
                    if weights is None:
                        continue
                    weight, turns = one_of(weights.tolist(), g, self.groups), new is keys and not held.rotated
                    for m, a in enumerate(anchor):
                        own = [n for n, s in enumerate(source) if s == m]
                        if a < 0 or (own == [a] and weight[a] == 1):
                            continue
                        parts = [(old[r, g, places[n]].double(), self.angle(tables, merge.row, places[n])) for n in own]
                        turned = [rotate(x, cos, -sin) if turns else x for x, (cos, sin) in parts]
                        total = torch.stack([weight[n] * x for n, x in zip(own, turned, strict=True)]).sum(dim=0)
                        cos, sin = self.angle(tables, merge.row, places[a])
                        new[r, g, places[a]] = (rotate(total, cos, sin) if turns else total).float()
        layer.keys, layer.values = keys, values

    def angle(self, tables: tuple[Tensor, Tensor], row: int, place: int) -> tuple[Tensor, Tensor]:
        cos, sin = (table[min(row, len(table) - 1), place - self.start].double() for table in tables)
        return cos, sin

    def weigh(self, mask: Tensor, merge: Merge) -> None:
        """Add what an output stands for to its logits."""
        for r in self.copies(merge.row):
            for h in range(self.heads):
                places, rows, anchor = (
                    one_of(x, h, self.heads)
                    for x in (merge.places, merge.held.rows.tolist(), merge.held.anchor.tolist())
                )
                for a, count in zip(anchor, rows, strict=True):
                    if a >= 0:
                        mask[r, h, :, places[a]] = math.log(count)

    def after_layer(self, i: int, module: Any, args: tuple[Any, ...], output: Tensor) -> Any:
        return output + self.deepstack[i] if i < len(self.deepstack) else None


def one_of(heads: list[Any], head: int, of: int) -> Any:
    """What `heads` [1 or G] say of one of so many heads."""
    return heads[head // (of // len(heads))]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A key [d] turned by the angles of its pairs, which are (j, j + d / 2)."""
    half, out = len(x) // 2, x.clone()
    for j in range(half):
        out[j] = x[j] * cos[j] - x[j + half] * sin[j]
        out[j + half] = x[j + half] * cos[j] + x[j] * sin[j]
    return out


class _Stage:
    """What holds from one layer on: which places are gone, and how positions are numbered."""

    def __init__(self, first: int, batch: int, mine: list[tuple[int, Choice]], before: list[list[int]]) -> None:
        self.first, self.mine = first, mine
        self.gone: list[list[int]] = [[] for _ in range(batch)]  # at this stage
        for r, choice in mine:
            self.gone[r] += sorted(set(choice.index) - set(choice.slots))
        self.dropped = [old + new for old, new in zip(before, self.gone, strict=True)]  # up to this stage
        self.shift = [0] * batch

    def merge(self, x: Tensor, beside: bool = False) -> Tensor:
        """Rows [B, L, D] with each choice's outputs at its slots: weighted sums, or a module's own features, which do
        not stand in for rows that travel beside them."""
        x = x.clone()
        for r, choice in self.mine:
            taken = x[r, choice.index].double()
            for m, slot in enumerate(choice.slots):
                own = [choice.weight[i].double() * taken[i] for i, s in enumerate(choice.source) if s == m]
                x[r, slot] = (
                    torch.stack(own).sum(0).float() if beside or choice.features is None else choice.features[m]
                )
        return x

    def renumber(self, ids: Tensor, prefill: bool) -> Tensor:
        """Positions [A, B, T] after this stage, token by token."""
        new = ids.clone()
        for r in range(ids.shape[1]):
            if not prefill:
                new[:, r] -= self.shift[r]
                continue
            self.shift[r] = 0
            if len(ids) in (1, 4):
                for p in range(ids.shape[2]):
                    alike = len({*ids[:, r, p].tolist()}) == 1  # of four rows, a picture's own have three that stay
                    new[: len(ids) if alike else 1, r, p] -= self.shift[r]
                    self.shift[r] += p in self.gone[r]
                if len(ids) == 4:  # a token brings its place in the picture along
                    closed = new.clone()
                    for choice in [c for row, c in self.mine if row == r and c.index]:
                        for anchor, slot in zip(choice.anchor, choice.slots, strict=True):
                            new[:, r, slot] = closed[:, r, choice.index[anchor]]
                continue
            for choice in [c for row, c in self.mine if row == r and c.index]:
                places = {p: [int(ids[a, r, p]) for a in range(3)] for p in choice.index}
                kept = dict(zip([choice.index[a] for a in choice.anchor], choice.slots, strict=True))
                for run in choice.runs():
                    mine = [p for p in run if p in kept]
                    axes = [0, 1, 2] if all(places[p][0] == places[p][1] for p in run) else [1, 2]  # not time
                    start = min(places[p][a] for p in run for a in (1, 2))
                    end = max(places[p][a] for p in run for a in (1, 2)) + 1
                    ranks = {a: sorted({places[p][a] for p in mine}) for a in axes}
                    for p in mine:  # a token brings its place in the picture along
                        for a in range(3):
                            value = start + ranks[a].index(places[p][a]) if a in axes else places[p][a]
                            new[a, r, kept[p]] = value - self.shift[r]
                    self.shift[r] += end - start - max(map(len, ranks.values()))
                    after = run[-1] + 1
                    new[:, r, after:] = ids[:, r, after:] - self.shift[r]
        return new
