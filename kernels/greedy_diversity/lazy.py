"""Greedy diversity without a Gram matrix, exact: most steps look at a few tokens only, as the others cannot be next.

What is minimised is a token's similarity to the chosen set. Products are made for many steps at once, of which there
are far fewer than steps; memory is a few numbers, or rows of products, per token.
"""

import torch
from torch import Tensor

POOL = 512  # tokens that steps of maxmin look at between two updates
FEWEST, MOST = 8, 128  # rows of products that maxsum makes at once


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

    A choice adds one row of products to the sums. Sums differ by more than a row does, so that those to be chosen next
    are among the lowest now: rows of these are made together, in one product, twice as many as proved to be wanted last
    time. They take no more memory than half of the features.

    Example: sums .1 .2 .3 .9, two rows ahead. Those of the first two are made; the first is chosen, and its row makes
    the sums of the others .8 .4 .7: the third is next, of which there is no row, so that those of it and of the fourth
    are made.
    """
    chosen = [first]
    sums = torch.zeros(len(x), device=x.device)
    rows, used, most = dict[int, Tensor](), 0, min(len(x), MOST, max(FEWEST, x.shape[1] // 2))
    while True:
        pick = chosen[-1]
        if pick not in rows:
            low = sums.topk(min(most, max(FEWEST, 2 * used)), largest=False).indices
            low[-1] = pick  # of equal ones `topk` takes any
            rows, used = dict(zip(low.tolist(), _products(x, low), strict=True)), 0
        sums.add_(rows.pop(pick))[pick] = torch.inf
        used += 1
        if len(chosen) == k:
            return torch.tensor(chosen, device=x.device)
        chosen.append(int(sums.argmin()))


def _products(x: Tensor, rows: Tensor) -> Tensor:
    """[M, N]: of `rows` [M] of x with all of them."""
    return x[rows] @ x.T
