"""Sight: what the tokens of a forward see where that is not simply all that came before them.

Layers may attend within a window, which counts tokens of the conversation and not the rows that are left of it; and
some models let a picture, or a prefix, see itself, what follows included. Neither is what a causal mask over the rows
says, so the masks of such layers are made here, from the number that each row's token has in the conversation.

Example: a window of 4, a row "t v v v v t t" of which the second and third v have gone:

    ordinal       0 1 4 5 6
    token 6 sees  . . x x x       the last v and itself, and no more: v number 1 is 5 tokens back
    v 4 sees      . x x . .       and, where the picture sees itself, v 1 sees v 4, too
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from vtc.engine.kv_cache import CompressedLayer
from vtc.engine.versions import causal_mask
from vtc.models.decoder import SEEING
from vtc.models.family import Blocks
from vtc.transfer import upload

if TYPE_CHECKING:
    from vtc.engine.flow import Flow

#: implementations of attention that take a mask of any shape
MASKED = ("sdpa", "eager")


class Range(NamedTuple):
    """The keys that each query of a layer sees: LongTensors [B, S], the first and the last; None = the first there is,
    and the query itself. `place`: LongTensor [B, P + S], where each key stands in the order in which that is so; None =
    as they are."""

    first: Tensor | None = None
    last: Tensor | None = None
    place: Tensor | None = None


#: of a query that sees all that came before it
EVERYTHING = Range()


class Offered(NamedTuple):
    """A layer of the cache that has lost nothing but what its own window has left behind: so many rows, from token
    number `start` on."""

    rows: int
    start: int


class Sight:
    """What the queries of one forward see, layer by layer.

    Attributes:
        kinds: of each layer, as masks are told apart by. windows: how many tokens back it sees, None = all. holders:
            the layer whose part of the cache it reads.
        blocks: tokens that see each other; None = there are none.
    """

    def __init__(self, flow: Flow, blocks: Blocks | None) -> None:
        decoder, config = flow.decoder, flow.lm.config
        self.flow, self.blocks = flow, blocks
        self.kinds, self.windows = decoder.kinds(config), decoder.windows(config)
        self.holders = decoder.holders(config)
        self._numbers = None if blocks is None else upload(blocks.number, flow.device)
        self._ranges: dict[Hashable, Range] = {}
        self._offered = _offered(flow) if any(self.windows) or blocks is not None else []
        self._recording: list[Any] = []

    def window(self, layer: int) -> int | None:
        """The window of a layer, where it hides anything from this forward."""
        window = self.windows[layer]
        return window if window is not None and self.flow.seen + self.flow.length > window else None

    def own_blocks(self, layer: int) -> Tensor | None:
        """LongTensor [B, S]: which block each slot's token is in; None where blocks are nothing to the layer."""
        if self._numbers is None or self.blocks is None or self.kinds[layer] not in self.blocks.kinds:
            return None
        return self._numbers.gather(1, self.flow.parts[self.flow.number_of_part(layer)].slot)

    @property
    def plain(self) -> bool:
        """Whether every layer sees all that came before."""
        return self.blocks is None and all(self.window(i) is None for i in range(len(self.windows)))

    @property
    def several(self) -> bool:
        """Whether the language model makes a mask for each of several kinds of layers."""
        return len(SEEING.intersection(self.kinds)) > 1

    def leader(self, layer: int) -> int:
        """The first layer that the language model makes the same mask for."""
        return self.kinds.index(self.kinds[layer])

    # -- caches that let go by themselves ----------------------------------------------------------------------

    def record(self) -> None:
        """Have transformers' own layers with a window keep all that is attended to, until `release`."""
        for layer in [] if self.flow.cache is None else self.flow.cache.layers:
            if isinstance(layer, DynamicSlidingWindowLayer) and getattr(layer, "record_past", None) is False:
                layer.record_past = True
                self._recording.append(layer)

    def release(self) -> None:
        """Let them have what their window reaches, as without `record`."""
        for layer in self._recording:
            layer.record_past = False
            if layer.is_initialized:
                reach = layer.sliding_window - 1
                layer.keys, layer.values = layer.keys[:, :, -reach:], layer.values[:, :, -reach:]
        self._recording.clear()

    def cuts(self, layer: Any) -> bool:
        """Whether a layer of the cache has let go of rows that were attended to in this forward."""
        if not isinstance(layer, DynamicSlidingWindowLayer) or getattr(layer, "record_past", False):
            return False
        if self._offered:
            raise ValueError(
                "this version of transformers forgets what a layer with a window has attended to before it can be "
                "read: use transformers 5.24, or start again without past_key_values."
            )
        return layer.is_initialized

    # -- masks -------------------------------------------------------------------------------------------------

    def masks(self, hidden: Tensor) -> Any:
        """What the language model takes for an attention mask: one of each kind of its layers, or that of all."""
        kinds = [kind for kind in dict.fromkeys(self.kinds) if kind in SEEING]
        made = {kind: self.mask(self.kinds.index(kind), hidden) for kind in kinds}
        config: Any = self.flow.lm.config
        return made if getattr(config, "layer_types", None) else next(iter(made.values()))

    def mask(self, layer: int, hidden: Tensor) -> Any:
        """The mask of a layer, of all heads alike, for what goes into it: hidden states [B, S, D]."""
        flow = self.flow
        config: Any = flow.lm.config
        if self.window(layer) is None and self.own_blocks(layer) is None:
            held = self.holders[layer]
            alone = None if flow.cache is None else Cache(layers=flow.cache.layers[held : held + 1])
            visible = flow.visible(layer, flow.parts[flow.number_of_part(layer)])
            return causal_mask(config, hidden, None if visible is None else visible.to(hidden.device), alone)
        sees = self._sees(layer)[:, None].to(hidden.device)
        if config._attn_implementation == "eager":
            return torch.zeros_like(sees, dtype=hidden.dtype).masked_fill(~sees, torch.finfo(hidden.dtype).min)
        return sees

    def _sees(self, layer: int) -> Tensor:
        """BoolTensor [B, S, P + S]: which keys each query of a layer sees."""
        keys, queries = self._ordinals(layer)
        real, total = self.flow.seen_rows(layer), keys.shape[1]
        places = torch.arange(total, device=keys.device)
        found = self._range(layer, keys, queries)
        own = places[total - queries.shape[1] :].expand_as(queries) if found.last is None else found.last
        places = places if found.place is None else found.place[:, None]
        sees = places <= own[..., None]
        if found.first is not None:
            sees = sees & (places >= found.first[..., None])
        return sees if real is None else sees & real[:, None]

    # -- for the report ----------------------------------------------------------------------------------------

    def within_windows(self) -> dict[int, tuple[Tensor, Tensor]]:
        """By layer with a window: `within` of it."""
        known: dict[Hashable, tuple[Tensor, Tensor]] = {}
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for i, window in enumerate(self.windows):
            if window is None:
                continue
            key = (self.flow.number_of_part(i), window)
            if key not in known:
                known[key] = self.within(i, window)
            found[i] = known[key]
        return found

    def within(self, layer: int, window: int) -> tuple[Tensor, Tensor]:
        """Of this forward's tokens alone, each [B]: how many the next token sees, and how many pairs of a query and a
        key there are, as `DecoderCost.pairs` counts them."""
        part = self.flow.parts[self.flow.number_of_part(layer)]
        own, here = part.ordinals.contiguous(), torch.arange(part.width, device=part.slot.device)
        real = torch.ones_like(own, dtype=torch.bool) if part.valid is None else part.valid
        ends = own[:, -1:] + 1  # the number of the next token
        count = torch.nn.functional.pad(real.cumsum(dim=1), (1, 0))  # real tokens before each
        first = torch.searchsorted(own, own - window, right=True)
        pairs = ((count.gather(1, (here + 1).expand_as(first)) - count.gather(1, first) - 0.5) * real).sum(dim=1)
        return (real & (own > ends - window)).sum(dim=1), pairs

    # -- as ranges ---------------------------------------------------------------------------------------------

    def range(self, layer: int) -> Range:
        """The keys that each slot's query sees; some of them may be padding."""
        if self.window(layer) is None and self.own_blocks(layer) is None:
            return EVERYTHING
        flow = self.flow
        key = (flow.number_of_part(layer), self.kinds[layer], flow.state(layer))
        if key not in self._ranges:
            self._ranges[key] = self._range(layer, *self._ordinals(layer))
        return self._ranges[key]

    def _range(self, layer: int, keys: Tensor, queries: Tensor) -> Range:
        blocks, window = self.own_blocks(layer), self.window(layer)
        if blocks is not None and self.blocks is not None and self.blocks.gaps:
            return _apart(blocks >= 0, keys.shape[1] - queries.shape[1])
        begins, last = (None, None) if blocks is None else _runs(blocks, keys.shape[1] - queries.shape[1])
        if window is None:
            return Range(None, last)
        first = torch.searchsorted(keys, queries - window, right=True)
        if begins is not None and self.blocks is not None and self.blocks.whole:
            first = torch.minimum(first, begins)
        return Range(first, last)

    def _ordinals(self, layer: int) -> tuple[Tensor, Tensor]:
        """LongTensors [B, P + S] and [B, S]: the numbers of a layer's keys, and of its queries.

        They rise along a row: what fills up shorter rows has the number of what comes first.
        """
        own = self.flow.counted(layer).contiguous()
        past = self.before(layer)
        return own if past is None else torch.cat([past.to(own.device), own], dim=1), own

    def ordinals(self, layer: int) -> Tensor:
        """LongTensor [B, P + S]: the numbers of all tokens that a layer attends to in this forward."""
        return self._ordinals(layer)[0]

    def left_behind(self, layer: int) -> int:
        """How many tokens of the conversation a layer whose cache is transformers' own no longer offers."""
        number = self.holders[layer]
        held = self._offered[number] if number < len(self._offered) else None
        return held.start if isinstance(held, Offered) else 0

    def before(self, layer: int) -> Tensor | None:
        """LongTensor [B, P]: the numbers of the tokens that a layer's cache offered when the forward began."""
        if not self._offered:
            return None
        held = self._offered[self.holders[layer]]
        if isinstance(held, Offered):
            numbers = torch.arange(held.start, held.start + held.rows, device=self.flow.device)
            return numbers.expand(self.flow.rows, -1)
        past, rows = held
        return past.ordinals()[:, :rows]


