"""The search of a box: what it proposes, and what it finds."""

from __future__ import annotations

import math
import sys

import pytest

from vtc.calibration.search import check_search, proposed, starts_of

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
    for point, _ in searched(12, 0)[1:]:
        for name, (low, high) in BOX.items():
            assert low <= point[name] <= high
    assert list(point) == ["a", "b", "c"]


def test_a_stopped_search_goes_on_as_if_it_had_not_been():
    whole = searched(9, 3)
    for stop in (1, 6):
        part = searched(9, 3, stop=stop)
        assert searched(9, 3, known=part) == whole
    assert searched(9, 4, stop=1) != whole[:2]


@pytest.mark.parametrize("seed", range(2))
def test_it_comes_nearer_than_its_first_points(seed):
    found = searched(16, seed)
    first = max(value for _, value in found[: starts_of(16) + 1])
    best = max(value for _, value in found)
    assert best > 0.99
    assert best > first


def test_equal_values_and_single_sides_are_searched_too():
    assert len(searched(8, 0, objective=lambda point: 0.5)) == 9
    point = proposed({"a": (3.0, 3.0), "b": (0.0, 1.0)}, [{"a": 3.0, "b": 0.2}] * 9, [0.1 * i for i in range(9)], 9, 0)
    assert point["a"] == 3.0
    assert starts_of(1) == 1
    assert starts_of(1000) == 27


@pytest.mark.parametrize("missing", ["optuna", "scipy"])
def test_without_what_proposes_points(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"searching needs optuna and scipy: pip install 'vtc-vlm\[calibrate\]'"):
        check_search()
