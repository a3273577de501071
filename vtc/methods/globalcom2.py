"""GlobalCom2: the thumbnail commands how much each crop keeps, and has a say in what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.method import Paper
from vtc.methods.shared.crops import CropMethod, Parts, regions, share_out, whole
from vtc.transfer import upload

SCORES = ("cls", "cosine")


@dataclass(frozen=True, kw_only=True)
class GlobalCom2(CropMethod):
    """The thumbnail commands what crops keep.

    The thumbnail keeps the share R that `keep` is of all patches, by score. A crop keeps R (1 + s - 1/k) of its own,
    where s is its part in a softmax over the k crops of their regions' summed scores on the thumbnail, divided by
    `tau`. Which ones: those of the highest sum of the crop's own scores and the thumbnail's, enlarged to the size of
    all crops together, both normalised over the crop (L2).

    Source: arXiv 2501.05179 (v6), section on the method: scores of crops, their ratios and the holistic score;
    released code at 96b2d00. A score is what the CLS token's queries and a token's keys come to in the tower's last
    block before the softmax, mean over heads, whichever block the features come from. Towers without a CLS token go by
    -cos(token, mean token) of the features, as in the paper, with a note in the report.
    Differences to the code: regions are the parts of the picture that crops show without their padding, tokens on a
    border counting in part; tokens stand in reading order, those of the thumbnail, too; ends of rows of padding are not
    there to be kept; counts are exact (`exact_count`). Where InternVL's tiles lie is not known: each keeps R of its own
    by its own scores. A picture of one crop, and Qwen-VL's one grid, keep what scores highest.
    Videos: the paper puts the mean of all frames in the thumbnail's place. Here a token's global score is then
    -cos(token, mean token of the clip), its own -cos(token, mean token of its frame), and a frame's sum is that of the
    first over the frame.

    Args:
        tau: temperature of the softmax over the crops.
        alpha: weight of the thumbnail's scores beside the crop's own ones, in [0, 1].
        scores: "cls", the logits of the CLS token where there is one; or "cosine", features everywhere.
    """

    name = "globalcom2"
    keep: int | float = 0.25
    newline: bool = True
    tau: float = 10.0
    alpha: float = 0.5
    scores: str = "cls"
    needs = ("cls_logits",)
    paper = Paper(
        "Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution Large Vision-Language "
        "Models",
        "2501.05179",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.tau, "tau", above=0, what="a temperature")
        check_number(self.alpha, "alpha", 0, 1, what="the weight of the thumbnail's scores")
        if self.scores not in SCORES:
            raise ValueError(f'scores={self.scores!r} is not one of "cls", "cosine".')

    def requires(self) -> tuple[str, ...]:
        return self.needs if self.scores == "cls" else ()

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return (depth - 1,)

    def weigh(self, parts: Parts) -> tuple[Tensor | None, Tensor]:
        own, index = self._own(parts), parts.tokens.index
        if parts.film:
            above = _cosines(parts, [torch.cat([crop.rows for crop in parts.crops])])
            sums = torch.stack([above[crop.index].double().sum() for crop in parts.crops])
        elif parts.placed:
            seen = parts.over_the_thumbnail(own)
            above, sums = _enlarged(parts, seen), upload(regions(parts), seen.device) @ seen.double()
        else:
            return None, own[index]
        both = own.clone()
        for crop in parts.crops:
            local, command = (F.normalize(x[crop.index], dim=0) for x in (own, above))
            both[crop.index] = (1 - self.alpha) * local + self.alpha * command
        return sums, both[index]

    def counts(self, parts: Parts, budget: float, asked: Sequence[float] | None) -> list[int]:
        sizes, ratio = parts.sizes, budget / max(1, sum(parts.sizes))  # of the thumbnail first, if there is one
        first = [] if parts.thumbnail is None else [min(sizes[0], whole(ratio * sizes[0]))]
        own = sizes[len(first) :]
        more = [1 + part - 1 / len(own) for part in _softmax(asked or [0.0] * len(own), self.tau)]
        if not self.exact_count:
            return first + [whole(size * min(1.0, ratio * m)) for size, m in zip(own, more, strict=True)]
        rest = share_out(int(budget) - sum(first), [size * m for size, m in zip(own, more, strict=True)], own)
        return [int(budget) - sum(rest), *rest] if first else rest

    def _own(self, parts: Parts) -> Tensor:
        """[total], what each crop says of its own tokens, at their places in the span; 0 at others."""
        if self.scores == "cls" and not parts.film:
            logits = parts.tokens.read("cls_logits")  # [L, total]
            if len(logits):
                return logits[-1].float()
        return _cosines(parts, [crop.rows for crop in parts.every])


def _softmax(sums: Sequence[float], tau: float) -> list[float]:
    powers = [math.exp((x - max(sums)) / tau) for x in sums]
    return [power / sum(powers) for power in powers]


def _cosines(parts: Parts, groups: Sequence[Tensor]) -> Tensor:
    """[total], -cos of each token to the mean of its group of rows, at its place in the span; 0 at others."""
    features = parts.tokens.features.detach().float()
    found = features.new_zeros(parts.tokens.total)
    for rows in groups:
        own = features[rows]  # [n, D]
        mean = F.normalize(own.mean(dim=0), dim=0)
        found[parts.tokens.index[rows]] = -(own @ mean) / own.norm(dim=-1).clamp(min=1e-12)
    return found


def _enlarged(parts: Parts, seen: Tensor) -> Tensor:
    """[total], the thumbnail's scores [h * w] under the middle of each token, bilinear between its tokens' middles."""
    assert parts.thumbnail is not None
    boxes = parts.tokens.span.boxes().nan_to_num()  # ends of rows lie nowhere, and are not asked about
    middles = upload((boxes[:, :2] + boxes[:, 2:]) - 1, seen.device)  # from -1 to 1
    image = seen.view(1, 1, *parts.thumbnail.places.shape)
    return F.grid_sample(image, middles[None, None], padding_mode="border", align_corners=False)[0, 0, 0]
