"""How much each token has to do with the question: by a judge of the user's, or by the model's own embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.signals import VisualTokens

Scorer = Callable[[VisualTokens], Tensor]


def judged(scorer: Scorer, tokens: VisualTokens) -> Tensor:
    """What a user's judge says of the tokens, [N] in fp32; ValueError if it is not one finite number per token."""
    relevance = torch.as_tensor(scorer(tokens)).detach().float()
    if relevance.shape != (len(tokens.features),) or not bool(relevance.isfinite().all()):
        shape, finite = tuple(relevance.shape), int(relevance.isfinite().sum())
        raise ValueError(
            f"scorer= returned a tensor of shape {shape}, {finite} of whose numbers are finite; expected one "
            f"finite number per token, [{len(tokens.features)}]."
        )
    return relevance.to(tokens.features.device)


def worded(tokens: VisualTokens) -> Tensor | None:
    """[N] in fp32: mean cosine of each token and the input embeddings of the row's text; 0 of a token that is no
    number, None where there is no text."""
    words = tokens.signal("text").detach().float()
    if not len(words):
        return None
    cosines = F.normalize(tokens.features.detach().float(), dim=-1) @ F.normalize(words, dim=-1).mean(dim=0)
    return torch.where(cosines.isfinite(), cosines, 0.0)
