"""The search of a box: its Gaussian process by single numbers, and what it finds."""

from __future__ import annotations

import math

import pytest
import torch

from vtc.calibration.search import improvement, proposed, starts_of

BOX = {"a": (-2.0, 4.0), "b": (10.0, 11.0), "c": (0.0, 50.0)}


def hill(point):
    """1 at a = 1, b = 10.25, c = 40."""
    return math.exp(-((point["a"] - 1) ** 2) / 4 - 8 * (point["b"] - 10.25) ** 2 - ((point["c"] - 40) / 25) ** 2)


def searched(trials, seed, objective=hill, stop=None, known=()):
    points, values = [p for p, _ in known] or [{"a": 4.0, "b": 11.0, "c": 0.0}], [v for _, v in known]
    values = values or [objective(points[0])]
    while len(points) <= (stop or trials):
        points.append(proposed(BOX, points, values, trials, seed))
        values.append(objective(points[-1]))
    return list(zip(points, values, strict=True))


def test_every_point_is_in_the_box():
    for point, _ in searched(30, 0)[1:]:
        for name, (low, high) in BOX.items():
            assert low <= point[name] <= high
    assert list(point) == ["a", "b", "c"]


def test_a_stopped_search_goes_on_as_if_it_had_not_been():
    whole = searched(24, 3)
    for stop in (1, 9, 17):
        part = searched(24, 3, stop=stop)
        assert searched(24, 3, known=part) == whole
    assert searched(24, 4) != whole


@pytest.mark.parametrize("seed", range(3))
def test_it_comes_nearer_than_its_first_points(seed):
    found = searched(40, seed)
    first = max(value for _, value in found[: starts_of(40) + 1])
    best = max(value for _, value in found)
    assert best > 0.97
    assert best > first


def test_equal_values_and_single_sides_are_searched_too():
    assert len(searched(20, 0, objective=lambda point: 0.5)) == 21
    point = proposed({"a": (3.0, 3.0), "b": (0.0, 1.0)}, [{"a": 3.0, "b": 0.2}] * 9, [0.1 * i for i in range(9)], 9, 0)
    assert point["a"] == 3.0
    assert starts_of(1) == 1
    assert starts_of(1000) == 27


def test_expected_improvement_by_sampling():
    """The mean of max(0, f - best) over draws of f at a place, under the process of the values seen."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([0.1, 0.9, 0.4, 0.2, 0.7, 0.5], dtype=torch.float64)
    at = torch.rand(4, 2, generator=generator, dtype=torch.float64)
    told = improvement(x, y, at).tolist()

    def covariance(p, q, length):
        r = math.sqrt(5) * math.dist(p, q) / length
        return (1 + r + r * r / 3) * math.exp(-r)

    z = [(float(v) - float(y.mean())) / float(y.std()) for v in y]
    best = None
    for length in (0.1, 0.2, 0.4, 0.8, 1.6):
        for noise in (1e-4, 1e-2, 1e-1):
            k = [[covariance(p, q, length) + noise * (i == j) for j, q in enumerate(x.tolist())]
                 for i, p in enumerate(x.tolist())]  # fmt: skip
            k = torch.tensor(k, dtype=torch.float64)
            v = torch.tensor(z, dtype=torch.float64)
            likely = float(-0.5 * v @ k.inverse() @ v - 0.5 * torch.logdet(k))
            if best is None or likely > best[0]:
                best = (likely, length, k)
    assert best is not None
    for place, value in zip(at.tolist(), told, strict=True):
        cross = torch.tensor([covariance(p, place, best[1]) for p in x.tolist()], dtype=torch.float64)
        mean = float(cross @ best[2].inverse() @ torch.tensor(z, dtype=torch.float64))
        deviation = math.sqrt(1 - float(cross @ best[2].inverse() @ cross))
        draws = mean + deviation * torch.randn(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        assert value == pytest.approx(float((draws - max(z)).clamp(min=0).mean()), abs=0.01)
