"""`greedy_suppression`: by weight, what is like a chosen one last, against loops over single numbers."""

import math

import pytest
import torch

from vtc import ops

pytestmark = pytest.mark.core


def define(x, weight, threshold, group=None):
    """(all tokens in order, how many are like none before)."""
    rows = [row if all(map(math.isfinite, row)) else [0.0] * len(row) for row in x.double().tolist()]
    weights = [w if w == w else -math.inf for w in weight.double().tolist()]
    numbers = [math.isnan(w) for w in weight.tolist()]
    group = [0] * len(rows) if group is None else group.tolist()
    apart, passed = [], []
    for i in sorted(range(len(rows)), key=lambda i: (-weights[i], numbers[i], i)):
        for j in apart:
            norms = math.hypot(*rows[i]) * math.hypot(*rows[j])
            dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
            if group[i] == group[j] and (dot / norms if norms else 0.0) > threshold:
                passed.append(i)
                break
        else:
            apart.append(i)
    return apart + passed, len(apart)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3, 0.9, 2.0])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_against_the_definition(n, threshold, grouped):
    g = torch.Generator().manual_seed(n)
    x, weight, group = (
        torch.randn(2, n, 4, generator=g),
        torch.randn(2, n, generator=g),
        torch.arange(n).expand(2, n) % 3,
    )
    for k in {1, max(1, n // 3), n}:
        chosen, apart = ops.greedy_suppression(x, k, weight, threshold, group if grouped else None)
        for i in range(2):
            order, free = define(x[i], weight[i], threshold, group[i] if grouped else None)
            assert chosen[i].tolist() == order[:k]
            assert int(apart[i]) == min(k, free)


def test_more_than_are_compared_at_once():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(300, 3, generator=g), torch.rand(300, generator=g)
    for threshold in (0.9, 0.995):
        order, free = define(x, weight, threshold)
        chosen, apart = ops.greedy_suppression(x[None], 300, weight[None], threshold)
        assert (chosen[0].tolist(), int(apart[0])) == (order, free)


def test_each_picture_has_its_threshold():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]).expand(2, 3, 2)
    weight = torch.tensor([3.0, 2.0, 1.0]).expand(2, 3)
    chosen, apart = ops.greedy_suppression(x, 3, weight, torch.tensor([0.5, 1.0]))
    assert chosen.tolist() == [[0, 2, 1], [0, 1, 2]]
    assert apart.tolist() == [2, 3]


def test_equal_rows_are_chosen_from_the_lowest_index():
    chosen, apart = ops.greedy_suppression(torch.ones(1, 30, 3), 30, torch.ones(1, 30), 0.5)
    assert (chosen[0].tolist(), int(apart[0])) == (list(range(30)), 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number(value):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(20, 3, generator=g), torch.rand(20, generator=g)
    x[[3, 8], 1] = value
    weight[[2, 8]] = value
    order, free = define(x, weight, 0.2)
    chosen, apart = ops.greedy_suppression(x[None], 20, weight[None], 0.2)
    assert (chosen[0].tolist(), int(apart[0])) == (order, free)


@pytest.mark.parametrize("value", [0.0, -float("inf")])
def test_unequal_lengths_are_as_each_alone(value):
    """Whatever the weights behind a picture's own length, and those of its own tokens."""
    g = torch.Generator().manual_seed(0)
    batch, weight = torch.full((3, 50, 4), float("nan")), torch.full((3, 50), 9.0)
    sizes = [30, 50, 7]
    for row, own, n in zip(batch, weight, sizes, strict=True):
        row[:n], own[:n] = torch.randn(n, 4, generator=g), torch.rand(n, generator=g)
        own[n // 2] = value
    chosen, apart = ops.greedy_suppression(batch, 40, weight, 0.3, None, torch.tensor(sizes))
    for i, n in enumerate(sizes):
        order, free = define(batch[i, :n], weight[i, :n], 0.3)
        assert chosen[i].tolist() == [*order, *range(n, 50)][:40]
        assert int(apart[i]) == min(free, 40)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_fp32(dtype):
    g = torch.Generator().manual_seed(1)
    x, weight = torch.randn(1, 63, 4, generator=g).to(dtype), torch.rand(1, 63, generator=g)
    for one, other in zip(
        ops.greedy_suppression(x, 20, weight, 0.4), ops.greedy_suppression(x.float(), 20, weight, 0.4), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.large
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_lazily_and_step_by_step(grouped, ragged):
    """What a CPU does, and what a GPU does where Triton cannot run."""
    from vtc.kernels.greedy_suppression import lazy, reference

    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 90, 4, generator=g), torch.rand(3, 90, generator=g)
    x[0, 5], weight[1, 7] = float("nan"), float("nan")
    group = torch.arange(90).expand(3, 90) % 4 if grouped else None
    rest = 40, weight, torch.tensor([0.2, 0.5, -0.1]), group, torch.tensor([90, 50, 9]) if ragged else None
    for one, other in zip(lazy.greedy_suppression(x, *rest), reference.step_by_step(x, *rest), strict=True):
        assert torch.equal(one, other)


def test_refusals():
    with pytest.raises(ValueError, match=r"k=0 of 4 tokens: choose at least 1 and at most all\.$"):
        ops.greedy_suppression(torch.zeros(1, 4, 4), 0, torch.zeros(1, 4), 0.5)
    with pytest.raises(ValueError, match=r"weight has shape \(1, 5\); expected one number per token, \(1, 4\)\.$"):
        ops.greedy_suppression(torch.zeros(1, 4, 4), 2, torch.zeros(1, 5), 0.5)
