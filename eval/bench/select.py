"""How long methods take to choose, against the plainest torch of the same rule.

The plain rules are what a user would write down from the paper, a few lines each, with torch's own functions and
nothing of vtc's. Before anything is timed both choose once, and whether they keep the same tokens stands in the table.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vtc
from vtc.eval.bench.pairs import Middle, pair, turns
from vtc.eval.bench.roofs import clock
from vtc.layout import single_span
from vtc.methods.base.method import Method
from vtc.methods.mustdrop import DualFilter
from vtc.signals import VisualTokens, given_signals

Signals = dict[str, Tensor]
#: (features [N, D], signals) -> the kept tokens, LongTensor
Rule = Callable[[Tensor, Signals], Tensor]


@dataclass(frozen=True)
class Case:
    """A method, a plain rule, and the shape of what they choose from: (t, h, w) tokens of `width`.

    `signals`: name -> shape, "N" stands for the number of tokens. `draws`: what is kept is a matter of chance, and only
    its number can be the same.
    """

    name: str
    method: Callable[[], Method]
    rule: Rule
    grid: tuple[int, int, int]
    width: int
    signals: dict[str, tuple[int | str, ...]]
    draws: bool = False

    def inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[VisualTokens, Tensor, Signals]:
        """Random tokens, neighbours in time and space alike, as a method sees them and as the plain rule does."""
        random, n = torch.Generator().manual_seed(0), self.grid[0] * self.grid[1] * self.grid[2]
        base = torch.randn(1, *self.grid[1:], self.width, generator=random)
        features = (base + 0.7 * torch.randn(*self.grid, self.width, generator=random)).view(n, self.width)
        signals: Signals = {}
        for name, sides in self.signals.items():
            shape = [n if side == "N" else int(side) for side in sides]
            raw = torch.randn(shape, generator=random)
            signals[name] = raw > 0.3 if name == "text_raters" else raw if name == "keys" else raw.mul(2).softmax(-1)
        features, signals = features.to(device, dtype), {name: x.to(device) for name, x in signals.items()}
        span = single_span(n, self.grid)
        index = torch.arange(n, device=device)
        return VisualTokens(features, span, index, given_signals(signals, n, device)), features, signals


def scaled(case: Case, grid: tuple[int, int, int], width: int) -> Case:
    """The same at another shape."""
    return Case(case.name, case.method, case.rule, grid, width, case.signals, case.draws)


# -- plain rules -------------------------------------------------------------------------------------------------------


def draw(share: float, x: Tensor, signals: Signals) -> Tensor:
    return torch.randperm(len(x), device=x.device)[: round(share * len(x))].sort().values


def top(signal: str, keep: float, x: Tensor, signals: Signals) -> Tensor:
    """The highest of a signal, summed over layers; `keep` is a count, or a share of the tokens."""
    score = signals[signal].sum(dim=0) if signals[signal].dim() == 2 else signals[signal]
    return score.topk(int(keep) if keep > 1 else round(keep * len(x))).indices


def farthest(share: float, x: Tensor, signals: Signals) -> Tensor:
    """DivPrune, algorithm 1: farthest first in cosine distance."""
    unit = F.normalize(x.float(), dim=-1)
    distance = 1 - unit @ unit.T
    distance.fill_diagonal_(torch.inf)
    chosen = [distance.amin(dim=1).argmax()]
    nearest = distance[chosen[0]].clone()
    nearest[chosen[0]] = -torch.inf
    for _ in range(round(share * len(x)) - 1):
        chosen.append(nearest.argmax())
        nearest = torch.minimum(nearest, distance[chosen[-1]])
        nearest[chosen[-1]] = -torch.inf
    return torch.stack(chosen)


def dominant_and_contextual(keep: int, x: Tensor, signals: Signals) -> Tensor:
    """VisionZip, section 3.2: most attended, then evenly spaced ones of the rest, with what is like them merged in."""
    contextual = round(keep * 10 / 64)
    dominant = signals["cls_attention"].sum(dim=0).topk(keep - contextual).indices
    rest = torch.ones(len(x), dtype=torch.bool, device=x.device)
    rest[dominant] = False
    rest = rest.nonzero()[:, 0]
    targets = rest[:: len(rest) // contextual][:contextual]
    unit = F.normalize(signals["keys"], dim=-1)
    near = F.one_hot((unit[rest] @ unit[targets].T).argmax(dim=1), contextual).to(x.dtype)
    merged = near.T @ x[rest] / near.sum(dim=0)[:, None]
    torch.cat([x[dominant], x[targets] + merged])
    return torch.cat([dominant, targets])


def changed(frames: int, share: float, x: Tensor, signals: Signals) -> Tensor:
    """EVS: least like the same place one frame earlier; the first frame stays."""
    clip = x.float().view(frames, -1, x.shape[1])
    score = 1 - F.cosine_similarity(clip[1:], clip[:-1], dim=-1)
    score = torch.cat([torch.full_like(score[:1], torch.inf), score]).flatten()
    return score.topk(max(round(share * len(x)), clip.shape[1])).indices


def windows(frames: int, k: float, x: Tensor, signals: Signals) -> Tensor:
    """DyCoke, section 3.2: of four frames the first stays, the others lose the share k most like an earlier one."""
    clip = x.float().view(frames, -1, x.shape[1])
    places = clip.shape[1]
    stay, kept = int((1 - k) * places + 1e-6), []
    for frame in range(frames):
        own = torch.arange(places, device=x.device)
        if frame % 4:
            other = frame - (2 if frame % 4 == 2 else 1)
            own = F.cosine_similarity(clip[frame], clip[other], dim=-1).topk(stay, largest=False).indices
        kept.append(own + frame * places)
    return torch.cat(kept)


def heard_or_key(share: float, peak: float, keys: float, x: Tensor, signals: Signals) -> Tensor:
    """MustDrop, section 3.2: dropped only if the text as a whole and each of its tokens ignore a token."""
    attention = signals["text_attention"]
    heard = attention.sum(dim=0)
    stays = (heard >= share * heard.sum()) | (attention.amax(dim=0) >= peak)
    stays[signals["cls_attention"].sum(dim=0).topk(-int(-keys * len(x) // 1)).indices] = True
    return stays.nonzero()[:, 0]


def rated(keep: int, x: Tensor, signals: Signals) -> Tensor:
    """SparseVLM without recycling: the raters' mean attention."""
    return signals["text_attention"][signals["text_raters"]].mean(dim=0).topk(keep).indices


