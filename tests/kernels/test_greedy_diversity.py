"""`greedy_diversity`: farthest-first and max-sum choice, against loops in float64."""

import pytest
import torch

from vtc import ops

pytestmark = pytest.mark.core


def define(x, k, mode, first):
    """Plain greedy choice among rows x [N, D]; ties to the lowest index."""
    x = x.double()
    n = len(x)
    norms = [float(row.norm()) for row in x]
    cosine = [
        [float(x[i] @ x[j]) / (norms[i] * norms[j]) if norms[i] and norms[j] else 0.0 for j in range(n)]
        for i in range(n)
    ]
    if first is None:
        nearest = [max((cosine[i][j] for j in range(n) if j != i), default=-2.0) for i in range(n)]
        first = min(range(n), key=lambda i: (nearest[i], i))
    chosen = [first]
    while len(chosen) < k:
        reduce = max if mode == "maxmin" else sum
        left = [i for i in range(n) if i not in chosen]
        chosen.append(min(left, key=lambda i: (reduce(cosine[i][j] for j in chosen), i)))
    return chosen


@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
@pytest.mark.parametrize("n", [1, 2, 3, 63, 127])
def test_against_the_definition(mode, n):
    x = torch.randn(2, n, 12, generator=torch.Generator().manual_seed(n))
    k = max(1, n // 3)
    for first in (None, torch.tensor([n - 1, 0])):
        out = ops.greedy_diversity(x, k, mode, first)
        assert out.shape == (2, k)
        for i in range(2):
            assert out[i].tolist() == define(x[i], k, mode, None if first is None else int(first[i]))


@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
def test_577_tokens(mode):
    """Checked step by step against the float64 objective, since rounding may order near-ties differently."""
    x = torch.randn(577, 16, generator=torch.Generator().manual_seed(0))
    chosen = ops.greedy_diversity(x[None], 64, mode, torch.tensor([5]))[0].tolist()
    unit = x.double() / x.double().norm(dim=-1, keepdim=True)
    cosine = unit @ unit.T
    for step in range(1, 64):
        own = cosine[:, chosen[:step]]
        score = own.amax(1) if mode == "maxmin" else own.sum(1)
        left = [i for i in range(577) if i not in chosen[:step]]
        assert score[chosen[step]] <= score[left].min() + 1e-5


@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
@pytest.mark.parametrize("n", [1, 2, 3, 63, 127, pytest.param(577, marks=pytest.mark.large)])
def test_everything_is_a_permutation(mode, n):
    x = torch.randn(1, n, 4, generator=torch.Generator().manual_seed(n))
    assert sorted(ops.greedy_diversity(x, n, mode, None)[0].tolist()) == list(range(n))


@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
@pytest.mark.parametrize("n", [1, 2, 3, 63, 127, pytest.param(577, marks=pytest.mark.large)])
@pytest.mark.parametrize("row", [[0.0] * 7, [1.0] * 7, [0.3, -1.7, 2.9, 0.1, 5.3, -0.2, 0.7]])
def test_equal_rows_are_chosen_from_the_lowest_index(mode, n, row):
    x = torch.tensor(row).expand(1, n, 7)
    k = min(n, 40)
    assert ops.greedy_diversity(x, k, mode, None)[0].tolist() == list(range(k))


def test_a_zero_row_is_similar_to_nothing():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 0.0]])[None]
    assert ops.greedy_diversity(x, 2, "maxmin", None)[0].tolist() == [2, 0]


@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_no_numbers_count_as_zero_rows(mode, value):
    x = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0))
    broken, zeroed = x.clone(), x.clone()
    broken[0, [3, 8], 1] = value
    zeroed[0, [3, 8]] = 0
    assert torch.equal(ops.greedy_diversity(broken, 20, mode), ops.greedy_diversity(zeroed, 20, mode))


def test_duplicates_are_never_chosen_twice():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(5, 1)[None]
    assert ops.greedy_diversity(x, 10, "maxmin", None)[0].unique().numel() == 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_fp32(dtype):
    x = torch.randn(1, 63, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(ops.greedy_diversity(x, 20, "maxmin"), ops.greedy_diversity(x.float(), 20, "maxmin"))


@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
@pytest.mark.parametrize("given", [False, True])
def test_unequal_lengths_are_as_each_alone(mode, given):
    g = torch.Generator().manual_seed(0)
    pictures = [torch.randn(n, 16, generator=g) for n in (40, 97, 13)]
    batch = torch.full((3, 97, 16), float("nan"))
    for row, picture in zip(batch, pictures, strict=True):
        row[: len(picture)] = picture
    first = torch.tensor([7, 0, 12]) if given else None
    out = ops.greedy_diversity(batch, 20, mode, first, lengths=torch.tensor([40, 97, 13]))
    for i, picture in enumerate(pictures):
        k = min(20, len(picture))
        alone = ops.greedy_diversity(picture[None], k, mode, None if first is None else first[i : i + 1])[0]
        assert out[i, :k].tolist() == alone.tolist()


def rows_of(kind, n=300, width=32):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, width, generator=g)
    if kind == "clusters":
        return torch.randn(9, width, generator=g)[torch.randint(9, (n,), generator=g)] + 0.3 * x
    if kind == "alike":
        return x + 3 * torch.randn(width, generator=g)
    if kind == "flat":
        return torch.randn(n, 4, generator=g) @ torch.randn(4, width, generator=g) + 0.01 * x
    return x


