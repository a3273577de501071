"""FrameFusion: what stays alike from frame to frame merges, layer by layer; then the unimportant go, once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vtc.budget import counts_for_average, layer_number, token_count
from vtc.checks import check_number
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.shared.clips import merge_frames
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class FrameFusion(Method):
    """Merges similar frames, prunes by attention.

    Merges tokens that are like the same place one frame earlier, then prunes to the budget by attention.

    Source: arXiv 2501.01986, section 4. Before the language model and before each of its layers, a token whose cosine
    with the last token left at its place is at least `similar` merges into it; runs of such tokens become their mean,
    at the place of the first. When a layer merges less than `ratio` of its tokens, the next one keeps what the prompt's
    last token looks at most, in its own queries and keys, so that the budget is met; when merging alone meets it, only
    the most similar merge. In a model too shallow for all that, the last layer meets it. Each video of a batch goes at
    its own pace. The released code merges between attention and feed-forward part, and prunes there by the attention
    just computed; here both happen between layers. A clip of one frame is pruned only. Images are left alone.

    Two quantities go by the number 0.3. The paper's and the code's is the cost: the mean over the decoder layers of the
    share of tokens that each sees, so that what is left in the end is less; `average=True` reads `keep` so, to within a
    token. The default, `average=False`, is what is left in the end, as for every other method here: the layers before
    the prune see more, so at equal numbers it costs more than the paper's. The two do not belong in one table.

    Args:
        keep: what is left after the prune.
        average: read `keep` as the mean over the decoder layers: the paper's cost, 0.3 there.
        similar: least cosine of what merges: 0.6 in the paper, 0.5 for Qwen2-VL.
        ratio: least share of a layer's tokens for which merging goes on.
    """

    name = "framefusion"
    keep: int | float = 0.3
    average: bool = False
    similar: float = 0.6
    ratio: float = 0.1
    needs = ("grid", "last_attention")
    query_aware = True
    exact_count = False
    merges = True
    modality = ("video",)
    scopes = ("clip",)
    paper = Paper(
        "FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Visual Language Models",
        "2501.01986",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.similar, "similar", -1, 1, what="a cosine")
        check_number(self.ratio, "ratio", 0, 1, what="a share of the tokens")

    def parts(self) -> tuple[Method, ...]:
        options = dict(keep=self.keep, similar=self.similar, positions=self.positions)
        return MergeFrames(**options), FuseLayers(**options, average=self.average, ratio=self.ratio)  # type: ignore

    def select(self, tokens: VisualTokens) -> Selection:
        return self.parts()[0].select(tokens)


@dataclass(frozen=True, kw_only=True)
class MergeFrames(Method):
    """FrameFusion's merging before the language model; never below the budget."""

    similar: float = 0.6
    needs = ("grid",)
    exact_count = False
    merges = True
    modality = ("video",)
    scopes = ("clip",)

    @property
    def title(self) -> str:
        return "framefusion"

    def select(self, tokens: VisualTokens) -> Selection:
        return merge_frames(tokens, self.similar, self.count(tokens))


@dataclass(frozen=True, kw_only=True)
class FuseLayers(LayerMethod):
    """FrameFusion inside the language model: acts before every layer from `layers` on, as long as there is need."""

    layers: tuple[int | float, ...] = (1,)
    similar: float = 0.6
    ratio: float = 0.1
    shape = (0.5,)
    needs = ("last_attention",)
    query_aware = True
    exact_count = False
    merges = True
    modality = ("video",)

    @property
    def title(self) -> str:
        return "framefusion"

    def steps(self, depth: int) -> tuple[int, ...]:
        return tuple(range(layer_number(self.layers[0], depth, self.title), depth))

    def counts(self, total: int, depth: int) -> tuple[int, ...]:
        wanted = token_count(self.keep, total)
        if self.average:  # if nothing merges, the prune before the first step has to meet it
            counts_for_average(self.shape, self.steps(depth)[:1], wanted, total, depth, self.title)
        return (wanted,) * len(self.steps(depth))

    def due(self, total: int, counts: tuple[int, ...], depth: int) -> bool:
        ended = self._ended(total, counts)
        return counts[-1] > self._budget(total, counts, depth) and (ended is None or ended == len(counts) - 1)

    def select(self, tokens: VisualTokens) -> Selection:
        counts = tokens.counts or (len(tokens.features),)
        budget = self._budget(tokens.total, counts, tokens.depth)
        last = len(counts) == tokens.depth - 1  # the budget is met in any case
        if self._ended(tokens.total, counts) is None and not last:
            return merge_frames(tokens, self.similar, budget)
        return Selection.prune(top_k(tokens.signal("last_attention"), budget), len(tokens.features))

    def _budget(self, total: int, counts: tuple[int, ...], depth: int) -> int:
        """Tokens that the layers still to come can have."""
        wanted = token_count(self.keep, total)
        if not self.average or not depth:
            return wanted
        return max(1, math.floor((wanted * depth - sum(counts)) / (depth - len(counts))))

    def _ended(self, total: int, counts: tuple[int, ...]) -> int | None:
        """The layer before which less than `ratio` of the tokens merged, None if that is still to come."""
        for layer, (before, after) in enumerate(zip((total, *counts), counts, strict=False)):
            if before - after < self.ratio * before:
                return layer
        return None
