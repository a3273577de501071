"""The definition of `pixelprune`, block by block, in plain numbers."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch

import vtc
from tests.methods.definitions import defines

Block = list[float]


def apart(a: Block, b: Block, metric: str = "max") -> float:
    differences = [abs(p - q) for p, q in zip(a, b, strict=True)]
    if metric == "max":
        return max(differences)
    if metric == "mae":
        return sum(differences) / len(differences)
    return (sum(d * d for d in differences) / len(differences)) ** 0.5


def told_from(shown: list[list[Block]], y: int, x: int, near) -> Block:
    """The prediction of block (y, x) from what is shown at the places before it: LOCO-I's edge rule."""
    if y == 0:
        return shown[0][x - 1]
    if x == 0:
        return shown[y - 1][0]
    a, b, c = shown[y][x - 1], shown[y - 1][x], shown[y - 1][x - 1]
    return b if near(c, a) and not near(c, b) else a


def under_threshold(picture: list[list[Block]], tau: float, metric: str) -> list[int]:
    """Places of what stays: in raster order, each block against what a decoder shows before it."""
    w = len(picture[0])
    shown = [list(row) for row in picture]
    kept = []
    for y, x in itertools.product(range(len(picture)), range(w)):
        if (y, x) != (0, 0):
            guess = told_from(shown, y, x, lambda p, q: apart(p, q, metric) <= tau)
            if apart(picture[y][x], guess, metric) <= tau:
                shown[y][x] = guess
                continue
        kept.append(y * w + x)
    assert all(
        apart(a, b, metric) <= tau for r, s in zip(picture, shown, strict=True) for a, b in zip(r, s, strict=True)
    )
    return kept


def worst(picture: list[list[Block]], few: int, metric: str) -> list[int]:
    """Places of the `few` blocks with the largest errors of prediction from the picture itself; of equals the first."""
    w = len(picture[0])
    errors = {}
    for y, x in itertools.product(range(len(picture)), range(w)):
        guess = told_from(picture, y, x, lambda p, q: p == q) if (y, x) != (0, 0) else None
        errors[y * w + x] = float("inf") if guess is None else apart(picture[y][x], guess, metric)
    return sorted(sorted(errors, key=lambda i: (-errors[i], i))[:few])


def screens(h: int, w: int, seed: int, colors: int = 3) -> list[list[Block]]:
    """A picture of few colours, so that repeats and edges in both directions are many; sixteenths are exact in fp32."""
    draw = random.Random(seed)
    palette = [[draw.randint(0, 16) / 16 for _ in range(4)] for _ in range(colors)]
    rows = [[palette[draw.randrange(colors)] for _ in range(w)] for _ in range(h)]
    for y, x in itertools.product(range(1, h), range(w)):  # bands and columns
        if draw.random() < 0.6:
            rows[y][x] = rows[y - 1][x]
    return rows


def asked(picture, **options) -> list[int]:
    h, w = len(picture), len(picture[0])
    pixels = torch.tensor([block for row in picture for block in row])
    return vtc.select(vtc.PixelPrune(**options), pixels, grid=(1, h, w)).anchor.tolist()


SIZES = [(1, 1), (1, 7), (6, 1), (2, 2), (5, 7), (8, 4)]


@defines("pixelprune", "tau", "metric")
@pytest.mark.parametrize("metric", ["max", "mae", "rmse"])
@pytest.mark.parametrize("tau", [0.0, 0.13, 0.3, 1.0])
def test_definition_of_the_threshold(tau, metric):
    for (h, w), seed in itertools.product(SIZES, range(3)):
        picture = screens(h, w, seed, colors=3 if tau == 0 else 12)
        assert asked(picture, tau=tau, metric=metric) == under_threshold(picture, tau, metric)


@defines("pixelprune", "metric")
@pytest.mark.parametrize("metric", ["max", "mae", "rmse"])
def test_definition_of_the_budget(metric):
    for (h, w), seed in itertools.product(SIZES, range(2)):
        picture = screens(h, w, seed, colors=6)
        for few in {1, 2, h * w // 2 or 1, h * w}:
            assert asked(picture, keep=few, metric=metric) == worst(picture, few, metric)


def test_a_budget_lets_exact_repeats_go_first():
    for seed in range(5):
        picture = screens(6, 5, seed)
        exact = asked(picture)
        assert asked(picture, keep=len(exact)) == exact
        assert set(asked(picture, keep=len(exact) + 3)) > set(exact)


def test_time_steps_of_a_video_are_pictures_for_themselves():
    steps = [screens(3, 4, seed) for seed in (0, 1, 1)]
    pixels = torch.tensor([block for step in steps for row in step for block in row])
    expected = [12 * i + place for i, step in enumerate(steps) for place in under_threshold(step, 0.0, "max")]
    assert vtc.select("pixelprune", pixels, grid=(3, 3, 4)).anchor.tolist() == expected


def test_a_threshold_of_none_leaves_everything():
    same = [[[0.5]] * 3] * 2
    assert asked(same) == [0]
    assert asked(same, tau=None) == list(range(6))


def test_counts_are_the_users_or_the_pictures():
    assert vtc.PixelPrune(keep=0.5).exact_count
    assert vtc.PixelPrune(tau=None).exact_count
    assert not vtc.PixelPrune().exact_count


@pytest.mark.parametrize("method", [vtc.PixelPrune(), vtc.PixelPrune(tau=0.05, metric="mae"), vtc.FrameDedupe(keep=9)])
def test_written_down_and_read_again(method):
    assert vtc.resolve(str(method)) == method
    assert vtc.Method.from_dict(json.loads(json.dumps(method.as_dict()))) == method


@pytest.mark.parametrize("name", ["pixelprune", "framededupe"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tau": -0.1}, r"^tau=-0\.1 is not a number in \[0, 1\]: it is a difference of pixels in \[0, 1\]"),
        ({"tau": 2}, r"^tau=2 is not a number in \[0, 1\]"),
        ({"tau": True}, r"^tau=True is not a number"),
        ({"tau": 0.1, "keep": 0.5}, r"^tau=0\.1 and keep=0\.5 of \w+ both say how much stays: give one of them\.$"),
        ({"tau": 0.1, "keep": 1}, r"^tau=0\.1 and keep=1 of"),
        ({"metric": "ssim"}, r"^metric='ssim' is not one of max, mae, rmse\.$"),
        ({"keep": 0}, r"^keep=0 is not a whole number of 1 or more"),
        ({"positions": "compact"}, r"cannot renumber: every block stays where it was in the picture; use positions="),
        ({"scope": "frame"}, r"^scope='frame' is not one of clip\.$"),
    ],
)
def test_what_means_nothing_is_refused(name, options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        vtc.resolve(name, **options)


def test_a_method_of_ones_own_has_to_say_its_errors():
    class Silent(vtc.PatchMethod):
        pass

    with pytest.raises(TypeError, match=r"^Silent defines no errors\(pixels\): a PatchMethod needs one\.$"):
        Silent(keep=1).select(vtc.VisualTokens(torch.zeros(2, 3), _line(2), torch.arange(2), lambda _: torch.empty(0)))
    with pytest.raises(ValueError, match=r"works on the grid: pass grid=\(t, h, w\)"):
        vtc.select("pixelprune", torch.zeros(4, 3))


def _line(n):
    from vtc.layout import single_span

    return single_span(n, (1, 1, n))