def _offered(flow: Flow) -> list[Offered | tuple[CompressedLayer, int]]:
    """What each layer of the cache offers to a forward that begins."""
    if flow.cache is None or not flow.seen:
        return []
    found: list[Offered | tuple[CompressedLayer, int]] = []
    for layer in flow.cache.layers:
        if isinstance(layer, CompressedLayer):
            found.append((layer, layer.held))
        elif isinstance(layer, DynamicLayer):
            found.append(Offered(*layer.get_mask_sizes(0)))
        else:  # it holds no rows
            found.append(Offered(0, 0))
    return found


def _apart(block: Tensor, past: int) -> Range:
    """The keys that each query sees in rows whose block [B, S] has gaps: words within it see what came before them.

    In the order "words of the gaps, the last first; what comes before the block; the block; what follows" every query
    sees a range. Args: past: how many keys come before.

    Example: a row "t v v u v t", of which the v see each other and u is a word in the gap:

        slot     0 1 2 3 4 5
        place    1 2 3 0 4 5
        first    1 1 1 0 0 0     v 4 sees u, the v before do not
        last     1 4 4 3 4 5     u sees no v behind it
    """
    here = torch.arange(block.shape[1], device=block.device)
    begin = torch.where(block, here, block.shape[1]).amin(dim=1, keepdim=True)
    end = torch.where(block, here, -1).amax(dim=1, keepdim=True)
    word = (here >= begin) & (here <= end) & ~block
    words, own = word.cumsum(dim=1), block.cumsum(dim=1)
    count = words[:, -1:]
    start = count + past + begin  # of the block
    outside = torch.where(here < begin, count + past + here, past + here)
    place = torch.where(block, start + own - 1, torch.where(word, count - words, outside))
    last = torch.where(block, start + own[:, -1:] - 1, torch.where(word, start + own - 1, outside))
    earlier = count + torch.arange(past, device=block.device)
    return Range(count - words, last, torch.cat([earlier, place], dim=1))


def _runs(blocks: Tensor, past: int) -> tuple[Tensor, Tensor]:
    """LongTensors [B, S]: the first and the last key of each token's block, itself where it is in none.

    Args:
        blocks: LongTensor [B, S], -1 = none. past: how many keys come before.
    """
    here = torch.arange(blocks.shape[1], device=blocks.device)
    apart = torch.ones_like(blocks, dtype=torch.bool)
    apart[:, 1:] = (blocks[:, 1:] != blocks[:, :-1]) | (blocks[:, 1:] < 0)  # from the token before
    first = torch.where(apart, here, 0).cummax(dim=1).values
    ends = torch.ones_like(apart)
    ends[:, :-1] = apart[:, 1:]
    last = torch.where(ends, here, blocks.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    return first + past, last + past
