"""PruneVid: what stands still becomes one token, the rest is clustered frame by frame; then the question chooses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtc.budget import check_keep, check_layer
from vtc.checks import check_number
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.mustdrop import OutputAware
from vtc.methods.shared.clips import share_out
from vtc.methods.shared.still import MergeStill, parts_of
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class PruneVid(Method):
    """Merges still places, keeps what is asked for.

    Spatial-temporal merging before the language model, selection by the question inside it, the cache cut to match.

    Source: arXiv 2412.16117, section 3. (1) DPC-KNN over the frames' mean features cuts the clip into segments; a place
    whose mean pairwise cosine through its segment exceeds `tau` is static and becomes its average over time. (2) Static
    places of a segment, and moving tokens of each frame, are clustered by DPC-KNN and averaged. (3) Inside the language
    model the share `alpha` of what is left stays: the tokens with the largest attention from any head of any text
    token. (4) The layers before keep only these in their caches. By default the counts come from `keep` and are exact:
    stage 2 leaves `keep` / `alpha`, every part in proportion, and no more is merged over time than that asks for (the
    most static first). Images are left alone; a clip of one frame has no static tokens. The paper's own counts come
    with `ratio=0.5`: they depend on the video, 16 % on average. The released code seeds ties with noise; here the
    result is the same every time.

    Paper and released code differ. The paper selects at "the 10th layer"; the code's `selected_layer=10` counts from 0:
    it hears the eleventh layer, which runs whole, and the twelfth (11 from 0) is the first short one. So it is here;
    `layer=10` hears the tenth. The paper keeps the best tokens of the whole video, as the default does here; the code
    keeps a share of each part of stage 2 by itself, so that frames do not vanish: `per_part=True`. The code leaves
    parts of at most 14 tokens as they are, which the paper does not mention: `whole`.

    Args:
        keep: what is left in the end.
        ratio: clusters as a share of what they are made of, 0.5 in the paper; it replaces `keep`.
        whole: with `ratio`, parts of at most so many tokens are not clustered; 0 = all are, as the paper has it. Counts
            from `keep` are exact, so there small parts give their share like others.
        alpha: share of the merged tokens that stage 3 keeps.
        per_part: stage 3 keeps tokens of the static places of each segment and of the moving tokens of each frame,
            `alpha` of each with `ratio` (rounded down, as in the code: parts of two tokens lose both), else in
            proportion, so that the count is exact.
        cut: most segments, as a share of the frames.
        tau: cosine above which a place is static.
        neighbours: k of DPC-KNN.
        layer: where stage 3 acts, a decoder layer or a share of the depth; it hears the layer before.
    """

    name = "prunevid"
    keep: int | float = 0.16
    ratio: float | None = None
    whole: int = 14
    alpha: float = 0.4
    per_part: bool = False
    cut: float = 0.25
    tau: float = 0.8
    neighbours: int = 7
    layer: int | float = 11 / 32
    needs = ("grid", "peak_attention", "survives")
    query_aware = True
    exact_count = False  # by itself, `select` is stage 1 and 2
    merges = True
    modality = ("video",)
    scopes = ("clip",)
    paper = Paper("PruneVid: Visual Token Pruning for Efficient Video Large Language Models", "2412.16117")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ratio", "alpha", "cut"):
            value = getattr(self, name)
            if value is not None:
                check_number(value, name, above=0, high=1, what="a share")
        check_number(self.whole, "whole", 0, integer=True, what="a number of tokens")
        check_layer(self.layer, "layer")
        self.parts()

    def parts(self) -> tuple[Method, ...]:
        before = round(self.keep / self.alpha) if isinstance(self.keep, int) else min(1.0, self.keep / self.alpha)
        merge = MergeStill(
            keep=check_keep(before),
            ratio=self.ratio,
            whole=self.whole,
            cut=self.cut,
            tau=self.tau,
            neighbours=self.neighbours,
            positions=self.positions,
        )
        alpha = None if self.ratio is None else self.alpha
        ask = AskOnce(
            keep=self.keep, alpha=alpha, per_part=self.per_part, layers=(self.layer,), positions=self.positions
        )
        return merge, ask, CutCache()

    def keeps_all(self) -> bool:
        """Not if `ratio` stands in for the budget."""
        return self.ratio is None

    def select(self, tokens: VisualTokens) -> Selection:
        return self.parts()[0].select(tokens)


@dataclass(frozen=True, kw_only=True)
class AskOnce(LayerMethod):
    """PruneVid's third stage: the tokens that some head of some text token looks at most."""

    alpha: float | None = None
    per_part: bool = False
    layers: tuple[int | float, ...] = (11 / 32,)
    reads = "previous"
    shape = (0.5,)
    needs = ("peak_attention",)
    query_aware = True
    modality = ("video",)

    @property
    def title(self) -> str:
        return "prunevid"

    def requires(self) -> tuple[str, ...]:
        return (*self.needs, "source") if self.per_part else self.needs

    def select(self, tokens: VisualTokens) -> Selection:
        n, peak = len(tokens.features), tokens.signal("peak_attention")
        if not self.per_part:
            count = self.count(tokens) if self.alpha is None else max(1, round(self.alpha * n))
            return Selection.prune(top_k(peak, count), n)
        part, heard = (
            parts_of(tokens).cpu(),
            peak.cpu(),
        )  # part by part, so not where each is waited for
        members = [(part == number).nonzero()[:, 0] for number in part.unique().tolist()]
        sizes = [len(own) for own in members]
        if self.alpha is None:
            shares = share_out(self.count(tokens), sizes, sizes)
        else:
            shares = [int(self.alpha * size) for size in sizes]
        best = [own[top_k(heard[own], share)] for own, share in zip(members, shares, strict=True)]
        kept = torch.cat(best).sort().values.to(peak.device)
        return Selection.prune(kept if len(kept) else top_k(peak, 1), n)


@dataclass(frozen=True, kw_only=True)
class CutCache(OutputAware):
    """PruneVid's fourth stage: earlier layers cache what the last one still sees."""

    modality = ("video",)

    @property
    def title(self) -> str:
        return "prunevid"
