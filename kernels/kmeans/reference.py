"""k-means with deterministic seeding, cosine or Euclidean."""

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from vtc.kernels.greedy_diversity.reference import absent, all_products, unit
from vtc.kernels.segment_sum.reference import segment_sum

SEED_TOKENS = 8  # per centroid, evenly strided: seeding looks at no more of them
MANY = 1024  # tokens of which seeding may look at all
LARGEST_MATRIX = 1024  # tokens all of whose distances are held at once on a CPU; of more, those that are asked for
RUN, RUNS = 16, 48  # tokens whose distances are computed together, and how many such runs are held
BLOCK, IN_CACHE = 2**24, 2**20  # scores of the assignment held at a time: on a GPU; on a CPU


def assign(x: Tensor, centroids: Tensor, bias: Tensor) -> Tensor:
    """x [B, N, D], centroids [B, K, D], bias [B, K] -> LongTensor [B, N], argmax of x . c + bias; ties: the lowest."""
    b, n = x.shape[:2]
    step = max(1, (IN_CACHE if x.device.type == "cpu" else BLOCK) // (b * centroids.shape[1]))
    label = torch.empty(b, n, dtype=torch.long, device=x.device)
    for start in range(0, n, step):
        scores = torch.baddbmm(bias[:, None], x[:, start : start + step], centroids.transpose(1, 2))
        label[:, start : start + step] = scores.argmax(dim=-1)
    return label


def seed(x: Tensor, k: int, lengths: Tensor) -> Tensor:
    """Greedy k-means++ without chance: LongTensor [B, k] of tokens; see Arthur and Vassilvitskii 2007, section 2.2.

    The first is the token nearest to the mean. Each later one is the best of a few candidates, which lie at evenly
    spread quantiles of the squared distance to the nearest seed. With fewer different tokens than k some repeat. Of
    many tokens no more are looked at than have, all with all, as many products as an assignment, or MANY.
    """
    b, n = x.shape[:2]
    most = (lengths * k).double().sqrt().long().clamp(min=max(MANY, 2 * k))
    few = torch.minimum(lengths.clamp(max=SEED_TOKENS * k), most)  # [B]
    place = torch.arange(min(n, SEED_TOKENS * k, max(MANY, 2 * k, math.isqrt(n * k))), device=x.device)
    there = place < few[:, None]
    at = (place * lengths[:, None] // few[:, None].clamp(min=1)).clamp(max=n - 1)  # [B, F], evenly strided
    if x.device.type == "cpu" and len(place) > LARGEST_MATRIX:
        return torch.stack(
            [_one_by_one(own, places[: max(1, count)], k) for own, places, count in zip(x, at, few, strict=True)]
        )
    some = x.gather(1, at.unsqueeze(-1).expand(-1, -1, x.shape[-1])) * there.unsqueeze(-1)
    rows = torch.arange(b, device=x.device)
    spread = _spread(k, x.device)
    if x.device.type == "cpu":
        products = torch.stack([all_products(own) for own in some])  # [B, F, F]
    else:
        products = torch.bmm(some, some.transpose(1, 2))
    squares = products.diagonal(dim1=-2, dim2=-1).clone()
    apart = products.mul_(-2).add_(squares[:, None]).add_(squares[:, :, None]).clamp_(min=0.0)
    apart.masked_fill_(~there[:, None], 0.0)  # what is not there is never drawn, and never missed
    # Nearest to the mean is nearest to all others, in squares.
    pick = apart.sum(dim=-1).masked_fill_(~there, torch.inf).argmin(dim=-1)
    picks, nearest = [pick], apart[rows, pick]  # squared distance to the nearest seed
    for _ in range(1, k):
        total = nearest.cumsum(dim=-1)
        candidates = torch.searchsorted(total, total[:, -1:] * spread)  # [B, C]
        closer = torch.minimum(nearest[:, None], apart[rows[:, None], candidates])  # [B, C, F]
        best = closer.sum(dim=-1).argmin(dim=-1)
        pick, nearest = candidates[rows, best], closer[rows, best]
        picks.append(pick)
    return at.gather(1, torch.stack(picks, dim=1))


def _spread(k: int, device: torch.device) -> Tensor:
    """The quantiles at which the candidates for each of k seeds lie."""
    trials = 2 + int(math.log(k))
    return (torch.arange(trials, device=device) + 0.5) / trials


def _one_by_one(x: Tensor, at: Tensor, k: int) -> Tensor:
    """`seed` among the tokens `at` [F] of one picture x [N, D] without the matrix of their distances: LongTensor [k].

    Quantiles move little from one seed to the next, so few tokens are ever candidates, and those lie side by side:
    distances from RUN tokens in a row are computed when one of them is asked for, and the RUNS latest are held.
    """
    spread, held = _spread(k, x.device), OrderedDict[int, Tensor]()
    if 2 * len(at) <= len(x):
        base, columns = x[at], None
    else:  # most of them: a copy would cost more than some products too many
        base, columns = x, None if len(at) == len(x) else at
    counted = x.new_zeros(len(x)).index_fill_(0, at, 1.0)
    squares = torch.cat([part.square().sum(dim=1) for part in x.split(1024)])[at]  # [F]

    def products(rows: Tensor) -> Tensor:
        found = rows @ base.T
        return found if columns is None else found[:, columns]

    def apart(token: int) -> Tensor:
        run = token // RUN
        if run not in held:
            own = slice(run * RUN, (run + 1) * RUN)
            held[run] = products(x[at[own]]).mul_(-2).add_(squares).add_(squares[own, None]).clamp_(min=0.0)
            held[run].diagonal(offset=run * RUN).fill_(0.0)
            if len(held) > RUNS:
                held.popitem(last=False)
        held.move_to_end(run)
        return held[run][token % RUN]

    pick = int(products((counted @ x / len(at))[None])[0].mul_(-2).add_(squares).argmin())  # nearest to the mean
    picks, nearest = [pick], apart(pick).clone()  # squared distance to the nearest seed
    for _ in range(1, k):
        total = nearest.cumsum(dim=0)
        candidates = torch.searchsorted(total, total[-1:] * spread).tolist()
        closer = torch.stack([apart(token) for token in candidates])
        torch.minimum(closer, nearest, out=closer)  # [C, F]
        best = int(closer.sum(dim=-1).argmin())
        picks.append(candidates[best])
        nearest = closer[best].clone()
    return at[picks]


def means(
    x: Tensor, label: Tensor, old: Tensor, segment_sum: Callable[[Tensor, Tensor, Tensor, int], Tensor]
) -> Tensor:
    """Centroids [B, K, D] of the labels [B, N] (-1: nobody's); an empty cluster keeps its `old` one."""
    b, n, d = x.shape
    k = old.shape[1]
    used = label >= 0
    size = torch.zeros(b, k, device=x.device).scatter_add_(1, label.clamp(min=0), used.float())
    flat = torch.where(used, label + k * torch.arange(b, device=x.device)[:, None], -1).flatten()
    total = segment_sum(x.reshape(-1, d), flat, torch.ones(b * n, device=x.device), b * k).view(b, k, d)
    return torch.where((size > 0).unsqueeze(-1), total / size.clamp(min=1.0).unsqueeze(-1), old)


def _of_moved(new: Tensor, old: Tensor, k: int) -> Tensor:
    """The labels `new` [B, N] of tokens whose cluster has gained or lost one since `old`, -1 for others: a cluster that
    is as it was keeps its centroid, and its tokens are not read."""
    moved = torch.zeros(len(new), k + 1, dtype=torch.bool, device=new.device)
    for label in (new, old):
        moved.scatter_(1, torch.where((new != old) & (label >= 0), label, k), True)
    return torch.where((new >= 0) & moved.gather(1, new.clamp(min=0)), new, -1)


def lloyd(
    features: Tensor,
    k: int,
    metric: str,
    iterations: int,
    lengths: Tensor | None,
    segment_sum: Callable[[Tensor, Tensor, Tensor, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations until no label changes: (centroids [B, K, D] in fp32, label [B, N], -1 behind the lengths)."""
    cosine = metric == "cosine"
    n = features.shape[1]
    x = unit(features) if cosine else features.float().nan_to_num(0.0, 0.0, 0.0)
    empty = absent(lengths, n, x.device)
    if lengths is None:
        lengths = torch.full((x.shape[0],), n, device=x.device)
    if empty is not None:
        x.masked_fill_(empty.unsqueeze(-1), 0.0)
    seeds = seed(x, k, lengths.to(x.device))
    centroids = x.gather(1, seeds.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    label = torch.full(x.shape[:2], -2, dtype=torch.long, device=x.device)
    for _ in range(iterations):
        ends = unit(centroids) if cosine else centroids
        bias = torch.zeros_like(ends[..., 0]) if cosine else -0.5 * ends.square().sum(dim=-1)
        new = assign(x, ends, bias)
        if empty is not None:
            new = new.masked_fill(empty, -1)
        if torch.equal(new, label):
            break
        centroids = means(x, _of_moved(new, label, k), centroids, segment_sum)
        label = new
    return centroids, label


def kmeans(
    features: Tensor, k: int, metric: str, iterations: int, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """features [B, N, D] -> (centroids [B, k, D] in fp32, label LongTensor [B, N])."""
    return lloyd(features, k, metric, iterations, lengths, segment_sum)
