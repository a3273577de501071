"""Greedy diversity without a Gram matrix, exact: products with all tokens are made for many steps at once.

What is minimised is a token's similarity to the chosen set, the largest or the sum. The largest only rises, which makes
what is known of the other tokens a bound; the next of the sums can be guessed. Memory is a few numbers per token.
"""

import torch
from torch import Tensor

POOL = 512  # tokens that steps of maxmin look at between two updates
NEAR = 512  # tokens among which maxsum guesses what is next
FEWEST, MOST = 4, 64  # guesses at a time
DIRECTIONS, MOST_OF = 64, 0.75  # along which maxsum knows all tokens, if these have so much of their squared length
AT_ONCE = 1024  # tokens that a processor multiplies a few rows with at a time
ROUNDING = 1e-6  # of sums of products in fp32, by the length of what is added up


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

    The sum is a product with the total of what is chosen, and any choice may move any sum, so that every step has to
    look at all of them. But what it adds need not be multiplied step by step: the next choices are guessed, and one
    product has the sums of all rows and what each guess would add to them. Then a step takes the lowest and adds a row
    of N numbers, as long as it was among the guesses. Where it was not, it is chosen nevertheless, and more is guessed;
    what was made for guesses that may still come true is held.

    Example: rows a = (1, 0), b = (-1, 0), c = (0, 1), d = (-.6, .8), the first is a. The guesses are b and c. Of one
    product come the sums, 1 -1 0 -.6, what b adds, -1 1 0 .6, and what c does. b is lowest, and as guessed; with what
    it adds c and d stand at 0 both, and c is next, as it comes first.
    """
    chosen, done = torch.tensor([first], device=x.device), 1
    total, sums, basis = x[first].double(), torch.zeros(len(x), device=x.device), directions(x)
    along = x @ basis
    sums[first], run, added = torch.inf, FEWEST, dict[int, Tensor]()
    while done < k:
        guesses = _ahead(x, sums, chosen[-1], along, basis, min(run, k - done - 1)).tolist()
        added = {guess: added[guess].clone() for guess in guesses if guess in added}
        new = [guess for guess in dict.fromkeys(guesses) if guess not in added]
        sums, *rows = _products(torch.cat([total.float()[None], x[new]]), x)
        sums.index_fill_(0, chosen, torch.inf)
        added.update(zip(new, rows, strict=True))
        fresh = list[int]()
        while len(fresh) < k - done:
            fresh.append(_lowest(x, sums, total))
            total += x[fresh[-1]]
            sums[fresh[-1]] = torch.inf
            if fresh[-1] not in added:
                break
            sums += added.pop(fresh[-1])
        chosen, done = torch.cat([chosen, torch.tensor(fresh, device=x.device)]), done + len(fresh)
        run = min(MOST, max(FEWEST, 2 * len(fresh)))
    return chosen


def _products(rows: Tensor, x: Tensor) -> Tensor:
    """[M, N] of a few rows [M, D] with x [N, D]."""
    return torch.cat([rows @ part.T for part in x.split(AT_ONCE if x.device.type == "cpu" else len(x))], dim=1)


def _ahead(x: Tensor, sums: Tensor, last: Tensor, along: Tensor, basis: Tensor, most: int) -> Tensor:
    """What is likely to be next by sums [N], which lack what `last` adds: LongTensor [most].

    What each choice adds is multiplied for the NEAR lowest; of the others what is known
    is what they have in common `along` [N, R] the `basis` [D, R].
    """
    if most < 1:
        return last.new_zeros(0)
    rough = torch.addmv(sums, along, x[last] @ basis)
    pool = rough.topk(min(NEAR, len(x)), largest=False).indices.sort().values
    rows, pick, found = x[pool], last, list[Tensor]()
    own = sums[pool]
    while True:
        own = (own + rows @ x[pick]).masked_fill_(pool == pick, torch.inf)
        found.append(rough.index_copy_(0, pool, own).argmin())
        if len(found) == most:
            return torch.stack(found)
        pick = found[-1]
        rough.addmv_(along, x[pick] @ basis).index_fill_(0, pick, torch.inf)


def _lowest(x: Tensor, sums: Tensor, total: Tensor) -> int:
    """The place of the lowest of sums [N]; what rounding may have put in order is looked at in float64, by its product
    with `total` [D], and of equal ones the first is the lowest."""
    able = (sums <= sums.min() + ROUNDING * total.norm()).nonzero()[:, 0]
    if len(able) == 1:
        return int(able)
    exact = torch.cat([(x[part].double() * total).sum(dim=1) for part in able.split(1024)])
    return int(able[exact.argmin()])


def directions(x: Tensor) -> Tensor:
    """Orthonormal [D, R] that hold most of the rows x [N, D], by subspace iteration on a part of them; R = 0 where
    DIRECTIONS do not."""
    some = x[:: max(1, len(x) // 2048)]
    start = torch.randn(x.shape[1], min(DIRECTIONS, *some.shape), generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(start.to(x.device)).Q
    for _ in range(3):
        basis = torch.linalg.qr(some.T @ (some @ basis)).Q
    held = (some @ basis).square().sum() >= MOST_OF * some.square().sum()
    return basis if bool(held) else basis[:, :0]
