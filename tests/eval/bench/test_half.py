"""DivPrune in half precision: the released rule, and the table of overlaps."""

from __future__ import annotations

import sys

import pytest
import torch

import vtc
from vtc.eval.bench import half


@pytest.mark.parametrize("kind", half.KINDS)
def test_in_fp32_the_released_rule_is_ours(kind):
    x = half.features(kind, 60, 32, seed=0)
    assert half.released(x, 12) == vtc.select(vtc.DivPrune(keep=12, order="selection"), x).anchor.tolist()


def test_the_released_rule_repeats_duplicates():
    """Worked: 1 and 2 are alike, so 0 is the most isolated, then comes 1; all distances to the two are 0 by then."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert half.released(x, 4) == [0, 1, 0, 0]
    assert half.released(x.bfloat16(), 4) == [0, 1, 0, 0]


def test_overlap():
    assert half.overlap([0, 1, 2, 2], [2, 1, 3]) == 0.5


def test_structured_tokens_are_alike():
    x = half.features("structured", 200, 4096, seed=0)
    unit = x / x.norm(dim=1, keepdim=True)
    similar = (unit @ unit.T).fill_diagonal_(0).sum() / (200 * 199)
    assert float(similar) == pytest.approx(0.6, abs=0.03)
    assert float(half.features("random", 200, 64, seed=0).std()) == pytest.approx(1, abs=0.03)


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr(half, "CASES", ((40, 9),))
    monkeypatch.setattr(sys, "argv", ["half", "--width", "64", "--seeds", "2"])
    half.main()
    head, line, *rows = capsys.readouterr().out.splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns[3:] == [f"{rule}, {dtype}" for rule, dtype in half.COLUMNS]
    assert line.count("|") == head.count("|")
    assert [row.split("|")[1].strip() for row in rows] == list(half.KINDS)
    for row in rows:
        cells = dict(zip(columns, [cell.strip() for cell in row.strip("|").split("|")], strict=True))
        assert cells["released, float32"] == "1.00 (1.00–1.00)"
        assert 0 < float(cells["released, bfloat16"].split()[0]) <= 1
