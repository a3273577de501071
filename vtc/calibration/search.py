"""Search of a box of numbers for the largest value of something that is dear to measure.

The first points are a Sobol sequence; each later one is where a Gaussian process, fitted to all values so far, expects
the largest improvement on the best of them. The process has a Matérn 5/2 covariance of one length in the unit cube and
noise, both taken from a small grid by the likelihood of the values. Everything is a function of the seed and of the
values so far, so that a search that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

STARTS = 27  # Sobol points, as the released code of VFlowOpt begins; fewer of short searches
_LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
_NOISES = (1e-4, 1e-2, 1e-1)
_CANDIDATES, _NEAR, _STEP = 2048, 512, 0.05  # Sobol points, points around the best one, and how far these are from it

Box = Mapping[str, tuple[float, float]]
Point = dict[str, float]


def starts_of(trials: int) -> int:
    """How many of so many points are those of the sequence."""
    return min(STARTS, math.ceil(0.45 * trials))


def proposed(box: Box, points: Sequence[Point], values: Sequence[float], trials: int, seed: int) -> Point:
    """The point to measure after `points`, whose values are known: the one that the search began with, and others, of
    which there are to be `trials`."""
    number, sides = len(points), len(box)
    if number <= starts_of(trials):
        return _point(box, _sobol(sides, number, seed)[-1])
    x = torch.stack([_cube(box, point) for point in points])
    y = torch.tensor(values, dtype=torch.float64)
    best = x[int(y.argmax())]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    near = best + _STEP * torch.randn(_NEAR, sides, generator=generator, dtype=torch.float64)
    candidates = torch.cat([_sobol(sides, _CANDIDATES, seed + 1 + number), near.clamp(0, 1)])
    return _point(box, candidates[int(improvement(x, y, candidates).argmax())])


def improvement(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Expected improvement on max(y): x [n, d], y [n], at [m, d] -> [m], in standard deviations of y."""
    scale = y.std() if len(y) > 1 and y.std() > 0 else y.new_tensor(1.0)
    y = (y - y.mean()) / scale
    fits = [_fitted(x, y, length, noise) for length in _LENGTHS for noise in _NOISES]
    _, length, factor = max(fits, key=lambda fit: fit[0])
    cross = _covariance(x, at, length)  # [n, m]
    mean = cross.mT @ torch.cholesky_solve(y[:, None], factor)[:, 0]
    half = torch.linalg.solve_triangular(factor, cross, upper=False)
    deviation = (1 - half.square().sum(dim=0)).clamp(min=1e-12).sqrt()
    gain = (mean - y.max()) / deviation
    normal = torch.distributions.Normal(y.new_tensor(0.0), y.new_tensor(1.0))
    return deviation * (gain * normal.cdf(gain) + normal.log_prob(gain).exp())


def _fitted(x: Tensor, y: Tensor, length: float, noise: float) -> tuple[float, float, Tensor]:
    """Log likelihood of the values under a process, its length, and the Cholesky factor of its covariance."""
    covariance = _covariance(x, x, length) + noise * torch.eye(len(x), dtype=x.dtype)
    factor = torch.linalg.cholesky(covariance)
    solved = torch.cholesky_solve(y[:, None], factor)[:, 0]
    return float(-0.5 * y @ solved - factor.diagonal().log().sum()), length, factor


def _covariance(x: Tensor, z: Tensor, length: float) -> Tensor:
    """Matérn 5/2: [n, d], [m, d] -> [n, m]."""
    distance = 5**0.5 * torch.cdist(x, z) / length
    return (1 + distance + distance.square() / 3) * (-distance).exp()


def _sobol(sides: int, count: int, seed: int) -> Tensor:
    return SobolEngine(sides, scramble=True, seed=seed).draw(count, dtype=torch.float64)


def _cube(box: Box, point: Point) -> Tensor:
    """A point as one of the unit cube, those outside of the box on its border."""
    sides = [(point[name] - low) / (high - low) if high > low else 0.0 for name, (low, high) in box.items()]
    return torch.tensor(sides, dtype=torch.float64).clamp(0, 1)


def _point(box: Box, place: Tensor) -> Point:
    """Of the unit cube -> of the box, to six digits, which is what a file holds."""
    inside = zip(box.items(), place.tolist(), strict=True)
    return {name: float(f"{low + share * (high - low):.6g}") for (name, (low, high)), share in inside}
