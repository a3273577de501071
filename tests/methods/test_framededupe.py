"""The definition of `framededupe`, block by block, in plain numbers."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.test_pixelprune import apart, screens, told_from, under_threshold

GRIDS = [(2, 1, 1), (3, 2, 4), (5, 3, 3)]


def clip(t: int, h: int, w: int, seed: int, step: float = 0.0):
    """Time steps [t][h * w] of blocks: most places stay as they were, some change, some drift by `step`."""
    draw = random.Random(seed)
    steps = [[block for row in screens(h, w, seed) for block in row]]
    for _ in range(t - 1):
        now = []
        for block in steps[-1]:
            kind = draw.random()
            if kind < 0.5:
                now.append(list(block))
            elif kind < 0.75:
                now.append([min(1.0, value + step) for value in block])
            else:
                now.append([draw.randint(0, 16) / 16 for _ in block])
        steps.append(now)
    return steps


def as_rows(step, w):
    return [step[i : i + w] for i in range(0, len(step), w)]


def asked(steps, grid, **options):
    pixels = torch.tensor([block for step in steps for block in step])
    return vtc.select(vtc.FrameDedupe(**options), pixels, grid=grid).anchor.tolist()


@defines("framededupe", "tau", "metric", "first")
@pytest.mark.parametrize("first", ["whole", "coded"])
@pytest.mark.parametrize("metric", ["max", "mae", "rmse"])
@pytest.mark.parametrize("tau", [0.0, 0.13, 0.3])
def test_definition_of_the_threshold(tau, metric, first):
    for grid, seed in itertools.product(GRIDS, range(3)):
        steps, size = clip(*grid, seed, step=1 / 16), grid[1] * grid[2]
        kept = list(range(size))
        if first == "coded":
            kept = under_threshold(as_rows(steps[0], grid[2]), tau, metric)
        shown = list(steps[0])
        for number, step in enumerate(steps[1:], start=1):
            for place, block in enumerate(step):
                if apart(block, shown[place], metric) > tau:
                    kept.append(number * size + place)
                    shown[place] = block
        assert asked(steps, grid, tau=tau, metric=metric, first=first) == kept


@defines("framededupe", "metric", "first")
@pytest.mark.parametrize("first", ["whole", "coded"])
@pytest.mark.parametrize("metric", ["max", "mae", "rmse"])
def test_definition_of_the_budget(metric, first):
    for grid, seed in itertools.product(GRIDS, range(2)):
        steps, size = clip(*grid, seed, step=1 / 16), grid[1] * grid[2]
        errors = {}
        for place in range(size):
            y, x = divmod(place, grid[2])
            guess = told_from(as_rows(steps[0], grid[2]), y, x, lambda p, q: p == q) if place else None
            errors[place] = float("inf") if guess is None else apart(steps[0][place], guess, metric)
        for number, place in itertools.product(range(1, grid[0]), range(size)):
            errors[number * size + place] = apart(steps[number][place], steps[number - 1][place], metric)

        def order(i: int):
            behind = first == "whole" and i >= size  # noqa: B023
            return (behind, -errors[i], i)  # noqa: B023

        for few in {1, size // 2 or 1, size, size + 2, grid[0] * size}:
            few = min(few, grid[0] * size)
            assert asked(steps, grid, keep=few, metric=metric, first=first) == sorted(sorted(errors, key=order)[:few])


def test_pictures_stay_as_they_are():
    pixels = torch.full((6, 3), 0.5)
    for method in (vtc.FrameDedupe(), vtc.FrameDedupe(keep=2), vtc.FrameDedupe(keep=2, first="coded")):
        assert vtc.select(method, pixels, grid=(1, 2, 3)).anchor.tolist() == list(range(6))


def test_the_first_step_is_whole_or_coded():
    with pytest.raises(ValueError, match=r"^first='half' is not one of whole, coded\.$"):
        vtc.FrameDedupe(first="half")
