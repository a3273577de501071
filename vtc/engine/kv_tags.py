"""Tags: what every row of a compressed cache layer is; they follow it through beam search, cropping and eviction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.engine.flow import Flow
from vtc.engine.kv_cache import CompressedLayer

#: per row of a cache layer: its place in the conversation, its picture (-1 = text), that picture's number of tokens,
#: and what it is a part of, an index into KINDS
SLOT, OWNER, TOTAL, KIND = "slot", "owner", "total", "kind"
KINDS = ("text", "image", "video")


def compressed_layer(flow: Flow, cache: Any, i: int) -> CompressedLayer:
    """Layer `i` of the cache; a layer that has lost nothing so far becomes one that can."""
    layer = cache.layers[i]
    if not isinstance(layer, CompressedLayer):
        visible = flow.visible(i, flow.parts[flow.number_of_part(i)])
        layer = cache.layers[i] = CompressedLayer.of(layer, 0, visible, None, None)
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
    layers = [compressed_layer(flow, cache, i) for i in range(len(cache.layers))]
    later = [0 if layer.keys is None else layer.keys.shape[2] - layer.prompt for layer in layers]
    least = min(layer.tail + more for layer, more in zip(layers, later, strict=True))
    for layer, more in zip(layers, later, strict=True):
        layer.tail = least - more


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
    assert layer.keys is not None
    part = flow.parts[flow.number_of_part(i)]
    held = layer.keys.shape[2]
    earlier = held - part.width
    known = layer.tags.get(SLOT)
    if known is None or known.shape[1] < earlier:  # rows of forwards without this engine: text, for all we know
        start = 0 if known is None else known.shape[1]
        slot = torch.arange(start, earlier, device=flow.device).expand(flow.rows, -1) + layer.dropped
        _extend(layer, slot, torch.full_like(slot, -1), torch.zeros_like(slot), torch.zeros_like(slot))
        known = layer.tags[SLOT]
    if not flow.spans and (seen := flow.seen_keys(i)) is not None:  # a later turn may have padding of its own
        layer.take_in(seen)
    if known.shape[1] < held:
        owner = torch.full((flow.rows, flow.length), -1, device=flow.device)
        total, kind = torch.zeros_like(owner), torch.zeros_like(owner)
        offset = int(layer.tags[OWNER].amax()) + 1 if known.numel() else 0
        layer.kinds = layer.kinds | {span.modality for span in flow.spans}
        for number, span in enumerate(flow.spans):
            where = span.index.to(flow.device)
            owner[span.row, where], total[span.row, where] = offset + number, span.tokens
            kind[span.row, where] = KINDS.index(span.modality)
        _extend(layer, flow.seen + part.slot, *(tag.gather(1, part.slot) for tag in (owner, total, kind)))
    return layer


def real_rows(layer: CompressedLayer) -> Tensor:
    """BoolTensor [B, held]: rows of the cache that are no padding."""
    assert layer.keys is not None
    rows, held = layer.keys.shape[0], layer.keys.shape[2]
    real = torch.ones(rows, held, dtype=torch.bool, device=layer.tags[SLOT].device)
    if layer.mask is not None:
        real[:, : layer.mask.shape[1]] = layer.mask.to(real.device)
    return real


def rows_of_kind(layer: CompressedLayer, modality: tuple[str, ...]) -> Tensor:
    """BoolTensor [B, prompt]: rows of the prompt that are visual tokens of one of these kinds."""
    kinds = torch.tensor([KINDS.index(name) for name in modality], device=layer.tags[KIND].device)
    return (torch.isin(layer.tags[KIND], kinds) & real_rows(layer)[:, : layer.tags[KIND].shape[1]])[:, : layer.prompt]


def _extend(layer: CompressedLayer, slot: Tensor, owner: Tensor, total: Tensor, kind: Tensor) -> None:
    for name, new in ((SLOT, slot), (OWNER, owner), (TOTAL, total), (KIND, kind)):
        old = layer.tags.get(name)
        layer.tags[name] = new.clone() if old is None else torch.cat([old, new], dim=1)
