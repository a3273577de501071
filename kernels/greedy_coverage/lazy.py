"""Greedy coverage that works few gains out anew, exact, for CPUs."""

import torch
from torch import Tensor

from vtc.kernels.pictures import at_least_zero, one_by_one

BLOCK = 16  # candidates whose gains are brought up to date at once
TURNED = 2**25  # numbers of which a copy is made that has targets in rows
IN_CACHE = 2**18  # numbers that differences are taken of at once
ROUNDING = 1e-5  # of a gain and of all that has been taken off it, relative to what it was
SMALL = 3 * 2**18  # numbers of which all gains are worked out sooner than it is found out which have changed
FALLEN = 16  # how many times the highest gain falls until all are worked out anew


def greedy_coverage(cover: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """As the reference: cover [B, N, M] -> LongTensor [B, k]."""
    return one_by_one(_choose, k, lengths, cover, weight)[0]


def _choose(cover: Tensor, weight: Tensor | None, k: int) -> Tensor:
    """LongTensor [k] of one picture's cover [N, M], lazily (Minoux 1978).

    What a candidate adds only falls as others are chosen, so what it added once is a bound. Each step brings up to date
    the candidates with the highest bounds until the highest of all is one of them. So the choice is that of a loop
    over all gains; `Bounds` keeps the bounds near them. Of small covers it is that loop.

    Example: bounds 9 7 4 of three candidates, after a choice. The first is brought up to date and adds 5 now: less than
    7, so the second is, too. It adds 6, and is chosen; the third has not been looked at.
    """
    cover = cover.float()
    if not bool(cover.sum().isfinite()):
        cover = torch.where(cover.isfinite(), cover, 0.0)
    worth = None if weight is None else at_least_zero(weight)
    if cover.numel() <= SMALL:
        return _over_all(cover, worth, k)
    bounds = Bounds(cover, worth)
    chosen: list[int] = []
    for _ in range(k):
        pick = int(bounds.value.argmax())
        while not bounds.exact(pick):
            bounds.refresh(pick)
            pick = int(bounds.value.argmax())
        chosen.append(pick)
        if len(chosen) < k:
            bounds.take(pick)
    return torch.tensor(chosen, device=cover.device)


def _over_all(cover: Tensor, worth: Tensor | None, k: int) -> Tensor:
    """The same, all gains anew in every step."""
    covered, taken = cover.new_zeros(cover.shape[1]), cover.new_zeros(len(cover))
    chosen: list[int] = []
    for _ in range(k):
        chosen.append(int(gains(cover, covered, worth).add_(taken).argmax()))
        taken[chosen[-1]] = -torch.inf
        torch.maximum(covered, cover[chosen[-1]], out=covered)
    return torch.tensor(chosen, device=cover.device)


class Bounds:
    """What each candidate adds at most, `value` [N], times its weight; -inf for what is chosen.

    Rounding breaks no bound: a difference, a maximum and a sum in a fixed order that are rounded at every step still
    only fall. When one is chosen, what each candidate loses by it is taken off in float64, over the targets alone that
    are better covered now (of noise one in t after t choices); as such losses are rounded otherwise than a gain is, a
    margin is left. Where most targets are, or gains have become small beside the margin, all are worked out anew.
    """

    def __init__(self, cover: Tensor, worth: Tensor | None) -> None:
        self.cover, self.worth = cover, worth
        self.by_target = cover.T if cover.numel() > TURNED else cover.T.contiguous()  # [M, N]
        self.covered = cover.new_zeros(cover.shape[1])
        self.chosen: list[int] = []
        self._anew()

    def _anew(self) -> None:
        parts = self.cover.split(max(1, IN_CACHE // self.cover.shape[1]))
        added = torch.cat([gains(part, self.covered, None) for part in parts])
        self.left, self.margin = added.double(), ROUNDING * added
        self.value = self._weighed(added)
        self.value[self.chosen] = -torch.inf
        self.fresh = set(range(len(added)))
        self.least = float(self.value.max()) / FALLEN

    def _weighed(self, added: Tensor) -> Tensor:
        return added if self.worth is None else added * self.worth

    def exact(self, candidate: int) -> bool:
        """Whether the bound of a candidate is what it adds."""
        return candidate in self.fresh

    def refresh(self, candidate: int) -> None:
        """Bring it, and others with the highest bounds, up to date."""
        high = self.value.topk(min(BLOCK, len(self.value))).indices
        high[-1] = candidate  # of equal ones `topk` takes any
        worth = None if self.worth is None else self.worth[high]
        self.value[high] = self.value[high].minimum(gains(self.cover[high], self.covered, worth))
        self.fresh.update(high.tolist())

    def take(self, pick: int) -> None:
        """`pick` is chosen: what the others add falls."""
        self.chosen.append(pick)
        row = self.cover[pick]
        better = (row > self.covered).nonzero()[:, 0]
        if 2 * len(better) > len(row) or float(self.value[pick]) < self.least:
            torch.maximum(self.covered, row, out=self.covered)
            self._anew()
            return
        before, after = self.covered[better, None], row[better, None]
        lost = torch.maximum(self.by_target[better], before)
        lost = torch.minimum(lost, after, out=lost).sub_(before).sum(dim=0)
        self.covered[better] = row[better]
        self.left -= lost
        added = self.left.add(self.margin).to(lost.dtype)
        torch.minimum(self.value, self._weighed(added), out=self.value)
        self.value[pick] = -torch.inf
        self.fresh.clear()


def gains(cover: Tensor, covered: Tensor, weight: Tensor | None) -> Tensor:
    """[N]: what each row of cover [N, M] adds to covered [M], times weight [N]."""
    added = (cover - covered).clamp_(min=0).sum(dim=1)
    return added if weight is None else added * weight
