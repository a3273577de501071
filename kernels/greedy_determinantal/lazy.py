"""Greedy determinants for CPUs, exact: half of all products, or, of many tokens, rows of them as they are needed."""

import torch
from torch import Tensor

from vtc.kernels.greedy_diversity.reference import all_products, numbers
from vtc.kernels.pictures import at_least_zero, one_by_one, ranks

WHOLE = (
    4096  # tokens all of whose products are made at first: what is left of even ones is alike, so that no row is likely
)
AHEAD = 32  # rows of products that are made at once, of more
HELD = 256  # of which so many are held
SPANNED = 1e-5  # share of a token's own square below which what is left of it is rounding


def greedy_determinantal(
    features: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """As the reference: features [B, N, D] -> LongTensor [B, k]."""
    return one_by_one(_choose, k, lengths, features, weight)[0]


def _choose(features: Tensor, weight: Tensor | None, k: int) -> Tensor:
    """LongTensor [k] of one picture's features [N, D]. Only a token that is chosen needs its row of products; what is
    left of a token only falls, so that those of which most is left are likely to be next."""
    x, inverse = numbers(features)
    n, device = len(x), x.device
    worth = torch.ones(n, device=device) if weight is None else at_least_zero(weight)
    scale = worth * inverse
    left = torch.where(torch.linalg.vector_norm(x, dim=1) > 0, worth.square(), 0.0)
    least, scales = (SPANNED * left).tolist(), scale.tolist()
    factor = torch.empty(min(k, n, x.shape[1]), n, device=device)
    products = AllProducts(x) if n <= WHOLE else Products(x)
    chosen: list[int] = []
    while len(chosen) < len(factor):
        pick = int(left.argmax())
        own = float(left[pick])
        if own <= 0:
            break
        if own <= least[pick]:
            left[pick] = 0.0
            continue
        done = len(chosen)
        row = torch.mul(products.row(pick, left), scale, out=factor[done])
        root = own**-0.5
        row.addmv_(factor[:done].T, factor[:done, pick], beta=scales[pick] * root, alpha=-root)
        left.addcmul_(row, row, value=-1)
        left[pick] = 0.0
        chosen.append(pick)
    taken = torch.tensor(chosen, dtype=torch.long, device=device)
    rest = ranks(worth).index_fill_(0, taken, n).argsort()
    return torch.cat([taken, rest])[:k]


class AllProducts:
    """Rows of x x^T, all of which are made at once."""

    def __init__(self, x: Tensor) -> None:
        self.rows = all_products(x)

    def row(self, pick: int, left: Tensor) -> Tensor:
        """[N], of token `pick`."""
        return self.rows[pick]


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
