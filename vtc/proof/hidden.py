"""The full-length model in which dropped tokens cannot be seen: what a wrapped model has to equal.

Nothing here shares code with the engine. The model runs on its whole row, by its own eager attention, with the masks
that it makes itself (windows, prefixes and padding included); from the layer on at which a token was dropped, its key
is covered in every mask, in prefill and in every decode step. Rows of anchors that stand for several tokens are
replaced by explicit sums. Layers that keep a state instead of keys read only what is left (`recurrent.py`). What was
dropped is read from the wrapped model's record, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from vtc.models.decoder import RECURRENT, STATELESS, decoder_for
from vtc.models.family import Companions
from vtc.proof.recurrent import fed_directly


@dataclass
class Dropped:
    """What a wrapped model left out in one prefill and in the decode steps after it.

    Attributes:
        steps: (first layer, batch row, positions that are gone from there on).
        sums: (layer, batch row, position, positions [N], weights [N]): a row that stands for several from there on.
        lost: (length of the cache, layer, batch row, positions) that its cache lost at that length.
        visual, kept: by batch row, positions of visual tokens, and of those that are left at the end.
    """

    steps: list[tuple[int, int, Tensor]] = field(default_factory=list)
    sums: list[tuple[int, int, int, Tensor, Tensor]] = field(default_factory=list)
    lost: list[tuple[int, int, int, Tensor]] = field(default_factory=list)
    visual: list[tuple[int, Tensor]] = field(default_factory=list)
    kept: list[tuple[int, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, trace: Any) -> Dropped:
        """From the record of a wrapped model's last prompt; ValueError where that says too little to be replayed."""
        made, now = cls(), [span.index.cpu() for span in trace.spans]
        rows = [span.row for span in trace.spans]
        made.visual = list(zip(rows, now, strict=True))
        for layer, selections in trace.steps:
            for i, choice in enumerate(selections):
                if choice.features is not None:
                    raise ValueError("a trained module writes tokens of its own, which only its own test can judge")
                index, anchor, source = now[i], choice.anchor.cpu(), choice.source.cpu()
                slots = index[anchor].sort().values  # where outputs stand, in order
                for number, slot in enumerate(slots.tolist()):
                    own = (source == number).nonzero()[:, 0]
                    if len(own) > 1 or int(index[anchor[number]]) != slot:
                        weight = choice.weight.cpu()[own].double()
                        made.sums.append((layer, rows[i], slot, index[own], weight))
                gone = index[~torch.isin(index, slots)]
                made.steps.append((layer, rows[i], gone))
                now[i] = slots
        for event in trace.evictions:
            made.lost += [(event.length, event.layer, row, slots) for row, slots in enumerate(event.slots)]
        made.kept = list(zip(rows, now, strict=True))
        return made

    @property
    def count(self) -> int:
        """How many visual tokens are gone from the row at the end."""
        return sum(len(gone) for _, _, gone in self.steps)


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """`model` on its eager attention; ValueError where it lets nobody choose."""
    with attending(model, "eager"):
        yield


@contextmanager
def attending(model: Any, how: str) -> Iterator[None]:
    """`model`, with the parts that have a configuration of their own, on the attention of that name."""
    parts = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in parts.items()}
    try:
        for config in parts.values():
            config._attn_implementation = how
        yield
    finally:
        for key, config in parts.items():
            config._attn_implementation = before[key]


