"""Tags: what every row of a compressed cache layer is; they follow it through beam search, cropping and eviction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.engine.flow import Flow
from vtc.engine.kv_cache import REAL, CompressedLayer, least
from vtc.transfer import upload

#: per row of a cache layer: its place in the conversation, its picture (-1 = text), that picture's number of tokens,
#: and what it is a part of, an index into KINDS
SLOT, OWNER, TOTAL, KIND = "slot", "owner", "total", "kind"
#: in the smallest numbers that have room for them, as every row of every layer (and head) has them
SIZES = (torch.int32, torch.int16, torch.int32, torch.int8)
#: and, where some method asks for keys before their rotation, its position on each axis
PLACES = ("position 0", "position 1", "position 2", "position 3")
KINDS = ("text", "image", "video")


def compressed_layer(flow: Flow, cache: Any, i: int) -> CompressedLayer:
    """Layer `i` of the cache; a layer that has lost nothing so far becomes one that can."""
    layer = cache.layers[i]
    if not isinstance(layer, CompressedLayer):
        layer = cache.layers[i] = flow.converted(layer, i)
    return layer


def settle(flow: Flow, cache: Any) -> None:
    """Make the layers of a compressed cache agree on what they refuse: whoever goes on with it or crops it changes one
    layer after the other, so one that refuses must not come behind some that did not.

    Example, layers of a prompt of eight tokens and one later one; the second has lost its third token, so that all of
    them can be cropped by six:

        layer     0      1
        held      9      8
        tail      5      5      of the prompt, beside the later one; layer 0 could give all of its eight
    """
    layers = [compressed_layer(flow, cache, i) for i in flow.holding(cache)]
    later = [0 if layer.keys is None else layer.held - layer.prompt for layer in layers]
    known: dict[tuple[int, int], int | Tensor] = {}  # layers share tails: nothing is added up twice
    for layer, more in zip(layers, later, strict=True):
        known.setdefault((id(layer.tail), more), layer.tail + more)
    all_can = least(list(known.values()))
    tails = {more: all_can - more for more in set(later)}
    for layer, more in zip(layers, later, strict=True):
        layer.tail = tails[more]


def tagged(flow: Flow, cache: Any, i: int) -> CompressedLayer:
    """Layer `i` of the cache, with tags for the rows that this forward has added.

    Example: a row "t v v v t" (v = a picture of three tokens), of which an earlier stage kept the second v:

        held      t  v  t
        slot      0  2  4      its place in the conversation
        owner    -1  0 -1      number of its picture
        total     0  3  0      tokens of that picture before anything was dropped, what `keep` refers to
        kind      0  1  0      text, image, text
    """
    layer = compressed_layer(flow, cache, i)
    part = flow.parts[flow.number_of_part(i)]
    held = layer.held
    earlier = held - part.width
    known = layer.tags.get(SLOT)
    before = 0 if known is None else known.shape[-1]
    if before < earlier:  # rows of forwards without this engine: text, for all we know
        slot = torch.arange(before, earlier, device=flow.device).expand(flow.rows, -1) + layer.dropped
        told = (slot, torch.full_like(slot, -1), torch.zeros_like(slot), torch.zeros_like(slot))
        _extend(layer, *(tag.to(kind) for tag, kind in zip(told, SIZES, strict=True)))
        before = earlier
    if not flow.spans and (seen := flow.seen_keys(i)) is not None:  # a later turn may have padding of its own
        layer.take_in(seen if seen.dim() == 2 else None)
    if before < held:
        layer.kinds = layer.kinds | {span.modality for span in flow.spans}
        _extend(layer, *_new_tags(flow, flow.number_of_part(i), layer.pictures))
        layer.pictures += len(flow.spans)
    return layer


def _new_tags(flow: Flow, part: int, pictures: int) -> tuple[Tensor, ...]:
    """Tags [B, S] of the rows that a forward adds to the layers of a part; layers share them.

    Args:
        pictures: how many the layers have held before.
    """
    known = flow.tags.get((part, pictures))
    if known is not None:
        return known
    slot = flow.parts[part].slot
    whole = torch.full((3, flow.rows, flow.length), 0)
    whole[0] = -1
    for number, span in enumerate(flow.spans):
        whole[0, span.row, span.index] = pictures + number
        whole[1, span.row, span.index], whole[2, span.row, span.index] = span.tokens, KINDS.index(span.modality)
    told = upload(whole, flow.device).gather(2, slot.expand(3, -1, -1))
    new = tuple(tag.to(kind) for tag, kind in zip((flow.seen + slot, *told), SIZES, strict=True))
    return flow.tags.setdefault((part, pictures), new)


def real_rows(layer: CompressedLayer) -> Tensor:
    """BoolTensor [B, held], or [B, G, held] of heads that hold unequally many: rows of the cache that are real."""
    assert layer.keys is not None
    rows, held, device = layer.keys.shape[0], layer.held, layer.tags[SLOT].device
    real = torch.ones(rows, held, dtype=torch.bool, device=device)
    if layer.mask is not None:
        real[:, : layer.mask.shape[1]] = layer.mask.to(real.device)
    own = layer.tags.get(REAL)
    return real if own is None else real[:, None] & torch.nn.functional.pad(own, (0, held - own.shape[2]), value=True)


def rows_of_kind(layer: CompressedLayer, modality: tuple[str, ...]) -> Tensor:
    """BoolTensor [B, prompt]: rows of the prompt that are visual tokens of one of these kinds."""
    kinds = torch.tensor([KINDS.index(name) for name in modality], device=layer.tags[KIND].device)
    return (torch.isin(layer.tags[KIND], kinds) & real_rows(layer)[:, : layer.tags[KIND].shape[1]])[:, : layer.prompt]


def note_places(flow: Flow, layer: CompressedLayer, i: int) -> None:
    """Tag the rows that this forward has added with their positions; earlier ones that have none keep -1."""
    part, held = flow.parts[flow.number_of_part(i)], layer.held
    positions = flow.placed(i)
    for name, new in zip(PLACES, positions if positions.dim() == 3 else positions[None], strict=False):
        old = layer.tags.get(name)
        before = 0 if old is None else old.shape[-1]
        if before >= held:
            continue
        new = new if new.is_floating_point() else new.int()
        new = torch.nn.functional.pad(new, (held - part.width - before, 0), value=-1)[:, -(held - before) :]
        layer.tags[name] = new if old is None else _joined(old, new)


def _extend(layer: CompressedLayer, slot: Tensor, owner: Tensor, total: Tensor, kind: Tensor) -> None:
    for name, new in ((SLOT, slot), (OWNER, owner), (TOTAL, total), (KIND, kind)):
        old = layer.tags.get(name)
        layer.tags[name] = new if old is None or not old.shape[-1] else _joined(old, new)


def _joined(old: Tensor, new: Tensor) -> Tensor:
    """Tags [B, n] or [B, G, n], and those [B, m] of new rows, which all heads hold."""
    if old.dim() == 3:
        new = new[:, None].expand(-1, old.shape[1], -1)
    return torch.cat([old, new], dim=-1)
