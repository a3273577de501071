"""Flow: one forward on its way through the language model — how long its rows are at each layer, and what of them.

The batch starts as one Part; every stage that drops tokens adds another one, from its layer on. A layer is handed the
mask, positions and rotary tables of its Part and of its own KV cache, which earlier forwards may have left with fewer
rows than its neighbours'.

Visual tokens lie in the row of the batch, between the text. What becomes of those that lie in a memory, which some
layers attend to, is in `memory.py`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vtc import ops
from vtc.cost_layers import layer_config
from vtc.engine.find_layout import Found
from vtc.engine.kv_cache import ORDINAL, REAL, CompressedLayer, let_go, tail_of
from vtc.engine.plan import Plan
from vtc.engine.sight import Sight
from vtc.engine.versions import cache_of
from vtc.layout import VisualSpan
from vtc.models.decoder import SEEING, decoder_for
from vtc.models.family import Blocks
from vtc.selection import Selection
from vtc.transfer import upload

Rotary = tuple[Tensor, Tensor] | Tensor  # (cos, sin), or one complex table


@dataclass
class Part:
    """The batch as the layers from `first` on see it.

    Attributes:
        valid: BoolTensor [B, S], False for padding and unused slots; None = all real.
        positions: [B, S] or [3, B, S], what the rotary embedding sees.
        shift: LongTensor [B], how far text behind the pictures has moved down in this forward; None = not at all.
        slot: LongTensor [B, S], position of each slot in the forward's own input.
        ordinals: LongTensor [B, S], the number of each slot's token as a window counts: its place in the conversation,
            or, under compact positions, among what is left of it.
        plan: how it came from the Part before; None for the first.
        rotary: (cos, sin) of `positions`, once known, by `Decoder.tables_of` of the layers they are for. numbers: see
            `Flow.text_positions`.
        tail: how many of the last tokens all rows hold without a gap: a cache can be cropped by as many. A number on
            the device; None in a part that holds all tokens.
        where: per span, LongTensor [N], the slots of its tokens.
    """

    first: int
    width: int
    valid: Tensor | None
    positions: Tensor
    shift: Tensor | None
    slot: Tensor
    tail: Tensor | None
    where: list[Tensor]
    ordinals: Tensor
    plan: Plan | None = None
    rotary: dict[Hashable, Rotary] = field(default_factory=dict)
    numbers: Tensor | None = None


class Flow:
    """State of one forward of the language model `lm`; `spans` are its visual spans, none in a decode step.

    What is known before the language model runs is known in main memory; what follows from choices stays on the device,
    and only how many tokens are left is known on both sides.

    Args:
        kwargs: the language model's keyword arguments, before anything is changed in them.
        found: its visual spans and where their tokens are.
        compact: renumber the positions of what is left, instead of leaving every token its own.
        axes: how many position rows there are, such as (t, h, w); 0 = one position per token.
        ends: LongTensor [B] in main memory, where each row's prompt ends (`Forward.ends`); None = with the row.
        mask: the caller's attention mask in main memory, None without one or where it is not known.
        blocks: tokens of this forward that see each other; None = each sees what came before it.
    """

    def __init__(
        self,
        lm: nn.Module,
        kwargs: dict[str, Any],
        found: Found | None,
        compact: bool,
        axes: int,
        ends: Tensor | None = None,
        mask: Tensor | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self.lm, self.compact, self.axes, self.ends, self.found = lm, compact, axes, ends, found
        embeds: Tensor = kwargs["inputs_embeds"]
        self.rows, self.length, _ = embeds.shape
        self.device = embeds.device
        self.cache: Cache | None = cache_of(kwargs)
        self.seen = self.cache.get_seq_length() if self.cache is not None else 0  # logical
        let_go(self.cache, ends=False)
        self.decoder = decoder_for(lm)
        self.sight = Sight(self, blocks)
        layers = [] if self.cache is None or not self.seen else self.cache.layers
        self.attending = self.decoder.attending(lm.config)
        self.pasts = [x if isinstance(x, CompressedLayer) and x.is_initialized else None for x in layers]
        self.known = {id(past) for past in self.pasts if past is not None}  # layers that may be used in this forward
        for past in self.pasts:
            if past is None:
                continue
            past.reading = None  # also where an earlier forward broke off
            if past.keys is not None and past.keys.shape[0] != self.rows:
                held = past.keys.shape[0]
                raise ValueError(f"the compressed cache holds {held} rows, the input {self.rows}; they must agree.")
        given = kwargs.get("attention_mask")
        self.user = None if given is None else given.bool().to(self.device)
        self.left: Tensor | None = None  # BoolTensor [B, L] in main memory: placeholders that stand for nothing
        self._host = mask if given is not None and mask is not None and mask.shape == given.shape else self.user
        start = min((p.prompt + p.dropped for p in self.pasts if p is not None), default=0)
        if self._host is not None and bool((self._host[:, start:] != 0).all()):
            self.user = self._host = None  # nothing that a cache layer does not know by itself
        self.states = [None if past is None else past.state for past in self.pasts]
        self.layout = None if found is None else found.layout
        self.spans: tuple[VisualSpan, ...] = self.layout.spans if self.layout else ()
        self.places = None if found is None else found.places  # where the visual tokens are now
        self.index = [] if found is None else found.numbers()  # per span, which of its own tokens they are
        self.chosen: list[Selection | None] = [None] * len(self.spans)
        self.history: list[tuple[int, list[Selection | None]]] = []  # `chosen`, from which layer on
        self.parts = [self._first(kwargs)]
        self.rotated: bool | None = False  # the language model has asked its rotary embedding; None: somebody else asks
        self.tags: dict[Hashable, tuple[Tensor, ...]] = {}  # what `kv_tags.py` notes of this forward's rows
        self._visible: dict[Hashable, Tensor | None] = {}
        self._groups: dict[Hashable, tuple[object, Tensor | None, Tensor | None, Tensor | None]] = {}
        self._shifts: dict[Hashable, Tensor] = {}
        self._masks: dict[Hashable, Any] = {}
        self._rotaries: dict[Hashable, Rotary] = {}

    @property
    def where(self) -> list[Tensor]:
        """Per span, LongTensor [N], the present slots of its tokens."""
        return self.part.where

    @property
    def zero(self) -> int:
        """The layer whose mask and rotary tables the language model makes: the first one that attends."""
        return self.attending[0]

    def holding(self, cache: Cache) -> list[int]:
        """The layers of a cache that hold rows; a draft that leaves early has fewer."""
        return [i for i in self.attending if i < len(cache.layers)]

    def past(self, layer: int) -> CompressedLayer | None:
        held = self.sight.holders[layer]
        return self.pasts[held] if held < len(self.pasts) else None

    def state(self, layer: int) -> Hashable:
        """Equal for layers whose caches held the same rows when this forward began."""
        held = self.sight.holders[layer]
        return self.states[held] if held < len(self.states) else None

    @property
    def uneven(self) -> bool:
        """Whether this forward's layers held different rows when it began, or heads of theirs."""
        heads = any(past is not None and past.masks_heads for past in self.pasts)
        return heads or any(
            self.state(i) != self.state(self.sight.leader(i)) or self._moved(i) is not None
            for i in self.attending
            if i < len(self.states)
        )

    def _first(self, kwargs: dict[str, Any]) -> Part:
        own = None if self.user is None else self.user[:, -self.length :]
        ids = kwargs.get("position_ids")
        if ids is None:
            ids = torch.arange(self.seen, self.seen + self.length, device=self.device)[None]
        if self.axes:
            ids = (ids[-self.axes :] if ids.dim() == 3 else ids[None]).expand(self.axes, -1, -1)
        ids, past = ids.to(self.device), self.past(self.zero)
        slot = torch.arange(self.length, device=self.device).expand(self.rows, -1)
        ordinals = slot + self.seen
        if past is not None and past.shift is not None:
            moved = past.shift.to(self.device)[:, None]
            ids, ordinals = ids - moved, ordinals - moved
        ids = ids.expand(*ids.shape[:-2], self.rows, -1)
        where = [] if self.places is None else self.places.split(self.places.at[1])
        return Part(0, self.length, own, ids, None, slot, None, where, ordinals)

    # -- shorter from here on ----------------------------------------------------------------------------------

    @property
    def part(self) -> Part:
        return self.parts[-1]

    def shorten(self, hidden: Tensor, selections: list[Selection], first: int) -> Tensor:
        """Compress hidden states [B, S, D] by one Selection per span, for the layers from `first` on.

        Example: the row of `Plan`'s docstring, which a second method shortens before layer 2 (it keeps the later one of
        the two visual tokens that are left):

            parts[0]    from layer 0     slot 0 2 4 5 6 7     where = [1, 2]    index = [1, 3] of the span's four
            parts[1]    from layer 2     slot 0 4 5 6 7       where = [1]       index = [3]
        """
        now = self.part
        assert self.places is not None
        plan = Plan.of(self.rows, now.width, self.places, selections, now.plan and now.plan.unused)
        short, rotary = self._gathered(plan, hidden, {} if self.compact else now.rotary)
        plan.merge_into(short, hidden)
        self.index = plan.outputs.split(torch.cat(self.index)[plan.taken])
        for i, (selection, index) in enumerate(zip(selections, self.index, strict=True)):
            before = self.chosen[i]
            if before is None:
                self.chosen[i] = selection
            elif before.pruned and selection.pruned:
                self.chosen[i] = Selection.prune(index, before.tokens_in, before.ascending and selection.ascending)
            else:
                self.chosen[i] = before.then(selection)
        if self.found is not None:  # a stage before the one that chooses among the tokens
            self.found = self.found._replace(places=plan.outputs, features=plan.merged(self.found.features))
        self.places = plan.outputs
        self.history.append((first, list(self.chosen)))
        positions, shift = plan.positions(now.positions, self.compact)
        if not self.compact:
            shift = now.shift
        elif now.shift is not None:
            shift = shift + now.shift
        self._follow(plan, first, positions, shift, rotary, self.compact)
        return short

    def leave_out(self, hidden: Tensor, plan: Plan, positions: Tensor, shift: Tensor) -> Tensor:
        """Drop what `left` says, before any stage has chosen: hidden states [B, L, D] -> [B, S, D].

        Args:
            plan: which placeholders stay; its outputs are the tokens of all spans, in order.
            positions: [B, L] or [3, B, L], of the prompt as if they had not been there.
            shift: LongTensor [B], how far what follows the prompt moves down.
        """
        assert self.found is not None
        self.part.positions = positions
        self.places = plan.outputs
        self.found = self.found._replace(places=plan.outputs)
        self._follow(plan, 0, plan.positions(positions, False)[0], shift, {}, True)
        return plan.gather(hidden)

    def _follow(
        self,
        plan: Plan,
        first: int,
        positions: Tensor,
        shift: Tensor | None,
        rotary: dict[Hashable, Rotary],
        closes: bool,
    ) -> None:
        """The part that `plan` makes of the present one, for the layers from `first` on; `closes`: what follows a token
        that is gone moves up."""
        now, valid = self.part, None
        if now.valid is not None or plan.ragged:
            valid = plan.valid if now.valid is None else now.valid.gather(1, plan.slot) & plan.valid
        slot, ordinals = now.slot.gather(1, plan.slot), now.ordinals.gather(1, plan.slot)
        if closes:
            ordinals = ordinals - plan.gone.cumsum(dim=1).gather(1, plan.slot)
        gaps = slot != torch.arange(self.length - plan.width, self.length, device=self.device)
        part = Part(
            first,
            plan.width,
            valid,
            positions,
            shift,
            slot,
            tail_of(gaps.any(dim=0)),
            plan.outputs.split(plan.outputs.at[1]),
            ordinals,
            plan,
            rotary,
        )
        if now.plan is None and first == 0:
            self.parts.pop()
        self.parts.append(part)

    def shorten_again(self, hidden: Tensor, layer: int) -> Tensor:
        """What `shorten` made of `hidden` before `layer`, when that layer is computed again for its gradients."""
        part = self.parts[self.number_of_part(layer)]
        if part.plan is None or part.first != layer or layer == 0:
            return hidden
        return part.plan.merge_into(part.plan.gather(hidden), hidden)

    def _gathered(
        self, plan: Plan, hidden: Tensor, rotary: dict[Hashable, Rotary]
    ) -> tuple[Tensor, dict[Hashable, Rotary]]:
        """What stays of the hidden states, and of tables that stay valid: where positions do, tokens keep their order,
        so one index does for both."""
        together: list[Tensor] = []  # tables that can go along in one launch
        for tables in rotary.values():
            if not isinstance(tables, Tensor) and tables[0].dim() == 3 and tables[0].device == hidden.device:
                together += tables
        short, *taken = ops.gather_rows(plan.index.to(hidden.device), [hidden, *together])
        made = dict(zip(map(id, together), taken, strict=True))
        carried: dict[Hashable, Rotary] = {}
        for kind, tables in rotary.items():
            if isinstance(tables, Tensor):  # DeepSeek-V2: one complex table
                carried[kind] = self._carried(plan, tables)
                continue
            cos, sin = (made[id(x)] if id(x) in made else self._carried(plan, x) for x in tables)
            carried[kind] = (cos, sin)
        return short, carried

    def _carried(self, plan: Plan, table: Tensor) -> Tensor:
        """Rotary table [..., B or 1, S, d] of the slots that stay."""
        taken, before = plan.index.to(table.device).unsqueeze(-1), table.shape[:-3]
        rows = table.expand(*before, self.rows, -1, -1)
        return rows.gather(-2, taken.expand(*before, -1, -1, table.shape[-1]))

    # -- where the text is -------------------------------------------------------------------------------------

    def visual_and_text(self) -> tuple[Tensor, Tensor]:
        """BoolTensors [B, S]: present slots of visual tokens; of the prompt's text behind its first visual token."""
        part = self.part
        assert self.places is not None
        visual = torch.zeros(self.rows, part.width, dtype=torch.bool, device=self.device)
        visual.view(-1).index_fill_(0, self.places.flat(part.width), True)
        text = ~visual & (part.slot > self.bounds[:, :1])
        if self.ends_here is not None:
            text = text & (part.slot < self.ends_here[:, None])
        return visual, text if part.valid is None else text & part.valid

    @cached_property
    def _span_bounds(self) -> Tensor:
        """LongTensor [B, 2] in main memory: first and last visual position of each row; rows without pictures get the
        row's end."""
        found = [[self.length, self.length] for _ in range(self.rows)]
        for span in self.spans:
            first, last = int(span.index[0]), int(span.index[-1])
            row = found[span.row]
            row[0] = min(row[0], first)
            row[1] = last if row[1] == self.length else max(row[1], last)
        return torch.tensor(found)

    @cached_property
    def bounds(self) -> Tensor:
        """`_span_bounds` on the device."""
        return upload(self._span_bounds, self.device)

    @cached_property
    def ends_here(self) -> Tensor | None:
        """`ends` on the device."""
        return None if self.ends is None else upload(self.ends, self.device)

    @cached_property
    def prompt(self) -> Tensor:
        """BoolTensor [B, L] in main memory: the prompt, without padding, placeholders that stand for nothing, and what
        follows its end."""
        places = torch.arange(self.length).expand(self.rows, -1)
        own = torch.ones_like(places, dtype=torch.bool)
        if self._host is not None:
            own = self._host[:, -self.length :].cpu().bool()
        if self.left is not None:
            own = own & ~self.left
        return own if self.ends is None else own & (places < self.ends[:, None])

    @cached_property
    def _text(self) -> tuple[Tensor, Tensor]:
        """LongTensors [B, R] in main memory and on the device: positions of the text after each row's pictures (else
        its last token); -1 = none."""
        own, bounds = self.prompt, self._span_bounds
        places = torch.arange(self.length)
        after = own & (places > bounds[:, 1:])
        last = torch.where(own, places, -1).amax(dim=1)
        lonely = (~after.any(dim=1)) & (bounds[:, 1] < self.length)
        after[lonely, last[lonely]] = True
        found = padded(after, int(after.sum(dim=1).max()))
        return found, upload(found, self.device)

    @cached_property
    def _last(self) -> Tensor:
        """LongTensor [B, 1]: position of each prompt's last token."""
        places = torch.arange(self.length)
        return upload(torch.where(self.prompt, places, -1).amax(dim=1, keepdim=True), self.device)

    def slots(self, positions: Tensor) -> Tensor:
        """Present slots of positions [B, R] of the forward's input (-1 stays)."""
        slots = positions.clamp(min=0)
        for part in self.parts:
            slots = slots if part.plan is None else part.plan.place.gather(1, slots)
        return torch.where(positions >= 0, slots, -1)

    @property
    def text_after(self) -> Tensor:
        """LongTensor [B, R], present slots of the text after the pictures; -1 behind shorter ones."""
        return self.slots(self._text[1])

    def counts(self) -> tuple[int, int, bool]:
        """The most text behind its first visual token, and the most visual tokens, that any row has now; and whether
        any row has such text before its last visual token."""
        places, bounds = torch.arange(self.length), self._span_bounds
        text = self.prompt & (places > bounds[:, :1])
        visual = [0] * self.rows
        for span, where in zip(self.spans, self.where, strict=True):
            text[span.row, span.index] = False
            visual[span.row] += len(where)
        return int(text.sum(dim=1).max()), max(visual), bool((text & (places < bounds[:, 1:])).any())

    def most(self, number: int) -> int:
        """The most tokens of the prompt that any row has in a part, padding left out."""
        counts = self.prompt.sum(dim=1).tolist()
        for span, where in zip(self.spans, self.parts[number].where, strict=True):
            counts[span.row] -= span.tokens - len(where)
        return max(counts)

    def words(self, row: int) -> int:
        """How many of `text_after` there are in a row; they come first."""
        return int((self._text[0][row] >= 0).sum())

    @property
    def last(self) -> Tensor:
        """LongTensor [B, 1], present slot of each row's last token."""
        return self.slots(self._last)

    # -- what a layer is told ----------------------------------------------------------------------------------

    def number_of_part(self, layer: int) -> int:
        number = len(self.parts) - 1
        while self.parts[number].first > layer:
            number -= 1
        return number

    # transformers' own mask wants positions without gaps (it reads gaps as packed sequences); the rotary embedding gets
    # `part.positions`, which have them
    def text_positions(self, part: Part) -> Tensor:
        """LongTensor [B, S], consecutive numbers: what transformers reads as "one sequence", gaps or not."""
        if part.numbers is None:
            part.numbers = torch.arange(self.seen, self.seen + part.width, device=self.device).expand(self.rows, -1)
        return part.numbers

    def visible(self, layer: int, part: Part) -> Tensor | None:
        """BoolTensor [B, seen + S] over the cache (as it counts itself) and this forward, or None: all are real.

        Example: a compressed layer holds 6 rows of a prompt of 8 and one generated token; the batch row is padded by
        one on the left, and the next token comes (x = dropped, p = padding, seen = 9, S = 1):

            logical      0 1 2 3 4 5 6 7 8 9
            holds        x x p t t t t t t .
            visible      0 0 0 1 1 1 1 1 1 1     the first two columns are cut off again by the layer's mask offset
        """
        key = (part.first, part.width, self.state(layer))
        if key not in self._visible:
            self._visible[key] = self._make_visible(layer, part)
        return self._visible[key]

    def _make_visible(self, layer: int, part: Part) -> Tensor | None:
        past, before = self.past(layer), None
        if past is not None:
            user = None if self.user is None else self.user[:, : self.seen]
            before = past.visible(user, self.rows, self.seen, self.device)
        elif self.user is not None:
            before = self.user[:, : self.seen]
        if before is None and part.valid is None:
            return None
        ones = torch.ones(self.rows, self.seen + part.width, dtype=torch.bool, device=self.device)
        before = ones[:, : self.seen] if before is None else before
        return torch.cat([before, ones[:, self.seen :] if part.valid is None else part.valid], dim=1)

    def seen_rows(self, layer: int) -> Tensor | None:
        """BoolTensor [B, held + S]: `visible` without the rows that the layer's cache no longer holds or reads."""
        visible, past = self.visible(layer, self.parts[self.number_of_part(layer)]), self.past(layer)
        if visible is None:
            return None
        return visible[:, self.sight.left_behind(layer) if past is None else past.unread :]

    def seen_keys(self, layer: int) -> Tensor | None:
        """The same; of each head, [B, G, held + S], where heads hold unequally many."""
        seen, past = self.seen_rows(layer), self.past(layer)
        own = None if past is None else past.tags.get(REAL)
        if past is None or own is None:
            return seen
        missing = self.seen - past.unread + self.parts[self.number_of_part(layer)].width - own.shape[2]
        own = torch.nn.functional.pad(own, (0, missing), value=True)
        return own if seen is None else own & seen[:, None]

    def handed(self, embeds: Tensor, made: Any) -> Any:
        """The attention mask that the language model is handed with embeddings [B, S, D].

        Args:
            made: what its model has made for it; None = nothing but the caller's.
        """
        untouched = self.part.plan is None and not any(past is not None for past in self.pasts)
        if untouched and made is not None:
            return made
        if untouched or (self.sight.plain and not self.sight.several):
            return self.visible(self.zero, self.part)
        return self.sight.masks(embeds)

    def for_layer(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Changed keyword arguments of a decoder layer, or None where those of layer 0 are right.

        The language model is handed a mask for each kind of layer (full, sliding), made for the first layer of that
        kind, and makes rotary tables for the first layer that attends (`zero`). They are right for every layer of the
        same Part whose cache held the same rows when the forward began (`state`):

            layer            0      1      2      3
            part             0      0      1      1
            rows in cache    9      9      9      4       (an earlier forward's method has evicted in layer 3)
            handed           own    own    made   made

        Layers that do not attend are told which rows are padding, where a Part is not the first.
        """
        number = self.number_of_part(layer)
        part, leader = self.parts[number], self.sight.leader(layer)
        if self.sight.kinds[layer] not in SEEING:
            padding = None if part.valid is None or part.width == 1 else part.valid.to(hidden.device)
            return {"attention_mask": padding} if number else None
        if number == 0 and kwargs.get("position_embeddings") is not None:
            # made from part.positions, for the cache of `zero`
            part.rotary.setdefault(self._kind_of_tables(layer), kwargs["position_embeddings"])
        past, moved = self.past(layer), self._moved(layer)
        masks_heads = past is not None and past.masks_heads
        if number == 0 and self.state(layer) == self.state(leader) and not masks_heads and moved is None:
            return None
        rotary = self._rotary(number, layer, hidden)
        changes: dict[str, Any] = {} if rotary is None else {"position_embeddings": rotary}
        key = (number, self.sight.kinds[layer], self.state(layer), hidden.device)
        if key not in self._masks:
            mask = self.sight.mask(layer, hidden if hidden.dim() == 3 else hidden[0])
            if masks_heads:
                assert past is not None
                mask = past.of_heads(mask, layer_config(self.lm.config, layer).num_attention_heads, hidden)
            self._masks[key] = mask
        changes["attention_mask"] = self._masks[key]
        if kwargs.get("position_ids") is not None:
            changes["position_ids"] = self.text_positions(part)
        return changes

    def _kind_of_tables(self, layer: int) -> Hashable:
        return self.decoder.tables_of(self.lm.config, layer)

    def _rotary(self, number: int, layer: int, hidden: Tensor) -> Rotary | None:
        """The tables of a layer; None where nothing is rotated."""
        if self.decoder.rotary(self.lm) is None:
            return None
        part, moved, kind = self.parts[number], self._moved(layer), self._kind_of_tables(layer)
        if moved is None:
            if kind not in part.rotary:
                part.rotary[kind] = self._tables(layer, hidden, part.positions)
            return part.rotary[kind]
        past = self.past(layer)
        key = (number, kind, None if past is None else id(past.shift))
        if key not in self._rotaries:
            self._rotaries[key] = self._tables(layer, hidden, part.positions - moved[:, None])
        return self._rotaries[key]

    def _moved(self, layer: int) -> Tensor | None:
        """LongTensor [B], how much further down the tokens of a layer are than `part.positions` says; None = not.

        Under compact positions a cache whose layers lost differently many tokens moves what follows by differently
        much: layer 0's shift is in `part.positions` already, the rest is added here.
        """
        past, zero = self.past(layer), self.past(self.zero)
        own = None if past is None else past.shift
        base = None if zero is None else zero.shift
        if own is base or self.state(layer) == self.state(self.zero):
            return None
        moved = torch.zeros(self.rows, dtype=torch.long, device=self.device)
        moved = moved if own is None else moved + own.to(self.device)
        return moved if base is None else moved - base.to(self.device)

    def placed(self, layer: int) -> Tensor:
        """LongTensor [B, S] or [3, B, S]: the positions to which a layer's keys of this forward are rotated."""
        positions, moved = self.parts[self.number_of_part(layer)].positions, self._moved(layer)
        return positions if moved is None else positions - moved[:, None]

    def counted(self, layer: int) -> Tensor:
        """LongTensor [B, S]: the numbers of a layer's tokens of this forward, as its window counts."""
        ordinals, moved = self.parts[self.number_of_part(layer)].ordinals, self._moved(layer)
        return ordinals if moved is None else ordinals - moved[:, None]

    def tables(self, layer: int, like: Tensor, positions: Tensor) -> Rotary:
        """What the layer's keys at `positions` [B, S] or [3, B, S] are rotated by, in the type of `like`."""
        return self._tables(layer, like, positions)

    def _tables(self, layer: int, hidden: Tensor, positions: Tensor) -> Rotary:
        self.rotated, before = None, self.rotated  # it is not the language model that asks
        try:
            rotary = self.decoder.rotary(self.lm)
            return self.decoder.position_embeddings(rotary, hidden, positions.to(hidden.device), layer)
        finally:
            self.rotated = before

    # -- afterwards --------------------------------------------------------------------------------------------

    def along(self, x: Any, layer: int) -> Any:
        """What a layer is handed besides its hidden states, a value [B, S, ...] per token of the first part."""
        number = self.number_of_part(layer)
        if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[:2] != (self.rows, self.parts[0].width):
            return x
        rows = torch.arange(self.rows, device=x.device)[:, None]
        for part in self.parts[1 : number + 1]:
            assert part.plan is not None
            x = x[rows, part.plan.slot.to(x.device)]
        return x

    def restore(self, x: Tensor, layer: int) -> Tensor:
        """Rows [B, S, D] as `layer` leaves them -> [B, L, D]."""
        for part in reversed(self.parts[: self.number_of_part(layer) + 1]):
            x = x if part.plan is None else part.plan.restore(x)
        return x

    def mark(self, cache: Cache) -> None:
        """Tell every layer of the cache which rows of this forward it does not hold.

        Example, the two parts of `shorten`'s docstring: eight tokens, of which layers 0 and 1 hold six and the others
        five. Their layers of the cache report the logical length 8 and `dropped` 2 or 3; the next token is number 8 to
        all of them, and masks are built for the 6 + 1 or 5 + 1 rows that are there.
        """
        if any(part.plan is not None for part in self.parts):
            for i in self.holding(cache):
                cache.layers[i] = self.converted(cache.layers[i], i)
        let_go(cache, ends=True)

    def converted(self, layer: Any, i: int) -> CompressedLayer:
        """Layer `i` of the cache as one that knows what it holds of this forward."""
        number, past, window = self.number_of_part(i), self.past(i), self.sight.windows[i]
        part = self.parts[number]
        held = layer.keys.shape[-2] if past is None else past.held
        key = (number, self.sight.kinds[i], self.state(i), held)
        if key not in self._groups:
            shift, earlier = part.shift, None if past is None else past.shift
            if earlier is not None:  # one object for all layers that have moved alike
                moved = (number, id(earlier))
                if moved not in self._shifts:
                    here = earlier.to(self.device)
                    self._shifts[moved] = here if shift is None else shift + here
                shift = self._shifts[moved]
            visible = self.seen_keys(i)
            if visible is not None and visible.dim() == 2:
                visible = visible[:, visible.shape[1] - held :]
            ordinals = None
            if window is not None and not (past is not None and past.evicted):
                ordinals = self.sight.ordinals(i)[:, -held:].int()
            self._groups[key] = (object(), visible, shift, ordinals)
        group, visible, shift, ordinals = self._groups[key]
        tail = part.tail if part.tail is not None else held if past is None else past.tail + held - past.prompt
        new = CompressedLayer.of(layer, self.seen + self.length - held, visible, shift, group)
        new.tail, new.reach, new.last = tail, window, None
        if past is None and window is not None and held < self.seen - self.sight.left_behind(i) + part.width:
            # what its own window has left is a part of all there was, and no token can be taken back
            assert new.keys is not None
            assert new.values is not None
            new.keys, new.values, new.tail = new.keys.clone(), new.values.clone(), 0
        if ordinals is not None:
            new.tags = {**new.tags, ORDINAL: ordinals}
        return new


def padded(mask: Tensor, most: int) -> Tensor:
    """BoolTensor [B, S] -> LongTensor [B, R] of the slots that are True, -1 behind shorter rows; R >= 1.

    Args:
        most: how many the fullest row has.
    """
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(1, most)]
    return torch.where(mask.gather(1, order), order, -1)
