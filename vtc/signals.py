"""Signals: what a method may ask for besides the features themselves. A signal is one row of one table.

The engine measures a signal only when a wrapped method lists it in `needs`; `vtc.select` takes it by keyword. A row
says where it is measured, and `of` measures it there, on what that place offers:

    tower    one segment of one attention of the vision tower: `q`, `k` [B, H, T, d], `rows`, `joined_row`, `received`,
             `share`; for what is not read from queries and keys, what a block puts out, [B, T, D], or the patches that
             the tower is given (`vtc.engine.patch_pixels`), or what the projector makes of each crop's CLS token,
             [C, D]
    text     `words` [T, D], input embeddings of the row's text
    layer    `vtc.engine.layer_signals.LayerSignals`, one decoder layer, and the number of the span
    cache    `vtc.engine.stages.evict.CachedRows`, some rows of one layer of the KV cache
    layout   nothing is measured: the span itself knows it

`register_signal` adds a row from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vtc.hints import did_you_mean
from vtc.layout import VisualSpan
from vtc.transfer import upload

PLACES = ("tower", "text", "layer", "cache", "layout")


@dataclass(frozen=True)
class Signal:
    """One kind of thing that a method may ask for.

    Attributes:
        name: what methods list in `needs` and read by `tokens.signal(name)`.
        shape: its axes: N = visual tokens of the span, S = those it had before anything was dropped, C = its crops,
            T = text tokens, L = layers asked for, H = heads of queries, G = of keys, d, D = widths; a digit is itself.
        place: where it is measured, one of PLACES.
        doc: what it is, in a line.
        of: measures it; see the module's docstring for what it is given.
        fold: "sum" or "mean", how patches that become one token share a value of the tower.
        door: what is measured once, where the language model begins, on a `vtc.engine.layer_signals.Door`; `of` finds
            it as `layer.kept[name]`.
        attention: whether it is read from the queries and keys of the place (a decoder layer's, for `layer`).
        together: whether it can be read of several equally large spans at once, with one more dimension in front.
        shared: whether asking for one span's share, where it is measured, computes what all spans have theirs from.
        stand_in: the signal that takes its place in towers without a CLS token, with a note in the report.
        of_cls: whether it is the CLS token's and nothing takes its place: towers without one then have no row of it
            (L = 0), with a note in the report.
        numbered: whether `of` is given, behind the place, the number that the method wants it with
            (`Method.signal_number`); of the place `tower`.
        pixels: whether it is read from the pixels that the tower is given.
        of_block: whether it is read from what a whole block of the tower puts out, `of(states [B, T, D])`.
    """

    name: str
    shape: tuple[str, ...]
    place: str
    doc: str
    of: Callable[..., Any] = lambda: None
    fold: str = "sum"
    door: Callable[[Any], Tensor] | None = None
    attention: bool = False
    together: bool = False
    shared: bool = False
    stand_in: str | None = None
    of_cls: bool = False
    numbered: bool = False
    pixels: bool = False
    of_block: bool = False

    @property
    def text(self) -> str:
        """The line of the table: shape and meaning."""
        return f"[{', '.join(self.shape)}] {self.doc}" if self.shape else self.doc

    def take(self, value: Tensor, index: Tensor, crop: int | None = None) -> Tensor:
        """`value` of the whole span, cut to the tokens `index` [M], which are all of `crop` if that is given."""
        if "N" in self.shape:
            return value.index_select(self.shape.index("N"), upload(index, value.device))
        return value[crop : crop + 1] if crop is not None and self.shape[0] == "C" else value


def _source(layer: Any, span: int) -> Tensor:
    chosen = layer.flow.chosen[span]
    return torch.arange(layer.flow.spans[span].tokens) if chosen is None else chosen.source


_TABLE: dict[str, Signal] = {}
#: name -> Signal, in the order of the table
SIGNALS: Mapping[str, Signal] = _TABLE


def register_signal(signal: Signal) -> Signal:
    """Add a row to the table; ValueError if its name is taken or its place does not exist."""
    if signal.name in _TABLE:
        raise ValueError(f"there is a signal {signal.name!r} already; choose another name.")
    if signal.place not in PLACES:
        raise ValueError(f"{signal.name} is measured at {signal.place!r}; expected one of {', '.join(PLACES)}.")
    _TABLE[signal.name] = signal
    return signal


for _row in (
    Signal(
        "cls_attention",
        ("L", "N"),
        "tower",
        "attention of the vision tower's CLS token onto each token, one row per layer asked for (softmax, mean over "
        "heads); towers without CLS: received attention instead, with a note in the report",
        lambda segment: segment.rows(segment.q[:, :, :1])[:, 0],
        attention=True,
        stand_in="received_attention",
        together=True,
    ),
    Signal(
        "cls_logits",
        ("L", "N"),
        "tower",
        "the same before the softmax: scaled products of the CLS token's queries and each token's keys, mean over "
        "heads, and over the patches that make a token; towers without CLS: no row, L = 0",
        lambda segment: segment.logits(segment.q[:, :, :1])[:, 0],
        fold="mean",
        attention=True,
        of_cls=True,
        together=True,
    ),
    Signal(
        "received_attention",
        ("L", "N"),
        "tower",
        "attention each token receives from all tokens of its crop in the vision tower",
        lambda segment: segment.received() * segment.share,  # windows hand out attention in proportion to their size
        attention=True,
        together=True,
    ),
    Signal(
        "keys",
        ("N", "d"),
        "tower",
        "key vectors of the vision tower, averaged over heads, at the layer the features come from",
        lambda segment: segment.keys.float().mean(dim=1),
        fold="mean",
        attention=True,
        together=True,
    ),
    Signal(
        "tower_features",
        ("N", "D"),
        "tower",
        "what the vision tower makes of each token, before the projector: the output of the layer the features come "
        "from, averaged over the patches that make a token",
        lambda states: states.float(),
        fold="mean",
        of_block=True,
        together=True,
    ),
    Signal(
        "joined_cls_attention",
        ("L", "N"),
        "tower",
        "attention of the vision tower's CLS token onto each token as if all heads were one: softmax of the product of "
        "whole query and key over the root of their width; towers without CLS: received attention instead, with a note",
        lambda segment: segment.joined_row(segment.q[:, :, 0]),
        attention=True,
        stand_in="received_attention",
        together=True,
    ),
    Signal(
        "joined_keys",
        ("L", "N", "d"),
        "tower",
        "key vectors of the vision tower, those of all heads side by side, per layer asked for",
        lambda segment: segment.keys.transpose(1, 2).flatten(2),
        fold="mean",
        attention=True,
        together=True,
    ),
    Signal(
        "global_attention",
        ("N",),
        "tower",
        "mean attention that each token receives from the vision tower's global tokens, at the layer the features come "
        "from (mean over heads): of each crop those patches that receive more than a number of times the mean",
        lambda segment, times: segment.from_global(times),
        attention=True,
        together=True,
        numbered=True,
    ),
    Signal(
        "patch_entropy",
        ("N",),
        "tower",
        "entropy, in bits, of the 256 grey levels of each token's pixels",
        lambda patches: patches.entropy(),
        fold="mean",
        together=True,
        pixels=True,
    ),
    Signal(
        "cls_token",
        ("C", "D"),
        "tower",
        "what the projector makes of each crop's CLS token, from the layer that the features come from",
        lambda projected: projected,
    ),
    Signal(
        "text",
        ("T", "D"),
        "text",
        "input embeddings of the text tokens of the same row, padding left out",
        lambda words: words,
    ),
    Signal("grid", (), "layout", "the span's (t, h, w) grid is known"),
    Signal(
        "last_attention",
        ("N",),
        "layer",
        "attention of the prompt's last token onto each token, in a decoder layer (softmax over the whole row, mean "
        "over heads)",
        lambda layer, span: layer.last_rows[layer.row(span), 0, layer.keys_of(span)],
        attention=True,
        shared=True,
        together=True,
    ),
    Signal(
        "text_attention",
        ("T", "N"),
        "layer",
        "attention of the text after the row's pictures onto each token, in a decoder layer",
        lambda layer, span: layer.text_attention(span),
        attention=True,
        shared=True,
        together=True,
    ),
    Signal(
        "head_attention",
        ("H", "T", "N"),
        "layer",
        "attention of the text after the row's pictures onto each token, in each head of a decoder layer",
        lambda layer, span: layer.head_rows[layer.row(span), :, layer.words(span)][..., layer.keys_of(span)],
        attention=True,
        shared=True,
    ),
    Signal(
        "rotation_bias",
        ("T", "N"),
        "layer",
        "what the rotary embedding alone makes of the product of a query of the text after the row's pictures and each "
        "token's key: the product of vectors of ones, rotated to their places, over the root of their width",
        lambda layer, span: layer.rotation_bias[layer.row(span), layer.words(span)][:, layer.slots(span)],
        attention=True,
        shared=True,
    ),
    Signal(
        "peak_attention",
        ("N",),
        "layer",
        "largest attention that any head of any text token after the row's pictures gives each token, in a decoder "
        "layer",
        lambda layer, span: layer.peak[layer.row(span), layer.keys_of(span)],
        attention=True,
        shared=True,
        together=True,
    ),
    Signal(
        "visual_attention",
        ("N",),
        "layer",
        "mean attention that the picture's own tokens give each token, in a decoder layer",
        lambda layer, span: layer.own_attention[span],
        attention=True,
        shared=True,
    ),
    Signal(
        "relevance",
        ("2",),
        "layer",
        "mean share of its attention that text behind the first picture gives to visual tokens, and that visual tokens "
        "give to such text, in a decoder layer",
        lambda layer, span: layer.relevance[layer.row(span)],
        attention=True,
        shared=True,
    ),
    Signal(
        "transition",
        ("N",),
        "layer",
        "what the method's `transition` made of the modules it listens to, summed",
        lambda layer, span: layer.history[layer.row(span), layer.slots(span)],
        together=True,
    ),
    Signal(
        "layer_keys",
        ("N", "G", "d"),
        "layer",
        "keys of a decoder layer, one per head",
        lambda layer, span: layer.keys_at(span, layer.keys_of(span)),
        attention=True,
        shared=True,
    ),
    Signal(
        "text_keys",
        ("T", "G", "d"),
        "layer",
        "the same of the text after the row's pictures",
        lambda layer, span: layer.keys_at(span, layer.keys_of_text(span)),
        attention=True,
        shared=True,
    ),
    Signal(
        "text_states",
        ("T", "D"),
        "layer",
        "hidden states of the text after the row's pictures",
        lambda layer, span: layer.states_at(span, layer.slots_of_text(span)),
    ),
    Signal(
        "final_states",
        ("N", "D"),
        "layer",
        "hidden states between two decoder layers as the language model's last norm leaves them",
        lambda layer, span: layer.final_states_at(span, layer.slots(span)),
    ),
    Signal(
        "text_final_states",
        ("T", "D"),
        "layer",
        "the same of the text after the row's pictures",
        lambda layer, span: layer.final_states_at(span, layer.slots_of_text(span)),
    ),
    Signal(
        "places",
        ("N",),
        "layer",
        "how many tokens stand before each token in its row, padding left out and what has been dropped, too",
        lambda layer, span: layer.places(span, layer.slots(span)),
    ),
    Signal(
        "text_places",
        ("T",),
        "layer",
        "the same of the text after the row's pictures",
        lambda layer, span: layer.places(span, layer.slots_of_text(span)),
    ),
    Signal(
        "source",
        ("S",),
        "layer",
        "for each token of the whole span, which of those left it has become a part of; -1 = none",
        _source,
    ),
    Signal(
        "attention_record",
        ("N",),
        "cache",
        "what the method's `gain` made of the attention each cached token has received, summed",
        lambda rows: rows.record,
    ),
    Signal(
        "layer_record",
        ("c",),
        "cache",
        "what the method's `layer_gain` made of the attention in the layer, summed",
        lambda rows: rows.layer_record,
    ),
    Signal(
        "late_record",
        ("N",),
        "cache",
        "attention that each cached token has received from the forward's last queries, `late_queries` of them, summed",
        lambda rows: rows.late_record,
    ),
    Signal(
        "cached_keys",
        ("G", "N", "d"),
        "cache",
        "keys of each cached token, as they are cached: rotated to its position",
        lambda rows: rows.keys,
    ),
    Signal(
        "cached_values",
        ("G", "N", "d"),
        "cache",
        "values of each cached token",
        lambda rows: rows.values,
    ),
    Signal(
        "plain_keys",
        ("G", "N", "d"),
        "cache",
        "keys of each cached token before the rotation to its position",
        lambda rows: rows.plain_keys,
    ),
    Signal(
        "cached_visual",
        ("N",),
        "cache",
        "True for cached tokens of a picture or video, False for text",
        lambda rows: rows.visual,
    ),
    Signal(
        "seen_by",
        ("N",),
        "cache",
        "how many tokens of its row stand at or behind each cached token: so many have been able to see it",
        lambda rows: rows.seen_by,
    ),
    Signal(
        "survives",
        ("N",),
        "cache",
        "True for cached tokens that the last decoder layer still sees",
        lambda rows: rows.survives,
    ),
):
    register_signal(_row)


def of_place(names: tuple[str, ...], *places: str) -> tuple[str, ...]:
    """Those of `names` that are measured at one of `places`."""
    return tuple(name for name in names if SIGNALS[name].place in places)


def signal_of(measured: str) -> Signal:
    """The signal that a run of the tower has measured under the name `measured`: its own, behind which "=" and a number
    stand where it takes one."""
    return SIGNALS[measured.partition("=")[0]]


def check_signals(names: tuple[str, ...], asker: str) -> None:
    """Raise ValueError if `names` holds an unknown signal."""
    for name in names:
        if name not in SIGNALS:
            hint = did_you_mean(name, SIGNALS) or f" There are: {', '.join(SIGNALS)}."
            raise ValueError(f"{asker} needs {name!r}, which is not a signal.{hint}")


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """What a method sees of one image or video.

    Attributes:
        features: [N, D], the tokens as the language model would read them (after the projector).
        span: where they come from: grid, tiles, separators, crops. Its `tokens` is N, or more than N when an earlier
            stage has already compressed the span; `index` then says which of the span's tokens the N rows are.
        index: LongTensor [N], indices into the span's own tokens.
        read: name -> signal; of the whole, uncompressed span where it is the vision tower's. Methods use `signal`.
        step: which of its layers a method of the stage `layer` is asked at, from 0.
        layer: the decoder layer before which it is asked (stage `layer`), or whose cache it is asked about (stage
            `cache`); None before the language model, and where it is unknown.
        depth: number of decoder layers; 0 = unknown (`vtc.select`).
        budget: how many tokens to keep, where that is not for the method to say (frames of a video).
        counts: of these tokens, how many each decoder layer so far has seen, the last number being N; () = unknown.
        alone: whether no other picture or video stands in its row.
        begins: whether these are cached tokens with which their row begins.
        together: whether its signals are those of several spans of this size, see `stacked`.
    """

    features: Tensor
    span: VisualSpan
    index: Tensor
    read: Callable[[str], Tensor]
    step: int = 0
    layer: int | None = None
    depth: int = 0
    budget: int | None = None
    counts: tuple[int, ...] = ()
    alone: bool = True
    begins: bool = False
    together: bool = False

    @property
    def total(self) -> int:
        """N of the uncompressed span, which fractions refer to."""
        return self.span.tokens

    def signal(self, name: str) -> Tensor:
        """The signal `name` for the current N tokens; see `vtc.signals.SIGNALS` for shapes."""
        value, row = self.read(name), SIGNALS.get(name)
        # what the tower measured is of the whole span, what was measured later of the tokens that are left
        if row is None or row.place != "tower" or self.together:
            return value
        return row.take(value, self.index)

    @property
    def row_of(self) -> Tensor:
        """LongTensor [total]: the row of `features` of each of the span's tokens; -1 where it has gone."""
        rows = torch.full((self.total,), -1, dtype=torch.long, device=self.index.device)
        rows[self.index] = torch.arange(len(self.index), device=self.index.device)
        return rows

    @property
    def separators(self) -> Tensor:
        """BoolTensor [N]: tokens that are no patch of the picture."""
        return upload(self.span.separators, self.index.device)[self.index]

    @property
    def separated(self) -> bool:
        """Whether the span has any, as it came; nothing has to be read from a device to know it."""
        return bool(self.span.separators.any())

    def after(self, anchor: Tensor, features: Tensor) -> VisualTokens:
        """The tokens a next stage sees once a selection with anchors `anchor` [M] has produced `features` [M, D]."""
        return replace(self, features=features, index=self.index[anchor])


def stacked(many: Sequence[VisualTokens]) -> VisualTokens | None:
    """Equally large spans as one: its signals have one more dimension in front, its features are the first span's.

    None where they differ in more than their numbers, or where a reader cannot read several at once: one that can has
    an attribute `stack`, which makes a reader of the signals of several spans out of their readers.
    """
    one = many[0]
    stack = getattr(one.read, "stack", None)
    same = {
        (len(t.features), t.total, t.step, t.layer, t.depth, t.budget, t.counts, t.alone, type(t.read)) for t in many
    }
    whole = all(len(t.features) == t.total or t.layer is not None for t in many)  # `index` says nothing then
    read = stack([t.read for t in many]) if stack is not None and len(same) == 1 and whole else None
    return None if read is None else replace(one, read=read, together=True)


def given_signals(
    given: Mapping[str, Tensor], tokens: int, device: torch.device, crops: int = 1
) -> Callable[[str], Tensor]:
    """A reader over signals passed by keyword, their shapes checked; [N] will do for one layer's [L, N], and so on."""
    check_signals(tuple(given), "vtc.select")
    values: dict[str, Tensor] = {}
    for name, value in given.items():
        tensor = torch.as_tensor(value).to(device)
        shape = SIGNALS[name].shape
        if shape[:2] == ("L", "N") and tensor.dim() == len(shape) - 1:
            tensor = tensor.unsqueeze(0)
        sizes = {"N": tokens, "C": crops} | {side: int(side) for side in shape if side.isdigit()}
        fits = all(sizes.get(side, size) == size for side, size in zip(shape, tensor.shape, strict=False))
        if tensor.dim() != len(shape) or not fits:
            wanted = ", ".join(str(sizes.get(side, side)) for side in shape)
            also = f"[{', '.join(wanted.split(', ')[1:])}] or " if shape[:2] == ("L", "N") else ""
            raise ValueError(f"{name} has shape {tuple(torch.as_tensor(value).shape)}; expected {also}[{wanted}].")
        values[name] = tensor

    def read(name: str) -> Tensor:
        if name in values:
            return values[name]
        stand_in = SIGNALS[name].stand_in
        if stand_in in values:
            return values[stand_in]
        raise ValueError(f"this method needs the signal {name!r}: pass {name}=... ({SIGNALS[name].text}).")

    return read
