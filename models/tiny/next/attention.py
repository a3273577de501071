"""Attention in slices of queries, for training on thousands of tokens: a slice's future is not computed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "vtc_sliced"
_SLICE = 384


def sliced(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """query, key, value [B, H, L, d]; attention_mask [B, 1, L, L], added to the scores and causal -> [B, L, H, d].

    Half the work of the whole square, and on a CPU in bfloat16 several times faster than it.
    """
    out = []
    with torch.autocast(query.device.type, enabled=False):  # it would hold every softmax in float32
        for start in range(0, query.shape[2], _SLICE):
            end = min(start + _SLICE, query.shape[2])
            scores = query[:, :, start:end] * scaling @ key[:, :, :end].transpose(2, 3)
            scores = scores + attention_mask[:, :, start:end, :end]
            out.append(F.softmax(scores, -1) @ value[:, :, :end])
    return torch.cat(out, 2).transpose(1, 2), None


AttentionInterface.register(NAME, sliced)
