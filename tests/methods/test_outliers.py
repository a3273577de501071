"""The Local Outlier Factor in one dimension, against its definition in loops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from vtc.methods.shared.outliers import count_outliers, outlier_factor


def factors(v: Sequence[float], k: int) -> list[float]:
    """Breunig et al. 2000, with exactly k neighbours; 1e-10 keeps equal values finite."""
    everyone = range(len(v))
    near = [sorted((j for j in everyone if j != i), key=lambda j: abs(v[i] - v[j]))[:k] for i in everyone]
    far = [abs(v[i] - v[near[i][-1]]) for i in everyone]
    density = [1 / (sum(max(far[j], abs(v[i] - v[j])) for j in near[i]) / k + 1e-10) for i in everyone]
    return [sum(density[j] for j in near[i]) / k / density[i] for i in everyone]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 2), (21, 20), (60, 20), (60, 10), (97, 3)])
def test_against_the_definition(n: int, k: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = torch.rand(n, generator=g, dtype=torch.float64) ** (1 + seed)  # more and more skewed
    expected = factors(values.tolist(), k)
    torch.testing.assert_close(outlier_factor(values, k), torch.tensor(expected, dtype=torch.float64))
    assert count_outliers(values, k) == sum(factor > 1.5 for factor in expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("equal", [3, 20, 21, 45])
def test_many_equal_values_hide_nobody_nearer(equal: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = torch.cat([torch.full((equal,), 0.3 * (seed % 3)), torch.rand(40, generator=g)]).double()
    expected = torch.tensor(factors(values.tolist(), 20), dtype=torch.float64)
    torch.testing.assert_close(outlier_factor(values, 20), expected)


def test_the_example_of_its_docstring() -> None:
    factor = outlier_factor(torch.tensor([10.0, 1.0, 3.0, 2.0]), 2).tolist()
    assert [round(x, 3) for x in factor] == [4.375, 0.875, 0.875, 1.333]


def test_both_ends_count() -> None:
    middle = torch.linspace(0, 1, 50)
    assert count_outliers(middle, 10) == 0
    assert count_outliers(torch.cat([middle, torch.tensor([-5.0, 9.0])]), 10) == 2


def test_equal_values_are_no_outliers_but_what_lies_beside_them_is() -> None:
    assert count_outliers(torch.full((40,), 0.25), 20) == 0
    assert count_outliers(torch.tensor([0.25] * 39 + [0.26]), 20) == 1


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [float("nan")] * 3])
def test_too_few_to_tell(values: list[float]) -> None:
    assert count_outliers(torch.tensor(values), 20) == 0


def test_what_is_no_number_counts_as_nothing() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0)) ** 4
    broken = torch.cat([values[:20], torch.tensor([float("nan"), float("inf")]), values[20:]])
    assert count_outliers(broken, 10) == count_outliers(values, 10) > 0


def test_the_scale_does_not_matter() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(1)).mul(2).exp()
    assert count_outliers(values, 20) == count_outliers(values * 1e-3, 20) == count_outliers(-values, 20) > 0
