"""A KV-cache layer that holds fewer rows than the sequence it stands for.

It reports the *logical* length (what `generate` counts with, so positions and slicing stay right) and offers the rows
it holds as the last ones of that length, as sliding-window layers do; masks are built for exactly these rows.

Example: a prompt of eight tokens, of which six are held, and one token that has been generated since:

    logical length    9         get_seq_length
    held              7         rows of keys and values: 6 of the prompt, 1 later
    dropped           2         9 - 7, the offset at which masks begin
    prompt            6         rows that it held when it was compressed; `mask` and `tags` say what they are
    tail              4         of those, the last 4 are the last 4 tokens of the prompt: it can be cropped by up to 5

A layer that attends within a window holds what its next token sees, and no more: it lets go of rows by the number that
their token has in the conversation, as a window counts those that are gone, too. Its tag `ordinal` notes them:

    window            5         a token sees itself and four before it
    holds             t t v v t t t       of a prompt of twelve tokens, after five of its seven visual ones have gone
    ordinal           0 1 3 7 9 10 11     of which token 12 sees 9, 10 and 11: the first four rows are let go of

Its KV heads may hold different tokens: equally many, and then nothing else changes; or each its own number, and then
they are kept in a store (`kv_store.py`) and what a head does not have is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from vtc.engine import context
from vtc.engine.kv_store import Change, Store, UnevenRows
from vtc.engine.reading import Reading, Window, rows_of

#: tags of layers whose heads hold unequally many rows, or rows that stand for several tokens: BoolTensor [B, G, rows],
#: False for what fills up a head; [B, G or 1, rows], what is added to the logits of each
REAL, BIAS = "real", "bias"
#: tag of layers with a window: int tensor [B, rows], the number of each row's token as windows count
ORDINAL = "ordinal"


class CompressedLayer(DynamicLayer):
    """DynamicLayer whose prompt has lost `dropped` rows.

    Attributes:
        dropped: logical length minus number of rows held (the same for all batch rows; shorter ones are padded).
        mask: BoolTensor [B, held rows of the prompt] or None; False = padding. Rows added later are not in it.
        shift: LongTensor [B], what to subtract from the position of later tokens (`positions="compact"`).
        prompt: rows held when it was compressed. tail: how many of those are the last tokens, without a gap in any
            layer; below 0 where another layer has a gap behind them. A number on the device, which is read when
            somebody crops.
        group: the same object in layers to which the same masks apply.
        evicted: whether rows of its own have gone since, so that layers of its group may hold others.
        kinds: what its tokens are of, besides text ("image", "video").
        tags: name -> [B, rows], or [B, G, rows] where heads hold different tokens: what `kv_tags.py` notes of the first
            rows held. age: decode steps since the prefill.
        store: the rows of the prompt, where they are not in `keys` and `values`; these then hold what came later.
        reach: how many tokens back its window sees, itself included; None = all. record_past: whether candidates may be
            taken back before the next forward, so that nothing is let go of until then. last: of each of its first
            rows, the length of the conversation from which on nobody sees it; None = not known yet.
        chosen: (method, picture) for what has been chosen of a picture for good, see `EvictRun`.
        touched: BoolTensor [B], batch rows that a cache method works on; None = none.
        pictures: how many pictures its tags have named.
        reading: what the forward in progress reads of the prompt, None = everything.
        readings: of a layer that decides what is read: by layer, what the last step read; None = nothing is known.
        read: what the last step read. window: the rows of that, once it has been read twice.
    """

    dropped: int = 0
    mask: Tensor | None = None
    shift: Tensor | None = None
    prompt: int = 0
    tail: int | Tensor = 0
    group: object = None
    evicted: bool = False
    kinds: frozenset[str] = frozenset()
    age: int = 0
    touched: Tensor | None = None
    pictures: int = 0
    reading: Reading | None = None
    readings: dict[int, Reading] | None = None
    read: Reading | None = None
    window: Window | None = None
    store: Store | None = None
    chosen: frozenset[tuple[str, int]] = frozenset()
    reach: int | None = None
    record_past: bool = False
    last: list[int] | None = None
    tags: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.tags = {}

    @classmethod
    def of(
        cls, layer: DynamicLayer, dropped: int, mask: Tensor | None, shift: Tensor | None, group: object
    ) -> CompressedLayer:
        """Take over the rows of `layer`; layers of one `group` hold the same rows."""
        new = cls()
        vars(new).update(vars(layer))  # whatever a layer of this version of transformers knows of itself
        new.dropped, new.mask, new.shift, new.group = dropped, mask, shift, group
        new.prompt = new.tail = new.held
        return new

    # -- what the model asks -----------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Rows of keys and values, of the head that has most."""
        return (0 if self.keys is None else self.keys.shape[-2]) + (0 if self.store is None else self.store.width)

    @property
    def heads(self) -> int:
        """KV heads."""
        return 0 if self.keys is None else self.keys.shape[1]

    @property
    def per_head(self) -> bool:
        """Whether its KV heads hold different tokens."""
        return any(tag.dim() == 3 for tag in self.tags.values())

    @property
    def masks_heads(self) -> bool:
        """Whether attention needs a mask of each head's own, or something added to its logits."""
        return REAL in self.tags or BIAS in self.tags

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, held, d]."""
        assert self.keys is not None
        assert self.values is not None
        if self.store is None:
            return self.keys, self.values
        keys, values = self.store.whole()
        return torch.cat([keys, self.keys], dim=2), torch.cat([values, self.values], dim=2)

    @property
    def state(self) -> tuple[int, int, object]:
        """Equal for layers that offer the same rows: the same masks and positions are right for them."""
        return self.held, self.dropped, self.group if self.reading is None else self.reading

    @property
    def unread(self) -> int:
        """Logical length minus the number of rows that the forward in progress reads."""
        return self.dropped + (0 if self.reading is None else self.prompt - self.reading.rows.shape[1])

    def get_seq_length(self) -> int:
        return self.held + self.dropped if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        self._expect_engine()
        return self.get_seq_length() - self.unread + query_length, self.unread

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._expect_engine()
        super().update(key_states, value_states, *args, **kwargs)
        keys, values = self.whole()
        return (keys, values) if self.reading is None else self._read(self.reading, keys, values)

    def _read(self, reading: Reading, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, N, d] -> the rows of the prompt that are read, and all later ones."""
        learning = torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad)
        if self.read is reading and not learning:  # a window is written in place, and not worth it for one step
            if self.window is None or not self.window.fits(keys):
                self.window = Window(reading.whole(self.prompt, keys.shape[2]), keys, values)
            return self.window.follow(keys, values)
        self.read, self.window = reading, None
        index = reading.whole(self.prompt, keys.shape[2])
        return rows_of(keys, index), rows_of(values, index)

    def _expect_engine(self) -> None:
        """A wrapped model's forward knows which rows are gone; any other would take what is left for all there was."""
        if not self.is_initialized:
            return
        for state in context.states():
            if id(self) in getattr(getattr(state, "flow", None) or state, "known", ()):
                return
        raise RuntimeError(
            "this KV cache was compressed by vtc and can only be continued by the wrapped model: wrap it again "
            "(vtc.wrap; any method will do), or start again without past_key_values."
        )

    def visible(self, mask: Tensor | None, rows: int, length: int, device: torch.device) -> Tensor | None:
        """The 2-D mask BoolTensor [rows, length] over the logical length, True for what is read; None = all that is.

        Args:
            mask: the caller's mask of that length, or None for "no padding". length: the logical length, 9 above.
        """
        own = self.mask if self.reading is None else self.reading.valid
        if mask is None and own is None:
            return None
        start = self.prompt + self.dropped  # logical length of the prompt
        read = self.prompt if self.reading is None else self.reading.rows.shape[1]
        ones = torch.ones(rows, max(read, length - start), dtype=torch.bool, device=device)
        later = ones[:, : length - start] if mask is None else mask[:, start:].bool()
        own = ones[:, :read] if own is None else own
        unseen = torch.zeros(rows, self.unread, dtype=torch.bool, device=device)
        return torch.cat([unseen, own.to(device), later.to(device)], dim=1)

    def of_heads(self, mask: Tensor | None, heads: int, hidden: Tensor) -> Tensor:
        """The mask [B, H, Q, K] of a layer that `masks_heads`, in which each head sees its own rows.

        Args:
            mask: of all heads alike, BoolTensor or what is added to logits, [B, 1, Q, K]; None = causal, no padding.
            heads: H, of queries. hidden: [B, Q, D], what goes into the layer.
        """
        b, queries = hidden.shape[:2]
        keys = self.held + queries if mask is None else mask.shape[-1]
        if mask is None:
            places = torch.arange(keys, device=hidden.device)
            mask = (places <= places[keys - queries :, None]).expand(b, 1, -1, -1)
        real, bias = (self._over(name, keys, hidden.device, empty) for name, empty in ((REAL, True), (BIAS, 0.0)))
        if bias is None and mask.dtype == torch.bool:
            assert real is not None
            mask = mask & real
        else:
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
            mask = mask if bias is None else mask + bias.to(mask.dtype)
            mask = mask if real is None else mask.masked_fill(~real, torch.finfo(mask.dtype).min)
        return (
            mask.expand(-1, heads, -1, -1) if mask.shape[1] == 1 else mask.repeat_interleave(heads // mask.shape[1], 1)
        )

    def _over(self, name: str, keys: int, device: torch.device, empty: float) -> Tensor | None:
        """A tag as [B, G or 1, 1, keys], `empty` for later rows; None without it."""
        tag = self.tags.get(name)
        if tag is None:
            return None
        tag = by_head(tag).to(device)
        return torch.nn.functional.pad(tag, (0, keys - tag.shape[2]), value=empty)[:, :, None]

    def ordinals(self) -> Tensor:
        """LongTensor [B, held]: the number of each row's token, as a window counts."""
        assert self.keys is not None
        known = self.tags.get(ORDINAL)
        device = self.keys.device if known is None else known.device
        noted = 0 if known is None else known.shape[-1]
        later = torch.arange(noted, self.held, device=device) + self.dropped
        later = later.expand(self.keys.shape[0], -1)
        later = later if self.shift is None else later - self.shift.to(device)[:, None]
        return later if known is None else torch.cat([known.long(), later], dim=1)

    def activate_past_recording(self) -> None:
        """What transformers says where candidates may be taken back."""
        self.record_past = True

    def let_go(self) -> bool:
        """Forget the rows that no later token sees; whether there were any.

        Which those are is read from the device once, in the first forward that reaches beyond the window.
        """
        length, reach = self.get_seq_length(), self.reach
        if reach is None or length < reach or self.evicted or not self.held:
            return False
        first = self.last is None
        if self.last is None:
            seen = self.ordinals() + reach
            seen = seen if self.shift is None else seen + self.shift.to(seen.device)[:, None]
            if self.mask is not None:
                real = torch.nn.functional.pad(self.mask, (0, self.held - self.mask.shape[1]), value=True)
                seen = seen.masked_fill(~real.to(seen.device), 0)
            self.last = seen.amax(dim=0).tolist()
        unseen, held = 0, self.held
        while unseen < held and self._last(unseen) <= length:
            unseen += 1
        if unseen:
            self._forget(unseen, unseen > 1 or first)
        return unseen > 0

    def _last(self, row: int) -> int:
        assert self.last is not None
        assert self.reach is not None
        return self.last[row] if row < len(self.last) else self.dropped + row + self.reach

    def _forget(self, rows: int, copied: bool) -> None:
        """Let go of the first rows held; what is left is copied, or a part of what there was, which stays in memory."""
        assert self.keys is not None
        assert self.values is not None
        assert self.last is not None
        keys, values = self.keys[:, :, rows:], self.values[:, :, rows:]
        self.keys, self.values = (keys.clone(), values.clone()) if copied else (keys, values)
        self.tags = {name: tag[..., rows:].clone() for name, tag in self.tags.items()}
        self.mask = None if self.mask is None else self.mask[:, rows:].clone()
        self.dropped, self.prompt, self.last = self.dropped + rows, max(0, self.prompt - rows), self.last[rows:]

    def take_in(self, mask: Tensor | None) -> None:
        """Count the rows added since to the prompt; `mask` BoolTensor [B, held] says which are real, None = all."""
        held = self.held
        self.tail, self.prompt, self.mask = self.tail + held - self.prompt, held, mask

    # -- what changes it ---------------------------------------------------------------------------------------

    def take(self, rows: Tensor, valid: Tensor | None, tags: dict[str, Tensor], tail: Tensor) -> None:
        """Hold only some of the rows; the memory of the others is freed. See `evict`.

        Args:
            rows: LongTensor [B, width], right-aligned, or [B, G, width] of each head. valid: of this shape, or, where
                heads hold equally many, [B, width]: False for rows that fill up shorter ones; None = all are real.
            tags: those of the rows. tail: how many of them are the last ones that were held.
        """
        keys, values = self.whole()
        held, width = self.held, rows.shape[-1]
        self.tail = least([self.tail + held - self.prompt, tail])
        self.tags, self.store = tags, None
        if valid is not None and valid.dim() == 3:
            self.store = UnevenRows(keys, values, rows, valid)
            self.keys, self.values = keys[:, :, :0].clone(), values[:, :, :0].clone()
            self.tags[REAL], valid = valid, None
        else:
            self.keys, self.values = rows_of(keys, rows), rows_of(values, rows)
            self.tags.pop(REAL, None)
        self.dropped, self.prompt, self.mask = self.dropped + held - width, width, valid
        # without padding, layers that hold equally many rows at equal positions can share masks
        alike = valid is None and not self.masks_heads
        self.group = ("evicted", id(self.shift)) if alike else object()
        self.evicted, self.readings, self.read, self.window = True, None, None, None
        self.last = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, as assisted decoding does with candidates that were turned down."""
        assert self.keys is not None
        assert self.values is not None
        self.readings = self.read = self.window = None
        count, held = abs(tokens_to_remove), self.held
        if count > int(self.tail) + held - self.prompt:
            raise ValueError(
                f"cannot remove {count} tokens from a compressed cache: that reaches back to where some were dropped; "
                "start again without past_key_values."
            )
        later = held - (0 if self.store is None else self.store.width)
        if self.store is not None and count > later:
            self.store.crop(count - later)
            self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]
        else:
            super().crop(tokens_to_remove)
        left = self.held
        self.last = None if self.last is None else self.last[:left]
        self.tags = {name: tag[..., :left] for name, tag in self.tags.items()}
        if left < self.prompt:
            self.tail, self.prompt = self.tail - (self.prompt - left), left
            self.mask = None if self.mask is None else self.mask[:, :left]

    def _each_row(self, change: Change) -> None:
        self.readings = self.read = self.window = None
        self.mask = None if self.mask is None else change(self.mask)
        self.shift = None if self.shift is None else change(self.shift)
        self.touched = None if self.touched is None else change(self.touched)
        self.tags = {name: change(tag) for name, tag in self.tags.items()}
        if self.store is not None:
            self.store.each_row(change)

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._each_row(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._each_row(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._each_row(lambda x: x[indices.to(x.device)])

    def reset(self) -> None:
        super().reset()
        self.dropped, self.mask, self.shift, self.prompt, self.tail, self.tags = 0, None, None, 0, 0, {}
        self.readings = self.read = self.window = None
        self.store, self.chosen, self.last = None, frozenset(), None
        self.age, self.touched, self.pictures, self.reading, self.group, self.evicted = 0, None, 0, None, None, False


class Rows(NamedTuple):
    """Keys and values [B, G, N, d] as a layer would hold them without a store."""

    keys: Tensor
    values: Tensor


def rows_held(layer: Any) -> Any:
    """What to read the keys and values of a layer of the cache from."""
    return Rows(*layer.whole()) if isinstance(layer, CompressedLayer) and layer.store is not None else layer


def tail_of(gaps: Tensor) -> Tensor:
    """How many columns behind the last gap there are: BoolTensor [..., S] -> LongTensor [...]."""
    here = torch.arange(1, gaps.shape[-1] + 1, device=gaps.device)
    return gaps.shape[-1] - torch.where(gaps, here, 0).amax(dim=-1)


def least(numbers: Sequence[int | Tensor]) -> int | Tensor:
    """The least of some numbers; a number on the device if one of them is."""
    known = [n for n in numbers if isinstance(n, int)]
    there = list({id(n): n for n in numbers if isinstance(n, Tensor)}.values())
    if not there:
        return min(known)
    smallest = there[0] if len(there) == 1 else torch.stack([n.to(there[0].device) for n in there]).amin()
    return smallest.clamp(max=min(known)) if known else smallest


def evict(layers: list[CompressedLayer], keep: Tensor, counts: Tensor) -> None:
    """Drop rows of layers that hold equally many.

    Args:
        keep: BoolTensor [layers, B, G, held]; G = 1 where all heads keep the same. counts: LongTensor [layers, B, G] in
            main memory, how many of them are True.
    """
    heads, held = keep.shape[2:]
    tails = tail_of((~keep).any(dim=2).any(dim=1))
    order = keep.to(torch.uint8).argsort(dim=3, stable=True)  # what stays goes last, both in order
    tags: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for layer in layers for name in layer.tags):
        known = [layer.tags.get(name) for layer in layers]
        some = next(tag for tag in known if tag is not None)
        if all(tag is some for tag in known):
            stacked = _filled_up(some, held, name == REAL).expand(len(layers), -1, heads, -1)
        else:  # layers without it, and records of another turn's method, which know nothing of the rows since: 0
            filled = [_filled_up(some[..., :0] if tag is None else tag, held, name == REAL) for tag in known]
            stacked = torch.stack([tag.expand(-1, heads, -1) for tag in filled])
        tags[name] = stacked.gather(3, order)
    for i, (layer, own) in enumerate(zip(layers, counts, strict=True)):
        start = held - int(own.max())
        rows, valid = order[i, ..., start:], None
        even = bool((own == own[:, :1]).all())
        if not even or bool((own != own[0, 0]).any()):
            valid = keep[i].gather(2, rows)
        # copies: a part of all layers' tags would hold on to the memory of all of them
        mine = {name: tag[i, ..., start:].clone() for name, tag in tags.items() if name in layer.tags}
        if heads == 1:
            rows, mine = rows[:, 0], {name: tag[:, 0] for name, tag in mine.items()}
        if valid is not None and even:
            valid = valid[:, 0]
        layer.take(rows, valid, mine, tails[i])


def by_head(tag: Tensor) -> Tensor:
    """A tag [B, rows] or [B, G, rows] as [B, 1 or G, rows]."""
    return tag if tag.dim() == 3 else tag[:, None]


def _filled_up(tag: Tensor, held: int, value: float = 0) -> Tensor:
    """A tag [B, rows] or [B, G, rows] as [B, 1 or G, held]."""
    tag = by_head(tag)
    missing = held - tag.shape[2]
    return tag if missing <= 0 else torch.nn.functional.pad(tag, (0, missing), value=value)


def let_go(cache: Any, ends: bool) -> None:
    """Have layers that attend within a window forget what no later token sees.

    What one of them has forgotten cannot be gone back to, in no layer: all refuse that alike.

    Args:
        ends: whether a forward has ended; else one begins, and nothing that came before it will be taken back.
    """
    layers = [layer for layer in getattr(cache, "layers", None) or () if isinstance(layer, CompressedLayer)]
    if any([layer.let_go() for layer in layers if layer.reach is not None and not (ends and layer.record_past)]):
        for layer in layers:
            layer.tail = layer.prompt - layer.held


def compressed(cache: Any) -> bool:
    """Whether a KV cache has lost rows to vtc."""
    return CompressedLayer in map(type, getattr(cache, "layers", None) or ())  # asked in every decode step


def check_cache(cache: Any, attending: Sequence[int] | None = None) -> None:
    """Refuse, in one sentence, caches whose rows cannot be left out.

    Args:
        attending: the layers that keep rows; others keep a state of their own, of whatever kind. None = all do.
    """
    if cache is None:
        return
    if not isinstance(cache, Cache):
        raise ValueError(f"past_key_values is a {type(cache).__name__}; expected a transformers DynamicCache.")
    if getattr(cache, "is_compileable", False):
        raise ValueError(
            "a static KV cache has a fixed length, which compression changes; "
            'use the default dynamic cache (leave out cache_implementation="static").'
        )
    if getattr(cache, "offloading", False):
        raise ValueError("an offloaded KV cache is not supported under compression; use the default DynamicCache.")
    for i, layer in enumerate(cache.layers):
        known = (DynamicLayer, DynamicSlidingWindowLayer, CompressedLayer)
        if type(layer) not in known and (attending is None or i in attending):
            raise ValueError(
                f"a {type(layer).__name__} KV cache is not supported under compression; use the default DynamicCache."
            )
