"""HiRED: a budget for each crop from where the CLS token looks early, its tokens by where it looks late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.method import Paper, top_k
from vtc.methods.shared.crops import CropMethod, Parts, covered, parted, regions, share_out, whole
from vtc.transfer import upload

SHARES, REGIONS = ("mass", "count"), ("rectangles", "strips")


@dataclass(frozen=True, kw_only=True)
class HiRED(CropMethod):
    """Crop budgets by the thumbnail's CLS token.

    The thumbnail has a share `alpha` of the budget. The rest goes to the crops in proportion to the attention that the
    thumbnail's CLS token gives, in the tower's first block, to the part of the picture that each of them shows. Within
    its budget each keeps what its own CLS token looks at in the block that the features come from.

    Source: arXiv 2408.10945, equation 1 and the section on token selection; released code at 502d6dd. Regions are
    rectangles on the thumbnail's grid, of which tokens on a border count in part; padding belongs to none, and is not
    chosen. The code cuts the map into strips of whole rows (`regions="strips"`), counts the places of largest attention
    where the paper adds up the attention itself (`share="count"`), and rounds down (`exact_count=False`). Kept tokens
    stand in reading order and are renumbered, as in the code, which drops `image_newline`.
    What paper and code leave open: towers without a CLS token give received attention instead. InternVL does not say
    where its tiles lie, and a video has no thumbnail: tiles, and frames, then share equally. A picture of one crop
    keeps what CLS looks at; so does Qwen-VL's, which is one grid at any size.

    Args:
        alpha: share of the budget that the thumbnail has.
        share: what is added up over a region: "mass", the attention; or "count", one for each of the (1 - alpha) N
            places of the thumbnail's N that have most of it.
        regions: "rectangles"; or "strips", where k crops have the 1st, 2nd ... kth part of the thumbnail's tokens row
            after row, as released.
    """

    name = "hired"
    keep: int | float = 0.2
    alpha: float = 0.5
    share: str = "mass"
    regions: str = "rectangles"
    needs = ("cls_attention",)
    paper = Paper(
        "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models",
        "2408.10945",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.alpha, "alpha", 0, 1, what="the thumbnail's share of the budget")
        if self.share not in SHARES:
            raise ValueError(f'share={self.share!r} is not one of "mass", "count".')
        if self.regions not in REGIONS:
            raise ValueError(f'regions={self.regions!r} is not one of "rectangles", "strips".')

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return (0, feature_layer)

    def weigh(self, parts: Parts) -> tuple[Tensor | None, Tensor]:
        attention = parts.tokens.read("cls_attention")  # [L, total]: the first block, and that of the features
        worth = attention[-1][parts.tokens.index]
        if not parts.placed:
            return None, worth
        first = parts.over_the_thumbnail(attention[0])
        if self.share == "count":
            most = top_k(first, whole((1 - self.alpha) * len(first)))
            first = torch.zeros_like(first).index_fill_(0, most, 1.0)
        shown = regions(parts) if self.regions == "rectangles" else _strips(parts)
        return upload(shown, first.device) @ first.double(), worth

    def counts(self, parts: Parts, budget: float, asked: Sequence[float] | None) -> list[int]:
        total, sizes = whole(budget), [crop.size for crop in parts.crops]
        weights = [1.0] * len(sizes) if asked is None else asked
        first = 0 if parts.thumbnail is None else min(whole(self.alpha * total), parts.thumbnail.size)
        if self.exact_count:
            rest = share_out(total - first, weights, sizes)
            first = total - sum(rest)  # more than its share where the crops are full
        else:
            rest = [min(size, whole(x)) for x, size in zip(parted(total - first, weights), sizes, strict=True)]
        return rest if parts.thumbnail is None else [first, *rest]


def _strips(parts: Parts) -> Tensor:
    """[k, N]: which share of each of the thumbnail's N tokens lies in the strip of each crop."""
    assert parts.thumbnail is not None
    cells, most = parts.thumbnail.places.numel(), parts.crops[-1].number  # crops are numbered from 1
    return torch.stack([covered(cells, (crop.number - 1) / most, crop.number / most) for crop in parts.crops])
