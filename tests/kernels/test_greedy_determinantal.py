"""`greedy_determinantal`: the largest determinant step by step, against determinants worked out for every candidate."""

import math

import pytest
import torch

from vtc import ops

pytestmark = pytest.mark.core


def determinant(matrix):
    """Of a list of rows, by elimination with the largest pivot of each column."""
    rows, found = [row[:] for row in matrix], 1.0
    for c in range(len(rows)):
        pivot = max(range(c, len(rows)), key=lambda r: abs(rows[r][c]))
        if rows[pivot][c] == 0:
            return 0.0
        if pivot != c:
            rows[c], rows[pivot], found = rows[pivot], rows[c], -found
        found *= rows[c][c]
        for r in range(c + 1, len(rows)):
            share = rows[r][c] / rows[c][c]
            rows[r] = [a - share * b for a, b in zip(rows[r], rows[c], strict=True)]
    return found


def define(x, k, weight=None):
    """Every step adds the token with the largest det of w_i cos_ij w_j on the chosen; beyond the rank by weight."""
    rows = [row if all(map(math.isfinite, row)) else [0.0] * len(row) for row in x.double().tolist()]
    weights = [1.0] * len(rows) if weight is None else weight.double().tolist()
    weights = [w if math.isfinite(w) and w > 0 else 0.0 for w in weights]
    norms = [math.hypot(*row) for row in rows]

    def entry(i, j):
        if not norms[i] * norms[j]:
            return 0.0
        dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        return weights[i] * weights[j] * (1.0 if i == j else dot / norms[i] / norms[j])

    chosen, now = [], 1.0
    while len(chosen) < k:
        left = [i for i in range(len(rows)) if i not in chosen]
        value = {i: determinant([[entry(p, q) for q in [*chosen, i]] for p in [*chosen, i]]) / now for i in left}
        spread = [i for i in left if entry(i, i) > 0 and value[i] > 1e-5 * entry(i, i)]
        if not spread:
            return chosen + sorted(left, key=lambda i: (-weights[i], i))[: k - len(chosen)]
        chosen.append(max(spread, key=lambda i: (value[i], -i)))
        now *= value[chosen[-1]]
    return chosen


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (3, 2), (40, 9)])
def test_against_the_definition(n, k, weighted):
    g = torch.Generator().manual_seed(n)
    x, weight = torch.randn(2, n, 12, generator=g), torch.rand(2, n, generator=g)
    chosen = ops.greedy_determinantal(x, k, weight if weighted else None)
    assert chosen.shape == (2, k)
    for i in range(2):
        assert chosen[i].tolist() == define(x[i], k, weight[i] if weighted else None)


@pytest.mark.parametrize("weighted", [False, True])
def test_beyond_the_rank_the_highest_weights_follow(weighted):
    """20 tokens of width 4: four span all there is."""
    g = torch.Generator().manual_seed(3)
    x, weight = torch.randn(20, 4, generator=g), torch.rand(20, generator=g)
    chosen = ops.greedy_determinantal(x[None], 20, weight[None] if weighted else None)[0].tolist()
    assert chosen == define(x, 20, weight if weighted else None)
    rest = [i for i in range(20) if i not in chosen[:4]]
    assert chosen[4:] == sorted(rest, key=lambda i: (-float(weight[i]), i) if weighted else (0, i))


@pytest.mark.parametrize("row", [[0.0] * 7, [1.0] * 7, [0.3, -1.7, 2.9, 0.1, 5.3, -0.2, 0.7]])
def test_equal_rows_are_chosen_from_the_lowest_index(row):
    x = torch.tensor(row).expand(1, 60, 7)
    assert ops.greedy_determinantal(x, 60)[0].tolist() == list(range(60))


