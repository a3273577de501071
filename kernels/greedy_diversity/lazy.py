"""Greedy diversity without a Gram matrix, exact: most steps look at a few tokens only, as the others cannot be next.

What is minimised is a token's similarity to the chosen set. What is known of the other tokens is a lower bound; while
the best of those looked at lies below it, the choice is that of the full search. Work is N D per *update*, of which
there are far fewer than steps; memory is a few numbers per token.
"""

import torch
from torch import Tensor

POOL = 512  # tokens that steps of maxmin look at between two updates
NEAR = 1024  # the same of maxsum
DIRECTIONS = 64  # along which maxsum knows all tokens
LONGEST = 63  # steps without a pool after pools that have given one row only
ROUNDING = 2e-6  # of the products of unit rows in fp32, and of sums of them, relative
HALVED = (
    2**23
)  # numbers that a processor does not hold near itself: from there on steps without a pool read half of them


def maxmin(x: Tensor, k: int, first: int) -> Tensor:
    """Rows x [N, D] of length 1 (or 0) -> LongTensor [k], farthest-first, beginning with `first`.

    Scores, the largest similarity to what is chosen, only rise. So the POOL lowest form a pool, and the next one's
    score is the bound: whatever is lowest in the pool, and below the bound, is lowest of all. Then all scores are
    brought up to date at once, by one product with the new ones.

    Example: scores .1 .2 .3 .5 .9, a pool of three, so the bound is .5. The first is chosen; it lifts the others of the
    pool to .6 and .4: .4 is next, as it is below .5. Then .6 is not, and all five are looked at again.
    """
    n, device = len(x), x.device
    chosen = torch.tensor([first], device=device)
    score = torch.full((n,), -torch.inf, device=device)
    fresh = chosen
    while True:
        torch.maximum(score, _largest(x, x[fresh]), out=score)
        score[chosen] = torch.inf
        if len(chosen) == k:
            return chosen
        fresh = _from_pool(x, score, min(k - len(chosen), POOL))
        chosen = torch.cat([chosen, fresh])


def _from_pool(x: Tensor, score: Tensor, most: int) -> Tensor:
    """The next ones by scores [N] that are up to date, at least one and at most so many: LongTensor [<= most]."""
    size = min(POOL, len(score) - 1)
    if most == 1 or size < 2:
        return score.argmin()[None]
    lowest, pool = score.topk(size + 1, largest=False)
    bound = float(lowest[size])
    pool = pool[:size].sort().values  # of equal ones the first is the lowest
    own, rows = score[pool], x[pool]
    gram = rows @ rows.T
    found = [score.argmin()]  # also where all of the pool stand at the bound
    here = (pool == found[0]).nonzero()
    at = int(here[0]) if len(here) else -1
    while at >= 0 and len(found) < most:
        own = torch.maximum(own, gram[at])
        own[at] = torch.inf
        least, place = own.min(dim=0)
        if not float(least) < bound:
            break
        at = int(place)
        found.append(pool[at])
    return torch.stack(found)


