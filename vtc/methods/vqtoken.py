"""VQToken: a clip as a small codebook, and where its codes occur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vtc.checks import check_number
from vtc.methods.base.method import Paper
from vtc.methods.base.trained import TrainedMethod
from vtc.methods.shared import codebook, vq_attention
from vtc.selection import Selection
from vtc.signals import VisualTokens

MODES = ("full", "codebook", "hash")


@dataclass(frozen=True, kw_only=True)
class VQToken(TrainedMethod):
    """Codes of a k-means codebook.

    Codes of a k-means codebook, each at the token nearest to it; trained weights tell them where else they occur.

    Source: arXiv 2503.16980, sections 3.2 and 3.3. The paper is about videos; pictures go the same way here. Its parts
    can be had one by one, as in its ablation:

    * mode "codebook": cosine k-means (`vtc.ops.kmeans`, deterministic where the released code draws seeds), one token
      per code, standing at the member nearest to its centre. Training-free; the paper loses 22 points here.
    * mode "hash": the same, corrected by an untrained `VQAttention` that reads the token hash, which is the Selection's
      `source`: the paper's random attention.
    * mode "full": the same with trained weights, from `vtc.train`. The paper trains them together with the whole model,
      for one epoch of LLaVA-Video-178K; `vtc.train` trains the module alone.

    Tokens of an earlier stage and separators are clustered like any others. A span of no more than `keep` tokens stays
    as it is. Empty clusters take over the tokens least like their own centre, so that counts are exact. DeepStack's
    rows (Qwen3-VL) are summed with the codes' weights.

    Args:
        adaptive: (low, high): take the number of codes from that range instead of `keep`, both ends included: the
            elbow of the distortion curve. Spans with fewer tokens are searched as far as they go.
        elbow: "curvature" takes the number at which the curve bends most (largest second difference); "released" does
            as the released code, which forgets where the range started: index + 4, never below 12 (its range is 12 to
            32), which makes 12 or little more of most clips.
        magnitude: length of the codes. "norm": direction of the mean of the unit members, their mean length; "mean":
            the mean of the members as they are; "unit": the mean of the unit members, at most 1 long, as in the paper,
            whose language model trains along. None stands for "norm": an untouched model wants the length of a token
            (tiny-llava, 16 tokens, 300 questions: 57 %, 57 % and 42 % right).
        roles: "codes" or "hash", what asks in the attention, see `vtc.methods.shared.vq_attention.VQAttention`;
            None stands for "codes", the paper's, which learns faster beside a frozen language model (tiny-llava, 16
            tokens, the same batches of 16: loss 0.47 against 0.55 around step 190).
        cells: (t, h, w) of the grid the hash is pooled to for the module; None stands for (8, 12, 12).
        mode: "full", "codebook" or "hash", as above; None stands for "full" with weights, "codebook" without.
        seed: of the untrained module.
    """

    name = "vqtoken"
    keep: int | float = 32
    adaptive: tuple[int, int] | None = None
    elbow: str = "curvature"
    magnitude: str | None = None
    roles: str | None = None
    cells: tuple[int, int, int] | None = None
    mode: str | None = None
    seed: int = 0
    merges = True
    scopes = ("clip",)
    fixed: ClassVar[Mapping[str, Any]] = {"magnitude": "norm", "roles": "codes", "cells": (8, 12, 12)}
    paper = Paper(
        "Neural Discrete Token Representation Learning for Extreme Token Reduction in Video LLMs", "2503.16980"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "mode": (self.at_work, MODES),
            "elbow": (self.elbow, codebook.ELBOWS),
            "magnitude": (self.option("magnitude"), codebook.MAGNITUDES),
            "roles": (self.option("roles"), vq_attention.ROLES),
        }
        for name, (value, values) in choices.items():
            if value not in values:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(values)}.")
        if self.at_work == "full" and self.weights is None:
            raise ValueError('mode="full" needs weights=FOLDER: vtc.train (or `vtc train`) makes them.')
        if self.at_work != "full" and self.weights is not None:
            raise ValueError(f'weights= are for mode="full", which they make the default, not for mode={self.mode!r}.')
        codebook.check_range(self.adaptive)
        if self.adaptive is not None:
            object.__setattr__(self, "adaptive", tuple(self.adaptive))
        object.__setattr__(self, "exact_count", self.adaptive is None)
        codebook.check_cells(self.option("cells"))
        check_number(self.seed, "seed", integer=True)

    @property
    def at_work(self) -> str:
        """The mode, spelled out."""
        return self.mode or ("codebook" if self.weights is None else "full")

    def keeps_all(self) -> bool:
        """Not if the range of `adaptive` stands in for the budget."""
        return self.adaptive is None

    def module(self, width: int) -> nn.Module:
        return vq_attention.VQAttention(
            width, self.option("cells"), self.option("roles"), random=self.at_work == "hash"
        )

    def training(self, module: nn.Module, **changes: Any) -> TrainedMethod:
        return super().training(module, mode="full", **changes)

    def module_flops(self, tokens_in: int, tokens_out: int, width: int) -> int:
        if self.at_work == "codebook" or tokens_out == tokens_in:
            return 0
        return vq_attention.flops(tokens_out, width, self.option("cells"))

    def select(self, tokens: VisualTokens) -> Selection:
        return self.select_many([tokens])[0]

    def select_many(self, many: Sequence[VisualTokens]) -> list[Selection]:
        features = [tokens.features for tokens in many]
        if self.adaptive is None:
            counts = [self.count(tokens) for tokens in many]
        else:
            counts = [codebook.elbow(x.detach(), *self.adaptive, self.elbow) for x in features]
        found = codebook.codebooks(features, counts, self.option("magnitude"))
        if self.at_work == "codebook":
            return found
        fused = [i for i, tokens in enumerate(many) if found[i].tokens_out < len(tokens.features)]
        if fused:
            for i, rows in zip(fused, self._fuse([many[i] for i in fused], [found[i] for i in fused]), strict=True):
                found[i] = Selection(found[i].anchor, found[i].source, found[i].weight, rows)
        return found

    def _fuse(self, many: Sequence[VisualTokens], found: Sequence[Selection]) -> list[Tensor]:
        """What the module makes of each span's codes, [M, D]; all spans in one call."""
        net = self.net(many[0].features)
        kind = next(net.parameters())
        codes = [one.apply(tokens.features).to(kind) for one, tokens in zip(found, many, strict=True)]
        filled = [
            vq_attention.occupancy(tokens, one.source, one.tokens_out, self.option("cells")).to(kind)
            for one, tokens in zip(found, many, strict=True)
        ]
        counts = torch.tensor([one.tokens_out for one in found], device=kind.device)
        there = torch.arange(max(map(len, codes)), device=kind.device) < counts[:, None]
        rows = net(pad_sequence(codes, batch_first=True), pad_sequence(filled, batch_first=True), there)
        return [row[: len(own)] for row, own in zip(rows, codes, strict=True)]