@contextmanager
def covered(
    model: nn.Module,
    lm: Any,
    layers: nn.ModuleList,
    made: Dropped,
    beside: Companions | None = None,
    entered: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """The language model `lm` of `model` without sight of what was dropped; it has to be on its eager attention.

    Args:
        beside: the keyword arguments in which rows for the visual tokens come along, where some do.
        entered: keyword arguments that the prompt is to come with, instead of its own: what another tower made of it.
    """
    play, decoder = _Play(made, beside, entered or {}), decoder_for(lm)
    play.kinds, play.holders = decoder.kinds(lm.config), decoder.holders(lm.config)
    states = {i: decoder.recurrent(layers[i]) for i, kind in enumerate(play.kinds) if kind in RECURRENT}
    handles = [model.register_forward_pre_hook(_keep_everything, with_kwargs=True)]
    handles += [lm.register_forward_pre_hook(play.begin, with_kwargs=True), *fed_directly(states, play.left)]
    for i, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(play.layer(i), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def entering(names: Companions | None, kwargs: Mapping[str, Any]) -> Tensor:
    """Embeddings [B, L, D] of a call of the language model, with visual tokens as they are when they mean something."""
    embeds: Tensor = kwargs["inputs_embeds"]
    if names is None or not names.before or kwargs.get(names.mask) is None:
        return embeds
    rows: Tensor = kwargs[names.rows][min(_layers(kwargs[names.rows]))]
    return embeds.masked_scatter(kwargs[names.mask].view(*embeds.shape[:2], 1), rows.to(embeds))


def _layers(rows: Any) -> list[int]:
    """The decoder layers that rows are for, of what comes by layer or one after another."""
    return list(rows) if isinstance(rows, dict) else [*range(len(rows))]


def _keep_everything(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A cache that begins holds every row, so that masks have a column for each: a window hides, but forgets none."""
    cache = kwargs.get("cache", kwargs.get("past_key_values"))
    held: list[Any] = getattr(cache, "layers", None) or []
    for i, layer in enumerate(held):
        if isinstance(layer, DynamicSlidingWindowLayer) and not layer.is_initialized:
            held[i] = DynamicLayer()


class _Play:
    """The hooks of one `covered`."""

    def __init__(self, made: Dropped, beside: Companions | None, entered: Mapping[str, Any]) -> None:
        self.made, self.beside, self.entered, self.past = made, beside, entered, 0
        self.kinds: list[str] = []
        self.holders: list[int] = []  # whose keys each layer reads
        self.real = torch.empty(0)  # BoolTensor [B, T] of the forward in progress, False for padding

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        self.past = 0 if cache is None else int(cache.get_seq_length())
        names, embeds = self.beside, kwargs.get("inputs_embeds")
        if embeds is not None:
            padding, shape = kwargs.get("attention_mask"), embeds.shape[:2]
            self.real = torch.ones(shape, dtype=torch.bool)
            if isinstance(padding, Tensor) and padding.dim() == 2:
                self.real = padding[:, -shape[1] :].bool()
        if self.entered and embeds is not None and embeds.shape == self.entered["inputs_embeds"].shape:
            taken = ("inputs_embeds", *((names.rows,) if names else ()))
            kwargs = {**kwargs, **{name: self.entered[name] for name in taken if name in self.entered}}
        if self.past == 0 and embeds is not None and self.made.sums:
            kwargs = {**kwargs, "inputs_embeds": self._summed(0, kwargs["inputs_embeds"])}
        if names is None or not self.made.sums or kwargs.get(names.mask) is None:
            return args, kwargs
        mask: Tensor = kwargs[names.mask].view(kwargs["inputs_embeds"].shape[:2])
        given, shift = kwargs[names.rows], int(names.before)
        rows = {i: self._beside(max(i - shift, 0), mask, given[i]) for i in _layers(given)}
        return args, {**kwargs, names.rows: rows if isinstance(given, dict) else [*rows.values()]}

    def _beside(self, i: int, mask: Tensor, rows: Tensor) -> Tensor:
        """Rows [V, D] that are added behind layer `i`, or before the next one, those of anchors summed as the anchors
        are."""
        dense = rows.new_zeros(*mask.shape, rows.shape[-1])
        dense[mask] = rows
        for layer in sorted({one[0] for one in self.made.sums if one[0] <= i}):
            dense = self._summed(layer, dense)
        return dense[mask]

    def layer(self, i: int) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            if self.kinds[i] in RECURRENT | STATELESS:
                hidden = self._summed(i, hidden) if i and self.past == 0 and hidden.shape[1] > 1 else hidden
                return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
            mask = kwargs.get("attention_mask")
            if not isinstance(mask, Tensor) or mask.dim() != 4 or not mask.is_floating_point():
                raise ValueError("its layers are handed no mask that a token could be covered in")
            if i and self.past == 0 and hidden.shape[-2] > 1:
                hidden = self._summed(i, hidden)
            changed = {**kwargs, "attention_mask": self._covered(i, mask, hidden.shape[-3])}
            return ((hidden, *args[1:]), changed) if args else (args, {**changed, "hidden_states": hidden})

        return before

    def left(self, i: int, row: int) -> Tensor:
        """The tokens of the forward in progress that a row has in layer `i`."""
        there = self.real[row].clone()
        if self.past == 0:
            for first, own, index in self.made.steps:
                if own == row and first <= i:
                    there[index.to(there.device)] = False
        return there.nonzero()[:, 0]

    def _summed(self, i: int, hidden: Tensor) -> Tensor:
        mine = [one for one in self.made.sums if one[0] == i]
        if not mine:
            return hidden
        before, hidden = hidden.double(), hidden.clone()
        for _, row, slot, index, weight in mine:
            there = before[row, index.to(hidden.device)]
            hidden[row, slot] = (there * weight[:, None].to(there)).sum(dim=0).to(hidden.dtype)
        return hidden

    def _covered(self, i: int, mask: Tensor, rows: int) -> Tensor:
        """The mask [B or 1, 1, T, K] with what is gone in layer `i` covered, [B, 1, T, K]."""
        mask, low = mask.expand(rows, -1, -1, -1).clone(), torch.finfo(mask.dtype).min
        gone = [(row, index) for first, row, index in self.made.steps if first <= i]
        held = self.holders[i]
        gone += [(row, index) for length, at, row, index in self.made.lost if at == held and self.past >= length]
        for row, index in gone:
            mask[row, :, :, index.to(mask.device)] = low
        return mask
