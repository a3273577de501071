"""random: a seeded uniform draw that belongs to the picture."""

import torch

import vtc
from tests.methods.definitions import defines


def kept(x, **options):
    return vtc.select(vtc.Random(**options), x).anchor.tolist()


def test_another_seed_draws_another_subset():
    x = torch.randn(100, 4)
    assert len({tuple(kept(x, keep=10, seed=s)) for s in range(20)}) == 20


def test_another_picture_gets_another_subset():
    pictures = [torch.randn(100, 4, generator=torch.Generator().manual_seed(s)) for s in range(20)]
    assert len({tuple(kept(x, keep=10)) for x in pictures}) == 20


@defines("random", "seed")
def test_every_token_has_the_same_chance():
    """1000 draws of 5 of 20: each token is expected 250 times, with standard deviation 13.7."""
    x = torch.randn(20, 4)
    drawn = torch.zeros(20)
    for seed in range(1000):
        drawn[kept(x, keep=5, seed=seed)] += 1
    assert drawn.sum() == 5000
    assert (drawn - 250).abs().max() < 5 * 13.7


@defines("random")
def test_every_pair_has_the_same_chance():
    """Of 6 tokens 2 are kept: 15 pairs, 100 times each in 1500 draws, with standard deviation 9.7."""
    x = torch.randn(6, 4)
    pairs = [tuple(kept(x, keep=2, seed=seed)) for seed in range(1500)]
    counts = [pairs.count((i, j)) for i in range(6) for j in range(i + 1, 6)]
    assert sum(counts) == 1500
    assert max(abs(count - 100) for count in counts) < 5 * 9.7


def test_a_larger_budget_contains_the_smaller_one():
    x = torch.randn(50, 4)
    assert set(kept(x, keep=5)) < set(kept(x, keep=20))


def test_scaling_or_the_global_generator_change_nothing():
    x = torch.randn(50, 4)
    first = kept(x, keep=5)
    torch.manual_seed(123)
    assert kept(2 * x, keep=5) == first


def test_the_draw_is_the_same_in_every_process():
    """The numbers were drawn once: a seed that depended on the process or the platform would give others."""
    assert kept(torch.eye(30), keep=4, seed=3) == [10, 16, 23, 25]