@pytest.mark.large
@pytest.mark.parametrize("kind", ["noise", "clusters", "alike", "flat"])
@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
@pytest.mark.parametrize(("pool", "guesses"), [(2, 1), (2, 9), (16, 3), (1000, 64)])
def test_lazy_steps_choose_like_the_gram_matrix(mode, kind, pool, guesses, monkeypatch):
    """With pools that are soon used up, and with one that holds everything; with few guesses and with many."""
    from vtc.kernels.greedy_diversity import lazy, reference

    x = torch.stack([rows_of(kind), rows_of(kind).flip(0)])
    first, lengths = torch.tensor([3, 200]), torch.tensor([300, 250])
    cases = [(given, sizes) for given in (first, None) for sizes in (lengths, None)]
    expected = [reference.greedy_diversity(x, 40, mode, *case) for case in cases]
    for name, value in (("POOL", pool), ("NEAR", pool), ("FEWEST", guesses), ("MOST", guesses)):
        monkeypatch.setattr(lazy, name, value)
    monkeypatch.setattr(reference, "LARGEST_GRAM", 100)
    monkeypatch.setattr(reference, "BLOCK", 50 * pool * pool)  # tiles of products, of which the last is smaller
    for case, chosen in zip(cases, expected, strict=True):
        assert torch.equal(reference.greedy_diversity(x, 40, mode, *case), chosen)


@pytest.mark.large
@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
@pytest.mark.parametrize("row", [[0.0] * 7, [1.0] * 7, [0.3, -1.7, 2.9, 0.1, 5.3, -0.2, 0.7]])
def test_lazy_steps_take_equal_rows_from_the_lowest_index(mode, row, monkeypatch):
    from vtc.kernels.greedy_diversity import lazy, reference

    for where, name, value in ((lazy, "POOL", 8), (lazy, "NEAR", 8), (reference, "LARGEST_GRAM", 10)):
        monkeypatch.setattr(where, name, value)
    x = torch.tensor(row).expand(1, 60, 7)
    assert reference.greedy_diversity(x, 60, mode)[0].tolist() == list(range(60))


@pytest.mark.large
@pytest.mark.parametrize("kind", ["noise", "clusters", "alike", "flat"])
@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
def test_lazy_steps_look_at_all_rows_seldom(mode, kind, monkeypatch):
    """A tenth of 3,000 rows; every look at all of them is one product with them."""
    from vtc.kernels.greedy_diversity import lazy

    looks, one = [], "_from_pool" if mode == "maxmin" else "_ahead"
    plain = getattr(lazy, one)
    monkeypatch.setattr(lazy, one, lambda *args: looks.append(1) or plain(*args))
    x = rows_of(kind, 3000, 64)
    getattr(lazy, mode)(x / x.norm(dim=1, keepdim=True), 300, 0)
    assert len(looks) <= (100 if (mode, kind) == ("maxsum", "noise") else 60)


@pytest.mark.large
def test_what_rounding_puts_in_order_is_looked_at_again():
    """Sums that are off by a little say who may be lowest; products in float64 say who is, the first of equal ones."""
    from vtc.kernels.greedy_diversity.lazy import _lowest

    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 64, generator=g)
    x /= x.norm(dim=1, keepdim=True)
    total = x[:200].double().sum(dim=0)
    true = x.double() @ total
    first = int(true.argmin())
    for copies in ([], [2999, first + 1], range(3000)):
        x[list(copies)] = x[first].clone()
        off = (torch.rand(3000, generator=g) - 0.5) * 1e-6 * total.norm()
        assert _lowest(x, (x.double() @ total + off).float(), total) == min([first, *copies])


@pytest.mark.large
@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
def test_little_is_held_beside_the_features(mode):
    """Rows of length 1, and little more: no Gram matrix, nor other copies."""
    from vtc.eval.bench.model import peak_bytes
    from vtc.kernels.greedy_diversity import reference

    x = torch.randn(1, 6000, 400, generator=torch.Generator().manual_seed(0))
    held = peak_bytes(lambda: reference.greedy_diversity(x, 12, mode, torch.tensor([5])), x.device)
    assert held <= 1.6 * x.nbytes


def test_refusals():
    with pytest.raises(ValueError, match="maxmin"):
        ops.greedy_diversity(torch.zeros(1, 4, 4), 2, "best")
    with pytest.raises(ValueError, match="k=5 of 4"):
        ops.greedy_diversity(torch.zeros(1, 4, 4), 5, "maxmin")


@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
def test_more_tokens_than_registers(mode, monkeypatch):
    if ops.provider("greedy_diversity", torch.zeros(1)) == "reference":
        pytest.skip("only the Triton kernel has registers: it runs this test, too")
    from vtc.kernels.greedy_diversity import triton

    x = torch.randn(2, 150, 16, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([150, 90])
    expected = ops.greedy_diversity(x, 40, mode, None, lengths)
    monkeypatch.setattr(triton, "RESIDENT", 64)
    assert torch.equal(ops.greedy_diversity(x, 40, mode, None, lengths), expected)