def test_what_is_spanned_comes_after_what_is_not():
    """Of great weight, but the same direction as the first: behind one of little weight that is new."""
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])[None]
    assert ops.greedy_determinantal(x, 3, torch.tensor([[1.0, 0.9, 0.01]]))[0].tolist() == [0, 2, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_counts_as_zero(value):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 20, 6, generator=g), torch.rand(1, 20, generator=g)
    x[0, [3, 8], 1], weight[0, [2, 9]], weight[0, 11] = value, value, -3.0
    chosen = ops.greedy_determinantal(x, 20, weight)[0].tolist()
    assert sorted(chosen) == list(range(20))
    assert chosen == define(x[0], 20, weight[0])


@pytest.mark.parametrize("weighted", [False, True])
def test_unequal_lengths_are_as_each_alone(weighted):
    g = torch.Generator().manual_seed(0)
    pictures = [torch.randn(n, 16, generator=g) for n in (40, 97, 13)]
    weights = [torch.rand(len(picture), generator=g) for picture in pictures]
    batch, weight = torch.full((3, 97, 16), float("nan")), torch.full((3, 97), float("nan"))
    for i, (picture, own) in enumerate(zip(pictures, weights, strict=True)):
        batch[i, : len(picture)], weight[i, : len(own)] = picture, own
    out = ops.greedy_determinantal(batch, 16, weight if weighted else None, torch.tensor([40, 97, 13]))
    for i, (picture, own) in enumerate(zip(pictures, weights, strict=True)):
        k = min(16, len(picture))
        alone = ops.greedy_determinantal(picture[None], k, own[None] if weighted else None)[0]
        assert out[i, :k].tolist() == alone.tolist()
        assert out[i, k:].tolist() == list(range(len(picture), len(picture) + 16 - k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_fp32(dtype):
    x = torch.randn(1, 63, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(ops.greedy_determinantal(x, 20), ops.greedy_determinantal(x.float(), 20))


@pytest.mark.parametrize("weighted", [False, True])
def test_157_tokens(weighted):
    """Step by step against what float64 leaves of every token, since rounding may order near-ties differently."""
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(157, 40, generator=g), torch.rand(157, generator=g) if weighted else torch.ones(157)
    chosen = ops.greedy_determinantal(x[None], 24, weight[None] if weighted else None)[0].tolist()
    left = weight.double()[:, None] * x.double() / x.double().norm(dim=-1, keepdim=True)
    for step, pick in enumerate(chosen):
        score = left.square().sum(dim=1)
        score[chosen[:step]] = 0.0
        assert score[pick] >= score.max() - 1e-5
        along = left[pick] / left[pick].norm()
        left = left - (left @ along)[:, None] * along


@pytest.mark.large
@pytest.mark.parametrize("whole", [0, 4096])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_lazily_and_step_by_step(weighted, ragged, whole, monkeypatch):
    """What a CPU does, with half of all products and with those that are asked for, and a GPU without Triton."""
    from vtc.kernels.greedy_determinantal import lazy, reference

    monkeypatch.setattr(lazy, "WHOLE", whole)

    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 90, 8, generator=g), torch.rand(3, 90, generator=g)
    x[0, 5], weight[1, 7] = float("nan"), float("nan")
    lengths = torch.tensor([90, 30, 9]) if ragged else None
    rest = 12, weight if weighted else None, lengths
    assert torch.equal(lazy.greedy_determinantal(x, *rest), reference.step_by_step(x, *rest))


@pytest.mark.large
@pytest.mark.parametrize("n", [1, 95, 96, 97, 300, 1000])
def test_half_of_the_products_are_all(n):
    from vtc.kernels.greedy_determinantal.lazy import AllProducts

    x = torch.randint(-4, 5, (n, 7), generator=torch.Generator().manual_seed(n)).float()  # products are exact
    assert torch.equal(AllProducts(x).rows, x @ x.T)


def test_refusals():
    with pytest.raises(ValueError, match=r"k=5 of 4 tokens: choose at least 1 and at most all\.$"):
        ops.greedy_determinantal(torch.zeros(1, 4, 4), 5)
    with pytest.raises(ValueError, match=r"weight has shape \(4,\); expected one number per token, \(1, 4\)\.$"):
        ops.greedy_determinantal(torch.zeros(1, 4, 4), 2, torch.ones(4))
