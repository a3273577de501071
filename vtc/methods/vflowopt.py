"""VFlowOpt: tokens by what global tokens give them in the tower; three cuts, whose numbers are found for a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vtc.budget import check_layer, layer_average, token_count
from vtc.checks import check_number, check_row
from vtc.methods.base.calibrated import CalibratedMethod
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.shared.recycling import cells_of, recycled
from vtc.selection import Selection
from vtc.signals import VisualTokens
from vtc.transfer import upload

if TYPE_CHECKING:
    from vtc.calibration.work import Work


class Setting(NamedTuple):
    """What was released for an average budget, a share of the tokens: see the options of VFlowOpt."""

    keep: float
    threshold: float
    cell: float
    r1: float
    r2: float
    r3: float


RELEASED = (
    Setting(0.5, 28.68, 11.76, 0.723, 0.749, 0.487),
    Setting(0.25, 34.76, 15.58, 0.265, 0.983, 0.877),
    Setting(0.1, 39.26, 17.39, 0.117, 1.0, 0.601),
)


@dataclass(frozen=True, kw_only=True)
class VFlowOpt(CalibratedMethod):
    """What the tower's global tokens attend to.

    A cut before the language model, which recycles what it drops, and two inside of it, all by one importance; how they
    share the budget is found for a model by `vtc.calibrate`.

    Source: arXiv 2508.05211, the sections on its importance map, its progressive pruning with recycling and its search;
    formulas and numbers are those of its released code.

    * Importance: of each crop the global patches are those that receive more than `threshold` times the mean attention
      in the tower's block that the features come from; a token's importance is the mean attention that these give it,
      plus `alpha` times the softmax, over its crop, of the entropy of its grey pixels.
    * Before the language model `r1` of the tokens stay. What goes is recycled: in each cell of `cell` x `cell` tokens
      it becomes one, their mean weighted by importance, where the most important of them stood. The thumbnail and the
      crops have cells of their own.
    * Inside, `r2` of these stay from the first of `layers` on, and `r3` of those from the second on, by the importance
      that they had.

    `vtc.select` knows no layers: there the first cut keeps `keep`. Line breaks between rows of crops stay first, as
    the code has it, unless they would be more than half of what stays: then they go. In prompts of several pictures,
    and of videos, nothing is recycled, and line breaks go first.

    What differs: the code recycles as many tokens as the picture has cells, so that how many are left depends on the
    picture (`exact_count=False`); here the smallest number is taken with which the count is met, and where there would
    be more cells than tokens to keep, `cell` grows, by 1 at a time. It renumbers after the first cut, where the paper
    does not and we do not (`positions`). It measures entropy on pixels that are normalised and overflow; here they are
    as they were in the picture. Where no patch is above the threshold, the one that receives most is global; there the
    code has no numbers.

    Args:
        keep: the mean over the decoder layers, as in the paper's tables; with average=False, what is left in the end.
        average: how `keep` is read.
        threshold: in means of the attention received, at least 0. None = as released for the nearest of 50, 25 and
            10 % (28.68, 34.76, 39.26; of a count 34.76).
        alpha: weight of the entropy; None = 0, as released.
        cell: side of a cell in tokens, at least 1. None = as released (11.76, 15.58, 17.39).
        r1: what the first cut leaves, a share of all tokens or a count of them, at least `keep`. None = as much more
            than `keep` as was released (0.723, 0.265, 0.117).
        r2: share of these that the second leaves; more where `keep` could not be met else. None = as released (0.749,
            0.983, 1.0).
        r3: share of those that the third leaves; None = what makes the average `keep`.
        layers: the decoder layers before which the second and the third cut are, in LayerMethod's form; the paper's 9
            and 18 of 28.
        exact_count: whether exactly as many are left as asked for; False = as in the released code.
    """

    name = "vflowopt"
    keep: int | float = 0.25
    average: bool = True
    threshold: float | None = None
    alpha: float | None = None
    cell: float | None = None
    r1: int | float | None = None
    r2: float | None = None
    r3: float | None = None
    layers: tuple[int | float, ...] = (9 / 28, 18 / 28)
    exact_count: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    needs = ("global_attention", "patch_entropy", "grid")
    merges = True
    heeds_others = True
    tuned: ClassVar[Mapping[str, Any]] = dict.fromkeys(("threshold", "alpha", "cell", "r1", "r2"))
    paper = Paper(
        "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization", "2508.05211"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None:
            check_number(self.threshold, "threshold", 0, what="a multiple of the mean attention received")
        if self.alpha is not None:
            check_number(self.alpha, "alpha", what="the weight of the entropy")
        if self.cell is not None:
            check_number(self.cell, "cell", 1, what="the side of a cell in tokens")
        if isinstance(self.r1, int):
            check_number(self.r1, "r1", 1, integer=True, what="a share of the tokens, or a number of them")
        for name in ("r2", "r3") if isinstance(self.r1, int) else ("r1", "r2", "r3"):
            if getattr(self, name) is not None:
                check_number(getattr(self, name), name, above=0, high=1, what="a share of the tokens")
        check_row(self.layers, "layers", "two decoder layers, such as (9, 18) or (0.32, 0.64)")
        object.__setattr__(self, "layers", tuple(check_layer(layer, "layers") for layer in self.layers))
        if len(self.layers) != 2:
            raise ValueError(f"layers={self.layers} of {self.title} are not two: one for each cut inside the model.")
        self._check_shares()

    def _check_shares(self) -> None:
        """Refuse shares that cannot come to the budget."""
        if type(self.keep) is type(self.r1) and self.r1 < self.keep:  # type: ignore[operator]
            raise ValueError(f"r1={self.r1} is below keep={self.keep}: later cuts bring no tokens back; raise r1.")
        if self.r3 is None:
            return
        parts = (self.r1, self.r2, self.r3)
        if None in parts or not self.average or not isinstance(self.keep, float) or isinstance(self.r1, int):
            raise ValueError(
                "r3 is what r1, r2 and keep leave: give it with r1, r2 and keep as shares, and average=True, or not."
            )
        if all(isinstance(layer, float) for layer in self.layers):
            one, two = self.layers
            mean = self.r1 * (one + self.r2 * (two - one + self.r3 * (1 - two)))  # type: ignore[operator]
            if abs(mean - self.keep) > 0.02 * self.keep:
                raise ValueError(
                    f"r1={self.r1}, r2={self.r2} and r3={self.r3} make {mean:.3f} on average, not keep={self.keep}: "
                    "leave r3 out, or say keep= as they do."
                )

    def parts(self) -> tuple[Method, ...]:
        first = FirstCut(keep=self.keep, positions=self.positions, scope=self.scope, flow=self)
        return first, LaterCuts(keep=self.keep, layers=self.layers, positions=self.positions, flow=self)

    def requires(self) -> tuple[str, ...]:
        return ("global_attention", *(("patch_entropy",) if self.option("alpha") else ()), "grid")

    def signal_number(self, name: str) -> float:
        return float(self.option("threshold"))

    # -- numbers -----------------------------------------------------------------------------------------------

    @property
    def released(self) -> Setting:
        """What was released for the average budget nearest to `keep`; of a count, for 25 %."""
        keep = self.keep if isinstance(self.keep, float) else 0.25
        return min(RELEASED, key=lambda one: abs(math.log(one.keep / keep)))

    def option(self, name: str) -> Any:
        found = super().option(name)
        if found is not None:
            return found
        return 0.0 if name == "alpha" else getattr(self.released, name)

    def first(self, total: int) -> int:
        """Tokens that the first cut leaves of `total`."""
        asked, released = token_count(self.keep, total), self.released
        chosen = super().option("r1")
        if chosen is not None:
            wanted = token_count(chosen, total)
        elif self.average:
            wanted = asked * released.r1 / released.keep
        else:
            wanted = asked / (released.r2 * released.r3)
        return min(total, max(asked, round(wanted)))

    def later(self, total: int, at: tuple[int, ...], depth: int) -> tuple[int, ...]:
        """Tokens left from each of the decoder layers `at` on, one or two of `depth`.

        Example: 100 tokens, 28 layers, keep=0.25: 26.5 are left first, 26 of them; 26 (0.983 of them) from layer 9
        on; and from layer 18 on 23, as 9 * 26 + 9 * 26 + 10 * 23.2 = 28 * 25.

        Raises:
            ValueError: `keep` cannot be met, as the first cut leaves too many until the second.
        """
        asked, one = token_count(self.keep, total), self.first(total)
        two = round(one * self.option("r2"))
        if not self.average:
            if super().option("r2") is None:
                two = round(asked / self.released.r3)
            return (max(asked, min(one, two)), asked)[-len(at) :]
        if self.r3 is not None:
            counts = (max(1, two), max(1, round(two * self.r3)))[-len(at) :]
            return counts
        rest = depth * asked - at[0] * one  # what the layers from the second cut on have to share
        if rest < depth - at[0]:
            least = layer_average((1,) * len(at), at, one, depth)
            raise ValueError(
                f"{self.title} cannot keep {asked} of {total} visual tokens on average: before layer {at[0]} of "
                f"{depth} {one} are there, which makes {math.ceil(least)} at least; lower r1, cut earlier (layers=) or "
                "keep more."
            )
        if len(at) == 1:
            return (min(one, max(1, round(rest / (depth - at[0])))),)
        between, after = at[1] - at[0], depth - at[1]
        two = min(one, max(two, math.ceil(rest / (between + after))), (rest - after) // between)
        return two, max(1, min(two, round((rest - between * two) / after)))

    # -- choosing ----------------------------------------------------------------------------------------------

    def importance(self, tokens: VisualTokens) -> Tensor:
        """[N] of the whole span, whatever is left of it."""
        score = tokens.read("global_attention").float()
        alpha = float(self.option("alpha"))
        if alpha:
            score = score + alpha * _softmax(tokens.read("patch_entropy").float(), tokens)
        return score

    def ranked(self, tokens: VisualTokens, count: int) -> Tensor:
        """[N] of the tokens that are left, importance with line breaks at one end."""
        score = self.importance(tokens)[tokens.index]
        if not tokens.separated:
            return score
        first = _recycles(tokens) and 2 * int(tokens.span.separators.sum()) <= count
        return score.masked_fill(tokens.separators, torch.inf if first else -torch.inf)

    def cut(self, tokens: VisualTokens, count: int) -> Selection:
        """The first cut: `count` of the tokens, what goes recycled into some of them."""
        n = tokens.features.shape[0]
        if count >= n:
            return Selection.identity(n, tokens.index.device)
        score = self.ranked(tokens, count)
        if not _recycles(tokens):
            return Selection.prune(top_k(score, count), n, ascending=True)
        side, breaks = float(self.option("cell")), int(tokens.span.separators.sum())
        room = count - breaks if 2 * breaks <= count else count  # for cells
        cell = cells_of(tokens.span, side)
        while self.exact_count and int(cell.max()) >= max(room, len(tokens.span.tiles)):
            side += 1
            cell = cells_of(tokens.span, side)
        cells, here = int(cell.max()) + 1, upload(cell, tokens.index.device)[tokens.index]
        if not self.exact_count:
            return recycled(score, here, cells, count, int(tokens.total / side**2))
        if cells > room:  # fewer tokens than tiles
            return Selection.prune(top_k(score, count), n, ascending=True)
        return recycled(score, here, cells, count)

    def select(self, tokens: VisualTokens) -> Selection:
        return self.cut(tokens, self.count(tokens))

    # -- calibration -------------------------------------------------------------------------------------------

    def space(self) -> dict[str, tuple[float, float]]:
        """The box that is searched: the paper's at 25 %, whose bounds of r1 are 1 and 1.5 times `keep`."""
        most = min(1.0, 1.5 * self.keep) if isinstance(self.keep, float) else 1.5 * self.keep
        return {
            "r1": (float(self.keep), most),
            "r2": (0.533, 1.0),
            "threshold": (0.0, 50.0),
            "cell": (3.0, 24.0),
            "alpha": (-1.0, 1.0),
        }

    def start(self) -> dict[str, float]:
        """What the search begins with: the options as they are, `r1` as it goes with `keep`."""
        found = {name: float(self.option(name)) for name in self.tuned}
        if super().option("r1") is None:
            found["r1"] = min(self.space()["r1"][1], self.keep * self.released.r1 / self.released.keep)
        return found

    def valued(self, found: Mapping[str, float]) -> dict[str, Any]:
        """Options of what the search has found: `r1` is a count if `keep` is one."""
        return {**found, "r1": round(found["r1"])} if isinstance(self.keep, int) else dict(found)

    def measuring(self) -> VFlowOpt:
        return self.tried(alpha=1.0)

    def check_calibration(self) -> None:
        if not self.average or self.r3 is not None:
            raise ValueError(
                f"{self.title} is calibrated for an average over the layers, and finds r3 itself: give average=True, "
                "and no r3."
            )

    def calibrated(self, work: Work) -> Mapping[str, Any]:
        box, start = self.space(), self.start()
        return self.valued(work.search(box, start, lambda found: work.likeness(self.tried(**self.valued(found)))))


