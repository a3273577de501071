"""Search of a box of numbers for the largest value of something that is dear to measure.

The first points are a Sobol sequence; each later one is where a Gaussian process that is fitted to all values so far
(optuna's GPSampler) expects to gain most. Both are a function of the seed and of the values, so that a search that was
stopped goes on as if it had not been. docs/calibrate.md says what it finds, and what another estimator found.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch.quasirandom import SobolEngine

STARTS = 27  # Sobol points, as the released code of VFlowOpt begins; fewer of short searches

Box = Mapping[str, tuple[float, float]]
Point = dict[str, float]


def starts_of(trials: int) -> int:
    """How many of so many points are those of the sequence."""
    return min(STARTS, math.ceil(0.45 * trials))


def check_search() -> None:
    """ImportError with one sentence if what proposes points is missing."""
    _optuna()


def proposed(box: Box, points: Sequence[Point], values: Sequence[float], trials: int, seed: int) -> Point:
    """The point to measure after `points`, whose values are known: the one that the search began with, and others, of
    which there are to be `trials`."""
    number = len(points)
    if number <= starts_of(trials):
        place = SobolEngine(len(box), scramble=True, seed=seed).draw(number)[-1].tolist()
        inside = zip(box.items(), place, strict=True)
        return {name: _short(low + share * (high - low)) for (name, (low, high)), share in inside}
    optuna = _optuna()
    sides = {name: optuna.distributions.FloatDistribution(low, high) for name, (low, high) in box.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(
            n_startup_trials=0, deterministic_objective=True, seed=seed * 1_000_003 + number
        )
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for point, value in zip(points, values, strict=True):
        inside = {name: min(max(point[name], low), high) for name, (low, high) in box.items()}
        study.add_trial(optuna.trial.create_trial(params=inside, distributions=sides, value=value))
    with torch.inference_mode(False), torch.enable_grad():  # the process is fitted by gradients
        return {name: _short(value) for name, value in study.ask(sides).params.items()}


def _short(value: float) -> float:
    """To six digits, which is what a file holds."""
    return float(f"{value:.6g}")


def _optuna() -> Any:
    try:
        import_module("scipy")  # which optuna needs for its Gaussian process, and does not bring along
        optuna = import_module("optuna")
    except ImportError:
        raise ImportError("searching needs optuna and scipy: pip install 'vtc-vlm[calibrate]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
