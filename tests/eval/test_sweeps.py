"""The sweeps of the checkout: each can be asked for, and what their files hold is of the models that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vtc
from vtc.calibration.pairs import read_pairs
from vtc.eval import datasets
from vtc.eval.settings import from_file
from vtc.methods.base.calibrated import CalibratedMethod
from vtc.models.fingerprint import fingerprint_of

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ROOT / "eval" / "sweeps"
PAIRS = SWEEPS / "crops-pairs.jsonl"
CALIBRATIONS = sorted(SWEEPS.glob("crops-*.json"))


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_method_of_a_sweep_can_be_made(file, monkeypatch):
    monkeypatch.chdir(ROOT)  # where make is run
    settings = from_file(file)
    data = datasets.load(settings.data)
    for spec in settings.specs(data.kinds, data.model):
        if spec.wraps:
            assert spec.methods()[-1].keep == spec.keep
    assert settings.limit is None or settings.limit <= len(data.questions)


def test_calibrations_are_of_the_model_that_ships():
    """At each budget of the sweep, on pictures that the sweep does not ask about."""
    settings = from_file(SWEEPS / "crops.toml")
    tested = {question.media.name for question in datasets.load(settings.data).first(settings.limit).questions}
    pairs = read_pairs(PAIRS, 30, 0)
    assert len(pairs.chosen) == 30
    assert not {Path(pair.known()[1]).name for pair in pairs.chosen} & {Path(name).name for name in tested}
    model, _ = vtc.load("tiny-next", device="cpu")
    own = fingerprint_of(model)
    budgets = []
    for file in CALIBRATIONS:
        method = vtc.resolve("vflowopt", calibration=str(file))
        assert isinstance(method, CalibratedMethod)
        card = json.loads(file.read_text())
        assert card["model"]["fingerprint"] == own
        assert card["settings"]["digest"] == pairs.digest()
        assert card["objective"]["after"] > card["objective"]["before"]
        budgets.append(method.keep)
    assert sorted(budgets) == sorted(settings.keep)