def pairwise(share: float, margin: float | None, x: Tensor, signals: Signals) -> Tensor:
    """ToMe (and PiToMe, with `margin`), in rounds of a quarter: the best pairs of the two halves merge into means."""
    keep, now = round(share * len(x)), x.float()
    size, anchor = torch.ones(len(x), device=x.device), torch.arange(len(x), device=x.device)
    while len(now) > keep:
        left = len(now)
        many = min(left - keep, max(1, left // 4))
        unit = F.normalize(now, dim=-1)
        cosine = unit @ unit.T
        if margin is None:
            first, second = torch.arange(0, left, 2, device=x.device), torch.arange(1, left, 2, device=x.device)
            best, match = cosine[first][:, second].max(dim=1)
            pick = best.topk(many).indices
            gone, into = first[pick], second[match[pick]]
        else:
            energy = F.elu(cosine - margin).mean(dim=1)
            crowd = energy.argsort(descending=True, stable=True)[: 2 * many]
            gone, second = crowd[0::2], crowd[1::2]
            into = second[cosine[gone][:, second].argmax(dim=1)]
        total = (now * size[:, None]).index_add_(0, into, now[gone] * size[gone][:, None])
        size = size.index_add(0, into, size[gone])
        stays = torch.ones(left, dtype=torch.bool, device=x.device)
        stays[gone] = False
        now, size, anchor = total[stays] / size[stays][:, None], size[stays], anchor[stays]
    return anchor


# -- cases -------------------------------------------------------------------------------------------------------------

PICTURE, LARGE, CLIP = ((1, 24, 24), 4096), ((1, 48, 60), 4096), ((16, 14, 14), 3584)


def _case(
    text: str,
    rule: Rule,
    shape: tuple[tuple[int, int, int], int],
    draws: bool = False,
    **signals: tuple[int | str, ...],
) -> Case:
    return Case(text.partition("(")[0], partial(vtc.resolve, text), rule, *shape, signals, draws)


CASES = (
    _case("random(keep=0.1)", partial(draw, 0.1), PICTURE, draws=True),
    _case("vtc-cls(keep=0.22)", partial(top, "cls_attention", 0.22), PICTURE, cls_attention=(7, "N")),
    _case("visionzip(keep=64)", partial(dominant_and_contextual, 64), PICTURE, cls_attention=(1, "N"), keys=("N", 64)),
    _case("divprune(keep=0.1)", partial(farthest, 0.1), PICTURE),
    _case("divprune(keep=0.1)", partial(farthest, 0.1), LARGE),
    _case("tome(keep=0.25)", partial(pairwise, 0.25, None), PICTURE),
    _case("pitome(keep=0.75)", partial(pairwise, 0.75, 0.45), PICTURE),  # one round: later ones hang on round-off
    _case("fastv(keep=0.5)", partial(top, "last_attention", 0.5), PICTURE, last_attention=("N",)),
    _case("sparsevlm(keep=110, recycle=0)", partial(rated, 110), PICTURE, text_attention=(44, "N"), text_raters=(44,)),
    Case(
        "mustdrop-filter",
        partial(DualFilter, keep=1, share=0.011, peak=0.01),
        partial(heard_or_key, 0.011, 0.01, 0.08),
        *PICTURE,
        {"text_attention": (44, "N"), "cls_attention": (1, "N")},
    ),
    _case("h2o(keep=0.5)", partial(top, "attention_record", 0.5), PICTURE, attention_record=("N",)),
    _case("evs(keep=0.3)", partial(changed, 16, 0.3), CLIP),
    _case("dycoke(k=0.7, p=None)", partial(windows, 16, 0.7), CLIP),
)


# -- measuring ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def measure(
    case: Case, device: torch.device, dtype: torch.dtype, pairs: int = 50, seconds: float = float("inf")
) -> dict[str, Any]:
    """A row: milliseconds of both, and the ratio within a pair (ours over the plain rule's), with its interval."""
    method = case.method()
    tokens, features, signals = case.inputs(device, dtype)

    def ours() -> Tensor:
        return method.select(tokens).anchor

    def plain() -> Tensor:
        return case.rule(features, signals)

    same = kept_alike(ours(), plain(), case.draws)
    for warm_up in (ours, plain):
        warm_up()
    first, second = times = [], []
    for _ in turns(pairs, seconds):
        pair(lambda: clock(plain, device), lambda: clock(ours, device), times)
    ratio = Middle.of([own / other for other, own in zip(first, second, strict=True)])
    extra = Middle.of([own - other for other, own in zip(first, second, strict=True)])
    return {
        "method": case.name,
        "shape": f"{'x'.join(map(str, case.grid))}x{case.width}",
        "kept": len(ours()),
        "same": same,
        "plain_ms": round(1000 * statistics.median(first), 4),
        "vtc_ms": round(1000 * statistics.median(second), 4),
        "ratio": round(ratio.median, 3),
        "ratio_low": round(ratio.low, 3),
        "ratio_high": round(ratio.high, 3),
        "ratio_q1": round(ratio.quartiles[0], 3),
        "ratio_q3": round(ratio.quartiles[1], 3),
        "extra_ms": round(1000 * extra.median, 4),
        "pairs": ratio.n,
    }


def kept_alike(ours: Tensor, plain: Tensor, draws: bool = False) -> str:
    """ "yes", or how many of the plain rule's tokens are not among ours; "as many" where chance decides which."""
    if draws:
        return "as many" if len(ours) == len(plain) else "no"
    missing = int((~torch.isin(plain, ours)).sum())
    return "yes" if not missing and len(ours) == len(plain) else f"{missing} of {len(plain)} differ"


COLUMNS = {
    "method": "method",
    "shape": "t x h x w x width",
    "kept": "kept",
    "same": "same tokens",
    "plain_ms": "plain ms",
    "vtc_ms": "vtc ms",
    "ratio": "vtc / plain",
    "interval": "95 % of the median",
    "pairs": "pairs",
}


def cells(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Printed cells of rows."""
    shown = []
    for row in found:
        own = {name: str(row.get(name, "")) for name in COLUMNS}
        own |= {name: f"{row[name]:.3g}" for name in ("plain_ms", "vtc_ms")}
        own |= {"ratio": f"{row['ratio']:.2f}", "interval": f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"}
        shown.append(list(own.values()))
    return shown


def plot(found: Sequence[dict[str, Any]], file: Any) -> None:
    """Time over the plain rule's, with the 95 % interval of the median; left of 1 is faster."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.32 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{row['method']} {row['shape']}" for row in found]
    spread = [[row["ratio"] - row["ratio_low"] for row in found], [row["ratio_high"] - row["ratio"] for row in found]]
    axes.errorbar([row["ratio"] for row in found], range(len(found)), xerr=spread, fmt="o", markersize=4)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), names, fontsize="small")
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("time of vtc over that of the plain rule")
    figure.savefig(file, dpi=110)