def _largest(x: Tensor, rows: Tensor) -> Tensor:
    """Largest product of each of x [N, D] with one of `rows` [M, D]: [N]."""
    step = max(1, x.numel() // len(rows))
    return torch.cat([(block @ rows.T).amax(dim=1) for block in x.split(step)])


def maxsum(x: Tensor, k: int, first: int) -> Tensor:
    """Rows x [N, D] of length 1 (or 0) -> LongTensor [k], each with the least sum of similarities to those before it.

    The sum is a product with the sum of what is chosen. After an update the NEAR lowest form a pool, whose sums every
    step brings up to date. What is chosen since adds up to d; along the leading DIRECTIONS of the rows its product with
    every other row is known, and what is left of d and of a row, c and r long, gives no less than -c r. While the
    pool's best is below all of these bounds, it is the least of all. Where pools give one row only, as of noise, whose
    sum stays near 0 whatever is chosen, steps go without, each with one product with all rows (`Halves`).
    """
    chosen = torch.empty(k, dtype=torch.long, device=x.device)
    basis = directions(x)  # [D, R]
    along = x @ basis  # [N, R]
    rest = (torch.linalg.vector_norm(x, dim=1).square() - along.square().sum(dim=1)).clamp(min=0).sqrt()
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    gone = torch.zeros(len(x), device=x.device)  # inf for what is chosen
    halves = Halves(x) if x.device.type == "cpu" and x.numel() >= HALVED else None
    chosen[0], done = first, 1
    fresh = chosen[:1]
    alone, plain = 0, 0  # while pools give one row only, such as of noise, ever more steps go without
    while True:
        total += x[fresh].sum(dim=0)
        gone.index_fill_(0, fresh, torch.inf)
        if done == k:
            return chosen
        if plain and halves is not None:
            fresh, plain = halves.lowest(total.float(), gone)[None], plain - 1
        elif plain:
            fresh, plain = (x @ total.float()).add_(gone).argmin()[None], plain - 1
        else:
            fresh = _from_near(x, along, rest, (x @ total.float()).add_(gone), basis, k - done)
            alone = plain = min(2 * alone + 1, LONGEST) if len(fresh) == 1 else 0
        chosen[done : done + len(fresh)] = fresh
        done += len(fresh)


class Halves:
    """All rows in half precision, and how far each is from what it was: products with them take half of the time, and
    bounds of them leave few rows that can be the lowest."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.near = x, x.bfloat16()
        parts = zip(x.split(1024), self.near.split(1024), strict=True)
        self.off = torch.cat([torch.linalg.vector_norm(own - near, dim=1) for own, near in parts])

    def lowest(self, total: Tensor, gone: Tensor) -> Tensor:
        """Of x @ total [D] + gone [N] the place of the lowest; of equal ones the first."""
        half = total.bfloat16()
        rough = (self.near @ half).float()
        lost = 1.01 * float((total - half).norm()) + 1e-5 * float(total.norm())  # the latter: of adding up
        margin = torch.add(lost, self.off, alpha=float(total.norm())).add_(rough.abs(), alpha=2**-8)
        highest = float(torch.add(rough, margin).add_(gone).min())
        able = (rough.sub_(margin).add_(gone) <= highest).nonzero()[:, 0]
        if 8 * len(able) > len(gone):  # sums that are large beside their differences
            return (self.x @ total).add_(gone).argmin()
        exact = (self.x[able] * total).sum(dim=1)
        return able[exact.argmin()]


def _from_near(x: Tensor, along: Tensor, rest: Tensor, sums: Tensor, basis: Tensor, most: int) -> Tensor:
    """The next ones by sums [N] that are up to date, at least one and at most so many: LongTensor [<= most]."""
    pick = sums.argmin()
    found = [pick]
    pool = sums.topk(min(NEAR, len(x)), largest=False).indices.sort().values
    at = (pool == pick).nonzero()[:, 0]  # not there where more than the pool holds are equal
    if len(pool) == len(x) or not len(at) or most == 1:
        return pick[None]
    outside = sums.index_fill(0, pool, torch.inf)
    own, rows, place, grown = sums[pool], x[pool], at[0], torch.zeros_like(x[0])
    while len(found) < most:
        new = rows[place]
        own, grown = (own + rows @ new).index_fill_(0, place, torch.inf), grown + new
        part = grown @ basis
        left = (grown - basis @ part).norm()
        bound = torch.addcmul(torch.addmv(outside, along, part), rest, left, value=-1).amin()
        least, place = own.min(dim=0)
        if not bool(least < bound - ROUNDING * (least.abs() + grown.norm())):
            break
        found.append(pool[place])
    return torch.stack(found)


def directions(x: Tensor) -> Tensor:
    """Orthonormal [D, R] that hold most of the rows x [N, D]: subspace iteration on a part of them."""
    some = x[:: max(1, len(x) // 2048)]
    count = min(DIRECTIONS, *some.shape)
    start = torch.randn(x.shape[1], count, generator=torch.Generator().manual_seed(0)).to(x.device)
    basis = torch.linalg.qr(start).Q
    for _ in range(3):
        basis = torch.linalg.qr(some.T @ (some @ basis)).Q
    return basis
