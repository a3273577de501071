"""PruneVid: what stands still becomes one token, the rest is clustered frame by frame; then the question chooses."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.budget import check_keep, check_layer
from vtc.checks import check_number
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.mustdrop import OutputAware
from vtc.methods.shared.still import MergeStill
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class PruneVid(Method):
    """Spatial-temporal merging before the language model, selection by the question inside it, the cache cut to match.

    Source: arXiv 2412.16117, section 3. (1) DPC-KNN over the frames' mean features cuts the clip into segments; a place
    whose mean pairwise cosine through its segment exceeds `tau` is static and becomes its average over time. (2) Static
    places of a segment, and moving tokens of each frame, are clustered by DPC-KNN and averaged. (3) After layer 10 of
    32 the share `alpha` of what is left stays: the tokens with the largest attention from any head of any text token.
    (4) The layers before keep only these in their caches. By default the counts come from `keep` and are exact: stage 2
    leaves `keep` / `alpha`, and no more is merged over time than that asks for (the most static first). Images are left
    alone; a clip of one frame has no static tokens. The paper's own counts come with `ratio=0.5`: they depend on the
    video, 16 % on average. The released code seeds ties with noise; here the result is the same every time.

    Args:
        keep: what is left in the end.
        ratio: clusters as a share of what they are made of, 0.5 in the paper; it replaces `keep`.
        alpha: share of the merged tokens that stage 3 keeps.
        cut: most segments, as a share of the frames.
        tau: cosine above which a place is static. neighbours: k of DPC-KNN.
        layer: where stage 3 acts, a decoder layer or a share of the depth.
    """

    name = "prunevid"
    keep: int | float = 0.16
    ratio: float | None = None
    alpha: float = 0.4
    cut: float = 0.25
    tau: float = 0.8
    neighbours: int = 7
    layer: int | float = 10 / 32
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
        check_layer(self.layer, "layer")
        self.parts()

    def parts(self) -> tuple[Method, ...]:
        before = round(self.keep / self.alpha) if isinstance(self.keep, int) else min(1.0, self.keep / self.alpha)
        merge = MergeStill(
            keep=check_keep(before),
            ratio=self.ratio,
            cut=self.cut,
            tau=self.tau,
            neighbours=self.neighbours,
            positions=self.positions,
        )
        alpha = None if self.ratio is None else self.alpha
        ask = AskOnce(keep=self.keep, alpha=alpha, layers=(self.layer,), positions=self.positions)
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
    layers: tuple[int | float, ...] = (10 / 32,)
    reads = "previous"
    shape = (0.5,)
    needs = ("peak_attention",)
    query_aware = True
    modality = ("video",)

    @property
    def title(self) -> str:
        return "prunevid"

    def select(self, tokens: VisualTokens) -> Selection:
        n = len(tokens.features)
        count = self.count(tokens) if self.alpha is None else max(1, round(self.alpha * n))
        return Selection.prune(top_k(tokens.signal("peak_attention"), count), n)


@dataclass(frozen=True, kw_only=True)
class CutCache(OutputAware):
    """PruneVid's fourth stage: earlier layers cache what the last one still sees."""

    modality = ("video",)

    @property
    def title(self) -> str:
        return "prunevid"
