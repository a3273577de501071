"""RazorAttention: heads that look things up hold everything, the others sinks, the latest and one row for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from vtc.checks import check_number, check_row
from vtc.held import Held
from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.calibrated import CalibratedMethod
from vtc.methods.base.method import Paper
from vtc.signals import VisualTokens

if TYPE_CHECKING:
    from vtc.calibration.work import Work


@dataclass(frozen=True, kw_only=True)
class Razor(CalibratedMethod, CacheMethod):
    """Retrieval heads hold all, others little.

    Retrieval heads, which `vtc.calibrate` finds, hold everything. Each other head holds the first tokens, the latest,
    and one row that stands for all the rest.

    Source: arXiv 2407.15891, section 3: a prompt of random tokens, four times one after the other; of all heads of the
    model the `induction` share that attends most to the token behind an earlier copy, and the `echo` share that attends
    most to the copy. Other heads hold `sinks` and the latest tokens; the compensation row is the mean of the keys and
    values that go, and counts in the softmax as many times as they are. With scope="all" that is the paper's form,
    whose `keep` is a fifth, 4000 tokens at least.

    Deviations: of query heads that share keys the best counts. `keep` says what a head that is no retrieval head holds,
    its row for the rest included, so a layer holds more. Among a picture's own tokens, the latest are its last. The row
    is the mean of keys before their rotation, turned to the middle of those that went; the mean of keys as they are
    cached is `rotated=True`.

    Args:
        heads: the retrieval heads, pairs of (layer, KV head); None = those of the calibration.
        induction: share of all heads that a calibration takes for attention behind the copy.
        echo: share of all heads that it takes for attention to the copy.
        period: how many random tokens are repeated; the paper's are 2500, small models do with less.
        visual: whether it takes two of the same picture instead, those of the calibration's pairs.
        compensates: whether what goes leaves a row behind.
        rotated: whether that row is the mean of keys as they are cached.
        sinks: how many of a row's first tokens stay, where text is chosen among.
    """

    name = "razor"
    keep: int | float = 0.2
    heads: tuple[tuple[int, int], ...] | None = None
    induction: float = 0.14
    echo: float = 0.01
    period: int = 128
    visual: bool = False
    compensates: bool = True
    rotated: bool = False
    sinks: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    per_head = True
    uneven_heads = True
    exact_count = False
    merges = True
    for_one_budget = False
    needs = ("cached_keys",)
    tuned: ClassVar[Mapping[str, Any]] = {"heads": None}
    paper = Paper("RazorAttention: Efficient KV Cache Compression Through Retrieval Heads", "2407.15891")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("induction", "echo"):
            check_number(getattr(self, name), name, 0, 1, what="a share of all heads")
        check_number(self.period, "period", 2, integer=True, what="how many random tokens are repeated")
        if self.heads is not None:
            object.__setattr__(self, "heads", _checked(self.heads))

    @property
    def weighs(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.compensates

    def check_checkpoint(self, model_type: str, fingerprint: Callable[[], str]) -> None:
        super().check_checkpoint(model_type, fingerprint)
        if self.option("heads") is None:
            raise ValueError(
                f"{self.title} needs the retrieval heads of this model: give it calibration=, a file that "
                "vtc.calibrate wrote, or heads=((layer, head), ...)."
            )

    def score(self, tokens: VisualTokens) -> Tensor:
        """Of a head that is no retrieval head: later is higher."""
        return torch.arange(tokens.features.shape[0], dtype=torch.float, device=tokens.features.device)

    def hold(self, tokens: VisualTokens) -> Held:
        n, count, groups = tokens.features.shape[0], self.count(tokens), tokens.signal("cached_keys").shape[0]
        whole = self._whole(tokens.layer, groups)
        device = tokens.features.device
        everything = torch.arange(n, device=device)
        if count >= n or len(whole) == groups:
            return Held(everything.expand(groups, -1), n)
        kept, gone = self._split(tokens, n, count)
        middle = [gone[len(gone) // 2]] if self.compensates else []
        few = torch.tensor(sorted(kept + middle), device=device)
        width = n if whole else count
        anchor = torch.stack([everything if g in whole else _filled(few, width) for g in range(groups)])
        if not self.compensates:
            return Held(anchor, n)
        source = torch.zeros(groups, n, dtype=torch.long, device=device)
        weight, rows = torch.zeros(groups, n, device=device), torch.ones(groups, width, device=device)
        for g in range(groups):
            own = everything if g in whole else few
            source[g] = -1
            source[g, own] = torch.arange(width - len(own), width, device=device)
            weight[g, own] = 1.0
            if g not in whole:
                source[g, gone] = source[g, middle[0]].clone()
                weight[g, gone] = 1 / len(gone)
                rows[g, source[g, middle[0]]] = len(gone)
        return Held(anchor, n, source, weight, weight, self.rotated, rows)

    def _whole(self, layer: int | None, groups: int) -> set[int]:
        """The retrieval heads of a layer."""
        own = {head for number, head in self.option("heads") or () if number == layer}
        if own and max(own) >= groups:
            raise ValueError(f"heads={self.option('heads')} of {self.title}: layer {layer} has {groups} KV heads only.")
        return own

    def _split(self, tokens: VisualTokens, n: int, count: int) -> tuple[list[int], list[int]]:
        """(those that stay as they are, those that go) in a head that is no retrieval head."""
        kept = count - self.compensates
        first = min(self.sinks if tokens.begins else 0, kept)
        stays = [*range(first), *range(n - (kept - first), n)]
        return stays, list(range(first, n - (kept - first)))

    # -- calibration -------------------------------------------------------------------------------------------

    def check_calibration(self) -> None:
        if self.heads is not None:
            raise ValueError(f"{self.title} has heads= already: leave them out to find them.")

    def calibrated(self, work: Work) -> Mapping[str, Any]:
        from vtc.calibration import heads

        if self.visual:
            found = [heads.of_pictures(work.model, inputs) for inputs in work.twice()]
            echo, induction = (torch.stack(numbers).mean(dim=0) for numbers in zip(*found, strict=True))
        else:
            echo, induction = heads.of_text(work.model, self.period, work.seed)
        chosen = {*_most(induction, self.induction), *_most(echo, self.echo)}
        return {"heads": sorted(chosen)}


def _most(score: Tensor, share: float) -> list[tuple[int, int]]:
    """The best `share` of all heads by `score` [layers, G]; one at least, unless none is asked for."""
    count = max(1, round(share * score.numel())) if share else 0
    best = score.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return [(place // score.shape[1], place % score.shape[1]) for place in best]


def _filled(few: Tensor, width: int) -> Tensor:
    return torch.cat([few.new_full((width - len(few),), -1), few])


def _checked(heads: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of a layer and a KV head; TypeError or ValueError with one sentence where they are none."""
    what = "pairs of a layer and a KV head, such as ((0, 1), (5, 0))"
    check_row(heads, "heads", what)
    pairs = []
    for pair in heads:
        whole = isinstance(pair, tuple | list) and len(pair) == 2
        if not whole or not all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in pair):
            raise ValueError(f"heads={heads!r} are no {what}.")
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)
