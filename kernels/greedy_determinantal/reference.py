"""Greedy choice of the tokens of largest determinant: important ones that span much (determinantal point process)."""

import torch
from torch import Tensor

from vtc.kernels.greedy_diversity.reference import numbers
from vtc.kernels.pictures import at_least_zero, one_by_one, ranks

AHEAD = 32  # rows of products that are made at once
HELD = 256  # of which so many are held
SPANNED = 1e-5  # share of a token's own square below which what is left of it is rounding


def greedy_determinantal(
    features: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """features [B, N, D], weight [B, N] or None, lengths [B] or None -> LongTensor [B, k], in order of selection.

    Every step takes the token that makes the determinant of L, on what is chosen, largest: L_ij = w_i cos_ij w_j. That
    is the one of which most is left, d^2, once its projection on the chosen ones has gone (fast greedy MAP, arXiv
    1709.05135, algorithm 1). Where nothing is left of any, beyond the rank, the highest weights follow. Ties go to the
    lowest index. A row that holds NaN or infinity, or a weight that is none or negative, counts as 0. Rows behind a
    picture's own length come last.
    """
    return one_by_one(_choose, k, lengths, features, weight)[0]


def _choose(features: Tensor, weight: Tensor | None, k: int) -> Tensor:
    """LongTensor [k] of one picture's features [N, D], by a pivoted Cholesky factor of L, row after row: what row t
    leaves of L is L - sum of e e^T over the rows e so far, and d^2 its diagonal.

    Example: three rows (1 0), (.8 .6) and (0 1), weights 1 1 .5, so d^2 = 1 1 .25. The first is chosen, and takes 1 .64
    0 away: .36 of the second is left, more than the third's .25, and it is next.
    """
    x, inverse = numbers(features)
    n, device = len(x), x.device
    worth = torch.ones(n, device=device) if weight is None else at_least_zero(weight)
    scale = worth * inverse
    left = torch.where((x != 0).any(dim=1), worth.square(), 0.0)
    least = SPANNED * left
    factor = torch.empty(min(k, n, x.shape[1]), n, device=device)
    products = Products(x)
    chosen: list[int] = []
    while len(chosen) < len(factor):
        pick = int(left.argmax())
        own = float(left[pick])
        if own <= 0:
            break
        if own <= float(least[pick]):
            left[pick] = 0.0
            continue
        done = len(chosen)
        row = torch.mul(products.row(pick, left), scale, out=factor[done])
        root = own**-0.5
        row.addmv_(factor[:done].T, factor[:done, pick], beta=float(scale[pick]) * root, alpha=-root)
        left.addcmul_(row, row, value=-1)
        left[pick] = 0.0
        chosen.append(pick)
    taken = torch.tensor(chosen, dtype=torch.long, device=device)
    rest = ranks(worth).index_fill_(0, taken, n).argsort()
    return torch.cat([taken, rest])[:k]


class Products:
    """Rows of x x^T as they are asked for: with one that is missing, those that are likely to be next are made, too."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.rows = x, dict[int, Tensor]()

    def row(self, pick: int, left: Tensor) -> Tensor:
        """[N], of token `pick`; `left` [N] says which are next, the highest."""
        if pick not in self.rows:
            high = left.topk(min(AHEAD, len(left))).indices
            high[-1] = pick
            if len(self.rows) > HELD:
                self.rows.clear()
            self.rows.update(zip(high.tolist(), self.x[high] @ self.x.T, strict=True))
        return self.rows.pop(pick)
