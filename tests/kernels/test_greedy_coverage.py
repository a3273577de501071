"""`greedy_coverage`: the token that adds most to what is covered, against loops over single numbers."""

import math

import pytest
import torch

from vtc import ops

pytestmark = pytest.mark.core


def define(cover, k, weight=None):
    """Facility location by the definition: gains of all that are left, anew in every step; ties to the lowest index."""
    rows = [[value if math.isfinite(value) else 0.0 for value in row] for row in cover.double().tolist()]
    weights = [1.0] * len(rows) if weight is None else weight.double().tolist()
    weights = [w if math.isfinite(w) and w > 0 else 0.0 for w in weights]
    covered, chosen = [0.0] * len(rows[0]), []
    while len(chosen) < k:
        left = [j for j in range(len(rows)) if j not in chosen]
        gain = {j: weights[j] * sum(max(0.0, a - c) for a, c in zip(rows[j], covered, strict=True)) for j in left}
        chosen.append(max(left, key=lambda j: (gain[j], -j)))
        covered = [max(a, c) for a, c in zip(rows[chosen[-1]], covered, strict=True)]
    return chosen


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (40, 40), (63, 20), (20, 63)])
def test_against_the_definition(shape, weighted):
    g = torch.Generator().manual_seed(shape[0])
    cover, weight = torch.randn(2, *shape, generator=g), torch.rand(2, shape[0], generator=g)
    k = max(1, shape[0] // 3)
    chosen = ops.greedy_coverage(cover, k, weight if weighted else None)
    for i in range(2):
        assert chosen[i].tolist() == define(cover[i], k, weight[i] if weighted else None)


def test_one_of_each_kind_before_a_second_of_any():
    kinds = torch.tensor([0, 0, 0, 1, 1, 2])
    cover = (kinds[:, None] == kinds).float()[None]
    assert ops.greedy_coverage(cover, 6)[0].tolist() == [0, 3, 5, 1, 2, 4]
    assert ops.greedy_coverage(cover, 3, torch.tensor([[1.0, 1, 1, 1, 1, 9]]))[0].tolist() == [5, 0, 3]


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_equal_tokens_are_chosen_from_the_lowest_index(value):
    assert ops.greedy_coverage(torch.full((1, 40, 40), value), 40)[0].tolist() == list(range(40))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_counts_as_zero(value):
    g = torch.Generator().manual_seed(0)
    cover, weight = torch.rand(1, 20, 20, generator=g), torch.rand(1, 20, generator=g)
    cover[0, 3, 4], cover[0, 7], weight[0, [2, 9]] = value, value, value
    weight[0, 11] = -3.0
    chosen = ops.greedy_coverage(cover, 20, weight)[0].tolist()
    assert sorted(chosen) == list(range(20))
    assert chosen == define(cover[0], 20, weight[0])


@pytest.mark.parametrize("weighted", [False, True])
def test_unequal_lengths_are_as_each_alone(weighted):
    g = torch.Generator().manual_seed(0)
    batch, weight = torch.zeros(3, 30, 30), torch.ones(3, 30)
    sizes = [20, 30, 7]
    for row, own, n in zip(batch, weight, sizes, strict=True):
        row[:n, :n], own[:n] = torch.rand(n, n, generator=g), torch.rand(n, generator=g)
    out = ops.greedy_coverage(batch, 12, weight if weighted else None, torch.tensor(sizes))
    for i, n in enumerate(sizes):
        k = min(12, n)
        assert out[i, :k].tolist() == define(batch[i, :n, :n], k, weight[i, :n] if weighted else None)
        assert out[i, k:].tolist() == list(range(n, n + 12 - k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_fp32(dtype):
    cover = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(ops.greedy_coverage(cover, 10), ops.greedy_coverage(cover.float(), 10))


def cosines_of(kind, n):
    """[n, n] of tokens in 30 heaps, of noise, or of pairs that are equal; words beside the tokens."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 64, generator=g)
    if kind == "heaps":
        x = torch.randn(30, 64, generator=g)[torch.randint(30, (n,), generator=g)] + x
    if kind == "pairs":
        x = x[: n // 2].repeat(2, 1)
    unit = x / x.norm(dim=1, keepdim=True)
    cover = unit @ unit.T
    return torch.cat([cover, torch.rand(n, 40, generator=g)], dim=1) if kind == "words" else cover


@pytest.mark.large
@pytest.mark.parametrize("turned", [2**25, 0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["heaps", "noise", "pairs", "words"])
def test_lazy_steps_choose_what_the_loop_over_all_does(kind, weighted, turned, monkeypatch):
    """The same sums in the same order, so that not even near-ties differ."""
    if ops.provider("greedy_coverage", torch.zeros(1)) == "triton":
        pytest.skip("it adds up in another order")
    from vtc.kernels.greedy_coverage import lazy

    cover = cosines_of(kind, 400)
    weight = torch.rand(400, generator=torch.Generator().manual_seed(1)) if weighted else None
    covered, chosen = torch.zeros(cover.shape[1]), []
    for _ in range(80):
        score = lazy.gains(cover, covered, weight)
        score[chosen] = -1.0
        chosen.append(int(score.argmax()))
        covered = covered.maximum(cover[chosen[-1]])
    monkeypatch.setattr(lazy, "SMALL", 0)
    monkeypatch.setattr(lazy, "TURNED", turned)
    monkeypatch.setattr(lazy, "IN_CACHE", 5000)
    looked = []
    plain = lazy.gains
    monkeypatch.setattr(lazy, "gains", lambda *args: looked.append(len(args[0])) or plain(*args))
    found = ops.greedy_coverage(cover[None], 80, None if weight is None else weight[None])[0].tolist()
    assert found == chosen
    assert sum(looked) <= 80 * 400 / 5  # and works a fifth of the gains out, or fewer
    looked.clear()
    monkeypatch.setattr(lazy, "SMALL", 2**20)
    found = ops.greedy_coverage(cover[None], 80, None if weight is None else weight[None])[0].tolist()
    assert found == chosen
    assert looked == 80 * [400]  # where that is sooner done


@pytest.mark.large
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_lazily_and_step_by_step(weighted, ragged):
    """What a CPU does, and what a GPU does where Triton cannot run."""
    from vtc.kernels.greedy_coverage import lazy, reference

    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 90, 8, generator=g), torch.rand(3, 90, generator=g)
    x[0, 5], weight[1, 7] = float("nan"), float("nan")
    lengths = torch.tensor([90, 30, 9]) if ragged else None
    cover = x @ x.mT
    if ragged:
        cover[1, :, 30:] = cover[2, :, 9:] = 0
    rest = 12, weight if weighted else None, lengths
    assert torch.equal(lazy.greedy_coverage(cover, *rest), reference.step_by_step(cover, *rest))


def test_refusals():
    with pytest.raises(ValueError, match=r"k=5 of 4 tokens: choose at least 1 and at most all\.$"):
        ops.greedy_coverage(torch.zeros(1, 4, 4), 5)
    with pytest.raises(ValueError, match=r"weight has shape \(1, 3\); expected one number per token, \(1, 4\)\.$"):
        ops.greedy_coverage(torch.zeros(1, 4, 4), 2, torch.ones(1, 3))
