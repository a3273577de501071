"""random: a seeded uniform draw that belongs to the picture."""

import pytest
import torch

import vtc
from tests.families import batch, model_of
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


# -- of the cache ------------------------------------------------------------------------------------------------------


def rows(seed=0, images=(0,), keep=10, **options):
    """Which of the picture's tokens each layer and head holds."""
    model = model_of("llava")
    with vtc.wrapped(model, "random-rows", keep=keep, seed=seed, **options):
        model(**batch("llava", [list(images)]), use_cache=True)
        (first, *_) = vtc.report(model).spans
    everything = set(range(first.tokens_in))
    if not options.get("per_head"):
        return [tuple(sorted(everything - set(lost.tolist()))) for lost in first.evicted.values()]
    return [tuple(selection.anchor.tolist()) for heads in first.held.values() for selection in heads]


@defines("random-rows", "seed")
def test_every_cached_token_has_the_same_chance():
    """Three layers hold 9 of 36 tokens, by 80 seeds: each token is expected 60 times, with standard deviation 6.7."""
    drawn = torch.zeros(36)
    for seed in range(80):
        for layer in rows(seed, keep=9):
            drawn[list(layer)] += 1
    assert drawn.sum() == 3 * 9 * 80
    assert (drawn - 60).abs().max() < 4.5 * 6.7


@defines("random-rows", "per_head")
@pytest.mark.parametrize("per_head", [False, True])
def test_layers_heads_pictures_and_seeds_draw_for_themselves(per_head):
    one, other, later = rows(per_head=per_head), rows(per_head=per_head, images=(1,)), rows(1, per_head=per_head)
    heads = model_of("llava").model.language_model.config.num_key_value_heads
    assert len({*one, *other, *later}) == 3 * 3 * (heads if per_head else 1)
    assert rows(per_head=per_head) == one


@defines("random-rows", "sinks")
@pytest.mark.parametrize("sinks", [0, 4])
def test_the_first_tokens_stay_where_text_is_drawn_from(sinks):
    model, inputs = model_of("llava"), batch("llava", [[0]])
    gone = 0
    for seed in range(10):
        with vtc.wrapped(model, "random-rows", keep=8, seed=seed, scope="all", sinks=sinks):
            cache = model(**inputs, use_cache=True).past_key_values
        gone += sum(len({0, 1, 2, 3} - set(layer.tags["slot"][0].tolist())) for layer in cache.layers)
    assert (gone == 0) == (sinks == 4)
