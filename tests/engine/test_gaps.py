"""A block of tokens that see each other, with words in its gaps: Molmo 2's pictures of one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import vtc
from tests.engine.test_oracle_inside import equal_to_oracle
from tests.families import batch, model_of
from vtc.engine.sight import _apart

LATE = pytest.mark.skipif("molmo2" not in vtc.list_families(), reason="newer than this transformers")


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("seed", range(8))
def test_every_query_sees_a_range(seed: int, past: int) -> None:
    """What came before it, and, in the block, all of it: asked pair by pair."""
    block = torch.rand(4, 12, generator=torch.Generator().manual_seed(seed)) > 0.5
    block[0], block[1, :4], block[1, 8:] = False, False, False
    found = _apart(block, past)
    assert found.first is not None
    assert found.last is not None
    assert found.place is not None
    for row in range(4):
        assert sorted(found.place[row].tolist()) == list(range(past + 12))
        for q in range(12):
            bounds = range(int(found.first[row, q]), int(found.last[row, q]) + 1)
            for key in range(past + 12):
                k = key - past
                sees = k <= q or (bool(block[row, q]) and bool(block[row, k]))
                assert (int(found.place[row, key]) in bounds) == sees


@dataclass(frozen=True, kw_only=True)
class Probe(vtc.LayerMethod):
    """Reads what visual tokens give each other."""

    layers: tuple[int | float, ...] = (1,)
    needs = ("visual_attention",)
    seen: ClassVar[list[torch.Tensor]] = []

    def score(self, tokens: Any) -> torch.Tensor:
        self.seen.append(tokens.signal("visual_attention").clone())
        return torch.zeros(len(tokens.features))


@LATE
@pytest.mark.parametrize("rows", [[[0, 1]], [[0], [1, 2], []]])
def test_signals_are_the_eager_attention(rows: Any) -> None:
    inputs = batch("molmo2", rows)
    Probe.seen.clear()
    with torch.no_grad():
        weights = model_of("molmo2", "eager")(**inputs, output_attentions=True).attentions[1].mean(dim=1)  # [B, L, L]
        model = model_of("molmo2")
        with vtc.wrapped(model, Probe(keep=0.5)):
            model(**inputs)
            spans = model._vtc_engine.trace.spans
    assert len(Probe.seen) == len(spans) == sum(map(len, rows))
    for span, ours in zip(spans, Probe.seen, strict=True):
        own = weights[span.row][span.index]
        torch.testing.assert_close(ours, own[:, span.index].mean(dim=0), atol=1e-6, rtol=1e-4)
        later = [x for other in spans if other.row == span.row and other.index[0] > span.index[-1] for x in other.index]
        assert not later or float(own[:, later].min()) > 0  # pictures that follow are seen, too


@LATE
@pytest.mark.parametrize(
    "method", ["fastv(keep=0.3, layers=(1,))", "pyramiddrop(keep=0.2, layers=(1, 2))", "h2o(keep=0.4)"]
)
@pytest.mark.parametrize("rows", [[[0, 1], [2]], [["v0"], ["v1"]]])
def test_pictures_and_frames_go_on_seeing_each_other(rows: Any, method: str) -> None:
    equal_to_oracle("molmo2", method, (rows, "left"))
