"""What a model's own attention multiplies and weighs, recorded where it does: through transformers' AttentionInterface.

Heard under a name of its own, an attention gets the model's queries, keys and mask, answers as eager attention does,
and notes them. Our reading of the same layers (`Decoder`, `Tower`) is held against that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

NAME = "vtc_heard"


class Heard(NamedTuple):
    """One call of an attention: weights [B, H, T, K], mask [B or 1, 1, T, K] or None."""

    module: nn.Module
    weights: Tensor
    mask: Tensor | None


_HEARD: ContextVar[list[Heard] | None] = ContextVar("vtc_heard", default=None)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **more: Any
) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scale = more.get("scaling")
    logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attention_mask is not None:
        logits = logits + attention_mask[..., : key.shape[-2]]
    weights = logits.softmax(dim=-1, dtype=torch.float32)
    heard = _HEARD.get()
    if heard is not None:
        heard.append(Heard(module, weights, attention_mask))
    return (weights.to(query.dtype) @ value).transpose(1, 2).contiguous(), weights


@contextmanager
def listening(model: Any) -> Iterator[list[Heard]]:
    """`model` attends as under "eager", and every call is noted in the list."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    from vtc.proof.hidden import attending

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    heard: list[Heard] = []
    token = _HEARD.set(heard)
    try:
        with attending(model, NAME):
            yield heard
    finally:
        _HEARD.reset(token)
