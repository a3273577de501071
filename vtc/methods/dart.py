"""DART: a few pivots, and the tokens least like them; no attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens

ORDERS = ("norm", "released")


@dataclass(frozen=True, kw_only=True)
class DART(LayerMethod):
    """Pivots, and the tokens least like them.

    Duplication-aware reduction: each pivot brings in the tokens whose hidden states resemble it least.

    Source: arXiv 2502.11494, section 4; after layer 2 of 32. Pivots are the visual and the text tokens whose keys in
    the layer before have the largest L1 norm; the pivots take turns, each taking its share from what is left. States
    are compared by cosine behind the language model's last norm, as in the released code. Kept tokens keep their
    positions. Counts are exact; the released code keeps pivots + turns * int(n * share / turns): `keep=124` of 576 for
    its share of .222, 60 for .111, 292 for .5.

    Args:
        pivots: visual pivots, which are kept.
        text_pivots: text pivots (after the pictures).
        order: whose turn it is. "norm": visual pivots, then text pivots, by falling norm. "released": as the released
            code walks a Python set of their places in the row, which is by place modulo the size of the set's table (32
            for five to eighteen pivots), but for collisions.
    """

    name = "dart"
    keep: int | float = 1 / 9
    layers: tuple[int | float, ...] = (1 / 16,)
    pivots: int = 4
    text_pivots: int = 4
    order: str = "norm"
    reads = "previous"
    shape = (1 / 9,)
    needs = ("layer_keys", "text_keys", "final_states", "text_final_states")
    query_aware = True
    paper = Paper(
        "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", "2502.11494"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.text_pivots, "text_pivots", 0, integer=True, what="a number of tokens")
        check_number(self.pivots, "pivots", 1, integer=True, what="a number of tokens to start from")
        if self.order not in ORDERS:
            raise ValueError(f'order={self.order!r} is not one of "norm", "released".')

    def requires(self) -> tuple[str, ...]:
        return self.needs if self.order == "norm" else (*self.needs, "places", "text_places")

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = tokens.features.shape[0], self.count(tokens)
        own = _loudest(tokens.signal("layer_keys"), min(self.pivots, k))
        said = _loudest(tokens.signal("text_keys"), self.text_pivots)
        unit = F.normalize(tokens.signal("final_states").float(), dim=-1)
        asked = F.normalize(tokens.signal("text_final_states").float(), dim=-1)[said]
        likeness = torch.cat([unit[own], asked]) @ unit.T  # [pivots, N]
        if self.order == "released":
            places = [*tokens.signal("places")[own].tolist(), *tokens.signal("text_places")[said].tolist()]
            likeness = likeness[[places.index(place) for place in set(places)]]
        return Selection.prune(_take_turns(likeness, own, k).sort().values, n)


def _loudest(keys: Tensor, count: int) -> Tensor:
    """The tokens, of `keys` [N, G, d], whose keys have the largest L1 norm, largest first."""
    return keys.flatten(1).float().norm(p=1, dim=1).argsort(descending=True, stable=True)[:count]


def _take_turns(likeness: Tensor, chosen: Tensor, k: int) -> Tensor:
    """`chosen` and, from each row of `likeness` [P, N] in turn, its share of the least similar tokens left; [k]."""
    taken = torch.zeros(likeness.shape[1], dtype=torch.bool, device=likeness.device)
    taken.index_fill_(0, chosen, True)
    parts, missing, turns = [chosen], k - len(chosen), len(likeness)
    for i, row in enumerate(torch.nan_to_num(likeness, nan=2.0)):  # what is no number resembles most
        share = missing // turns + (i < missing % turns)
        least = row.masked_fill(taken, torch.inf).argsort(stable=True)[:share]
        taken.index_fill_(0, least, True)
        parts.append(least)
    return torch.cat(parts)
