"""The oracle: the full-length model in which dropped tokens cannot be seen. A wrapped model must equal it.

It shares no code with the engine. The sequence keeps its full length; keys of dropped tokens are masked out in prefill
and in every decode step; rows of anchors are replaced by explicit weighted sums. The oracle needs only the Selections,
read from the wrapped model's record.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Choice:
    """What the wrapped model decided for one span."""

    row: int
    index: list[int]
    anchor: list[int]
    source: list[int]
    weight: Tensor


def choices(model: Any) -> list[Choice]:
    """The decisions of the last forward of a wrapped model."""
    record = model._vtc_engine.record
    return [
        Choice(s.row, s.index.tolist(), c.anchor.tolist(), c.source.tolist(), c.weight.cpu())
        for s, c in zip(record.spans, record.selections, strict=True)
    ]


@contextmanager
def oracle(model: Any, made: list[Choice], rows: int, compact: bool) -> Iterator[Any]:
    """The unwrapped `model`, answering as the wrapped one should, for a prompt batch of `rows` rows.

    Rows repeated by beam search follow each other, so row r of a longer batch is row r // (batch // rows).
    """
    lm = model.model.language_model
    state: dict[str, Any] = {}

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = dict(kwargs)
        embeds: Tensor = kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        seen = cache.get_seq_length() if cache is not None else 0
        b, t, _ = embeds.shape
        expansion = b // rows
        if seen == 0:
            state["plan"] = [_row_plan(made, r // expansion, t) for r in range(b)]
            embeds = embeds.clone()
            for r in range(b):
                for choice in made:
                    if choice.row == r // expansion:
                        _replace(embeds[r], choice)
            kwargs["inputs_embeds"] = embeds
            if kwargs.get("visual_pos_masks") is not None:
                kwargs["deepstack_visual_embeds"] = [
                    _replace_packed(x, kwargs["visual_pos_masks"], made, expansion)
                    for x in kwargs["deepstack_visual_embeds"]
                ]
        plans = state["plan"]
        user = kwargs.get("attention_mask")
        visible = torch.ones(b, seen + t, dtype=torch.bool) if user is None else user.bool()
        order = torch.arange(seen + t).repeat(b, 1)
        for r, (dropped, standing, _) in enumerate(plans):
            visible[r, dropped] = False
            for place, slot in standing.items():
                order[r, place] = slot
        queries = order[:, seen:]
        allowed = visible[:, None, :] & (order[:, None, :] <= queries[:, :, None])  # [B, T, K]
        allowed |= ~allowed.any(-1, keepdim=True)  # padding looks at anything
        kwargs["attention_mask"] = torch.zeros(b, 1, t, seen + t).masked_fill(
            ~allowed[:, None], torch.finfo(torch.float32).min
        )
        if compact:
            kwargs["position_ids"] = _compact(kwargs.get("position_ids"), plans, seen, t, state)
        return args, kwargs

    handle = lm.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield model
    finally:
        handle.remove()


def _row_plan(made: list[Choice], row: int, length: int) -> tuple[list[int], dict[int, int], list[Choice]]:
    """Dropped positions; slot at which each kept visual position stands; the row's choices."""
    dropped: list[int] = []
    standing: dict[int, int] = {}
    own = [c for c in made if c.row == row]
    for choice in own:
        anchors = [choice.index[a] for a in choice.anchor]
        dropped += [p for p in choice.index if p not in anchors]
        standing |= dict(zip(anchors, sorted(anchors), strict=True))
    return sorted(dropped), standing, own


def _replace(row: Tensor, choice: Choice) -> None:
    """Put the weighted sums of a choice at its anchors, in `row` [L, D]."""
    x = row[choice.index].double()
    out = [
        sum(choice.weight[i].double() * x[i] for i, s in enumerate(choice.source) if s == m)
        for m in range(len(choice.anchor))
    ]
    for m, a in enumerate(choice.anchor):
        row[choice.index[a]] = out[m].float()  # type: ignore[union-attr]


def _replace_packed(x: Tensor, mask: Tensor, made: list[Choice], expansion: int) -> Tensor:
    dense = torch.zeros(*mask.shape, x.shape[-1])
    dense[mask] = x
    for r in range(len(mask)):
        for choice in made:
            if choice.row == r // expansion:
                _replace(dense[r], choice)
    return dense[mask]


def _compact(ids: Tensor | None, plans: list[Any], seen: int, t: int, state: dict[str, Any]) -> Tensor:
    """Renumbered positions, computed token by token."""
    if ids is None:
        ids = torch.arange(seen, seen + t)[None]
    grid = ids.dim() == 3
    own = ids[-3:] if grid else ids[None]  # [A, B, T]
    own = own.expand(-1, len(plans), -1).clone()
    if seen == 0:
        state["shift"] = []
        for r, (dropped, standing, choices_) in enumerate(plans):
            old = own[:, r].clone()
            if not grid:
                gone = 0
                for p in range(t):
                    slot_gone = gone
                    own[0, r, p] = old[0, p] - slot_gone
                    gone += p in dropped
                renumbered = own[:, r].clone()
                for place, slot in standing.items():
                    own[0, r, place] = renumbered[0, slot]
                state["shift"].append(gone)
                continue
            total = 0
            for choice in choices_:
                kept = [choice.index[a] for a in choice.anchor]
                start = int(min(old[a, p] for a in range(3) for p in choice.index))
                end = int(max(old[a, p] for a in range(3) for p in choice.index)) + 1
                extent = 0
                for axis in range(3):
                    values = sorted({int(old[axis, p]) for p in kept})
                    extent = max(extent, len(values))
                    for p in kept:
                        own[axis, r, p] = start - total + values.index(int(old[axis, p]))
                total += end - start - extent
                after = choice.index[-1] + 1
                own[:, r, after:] = old[:, after:] - total
            if choices_:  # order of reading differs from place only within a span
                for choice in choices_:
                    anchors = [choice.index[a] for a in choice.anchor]
                    assert set(anchors) <= set(standing)
            state["shift"].append(total)
    else:
        for r, shift in enumerate(state["shift"]):
            own[:, r] -= shift
    return torch.cat([ids[:1].expand(1, len(plans), -1), own]) if grid and len(ids) == 4 else own if grid else own[0]