def _recycles(tokens: VisualTokens) -> bool:
    return tokens.alone and tokens.span.modality == "image" and tokens.span.grid[0] == 1


def _softmax(bits: Tensor, tokens: VisualTokens) -> Tensor:
    """[N]: softmax over the tokens of each crop; 0 for separators."""
    crop, apart = tokens.span.crop.to(bits.device), tokens.span.separators.to(bits.device)
    crop = torch.where(apart, 0, crop) if len(crop) else torch.zeros(len(bits), dtype=torch.long, device=bits.device)
    weight = torch.where(apart, 0.0, (bits - bits.max()).exp())
    total = torch.zeros(len(bits), device=bits.device).index_add_(0, crop.clamp(min=0), weight)
    return weight / total[crop.clamp(min=0)].clamp(min=torch.finfo(weight.dtype).tiny)


@dataclass(frozen=True, kw_only=True)
class FirstCut(Method):
    """VFlowOpt before the language model."""

    flow: VFlowOpt
    needs = VFlowOpt.needs
    merges = True
    heeds_others = True

    @property
    def title(self) -> str:
        return self.flow.title

    def requires(self) -> tuple[str, ...]:
        return self.flow.requires()

    def signal_number(self, name: str) -> float:
        return self.flow.signal_number(name)

    def count(self, tokens: VisualTokens) -> int:
        if tokens.budget is not None:
            return super().count(tokens)
        return min(self.flow.first(tokens.total), tokens.features.shape[0])

    def select(self, tokens: VisualTokens) -> Selection:
        return self.flow.cut(tokens, self.count(tokens))


@dataclass(frozen=True, kw_only=True)
class LaterCuts(LayerMethod):
    """VFlowOpt inside the language model."""

    flow: VFlowOpt
    needs = VFlowOpt.needs

    @property
    def title(self) -> str:
        return self.flow.title

    def requires(self) -> tuple[str, ...]:
        return tuple(name for name in self.flow.requires() if name != "grid")

    def signal_number(self, name: str) -> float:
        return self.flow.signal_number(name)

    def counts(self, total: int, depth: int) -> tuple[int, ...]:
        return self.flow.later(total, self.steps(depth), depth)

    def count(self, tokens: VisualTokens) -> int:
        if self.flow.exact_count or not tokens.depth:
            return super().count(tokens)
        counts = (self.flow.first(tokens.total), *self.counts(tokens.total, tokens.depth))
        left = tokens.features.shape[0]
        return max(1, round(left * counts[tokens.step + 1] / counts[tokens.step]))

    def score(self, tokens: VisualTokens) -> Tensor:
        return self.flow.ranked(tokens, self.count(tokens))
