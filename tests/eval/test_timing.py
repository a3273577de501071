"""Times of an evaluation, on a model that takes what a clock says: warm-ups do not count, and runs take turns."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import DynamicCache

from vtc.eval import timing
from vtc.eval.settings import Spec
from vtc.speedup import SpeedUp

FULL, BLIND = Spec("m", "full"), Spec("m", "blind")
FAST, SLOW, SMALL = Spec("m", "divprune", 64), Spec("m", "todre", 64), Spec("m", "downsample", 64)
SECONDS = {FULL: 0.4, FAST: 0.1, SLOW: 0.8, SMALL: 0.2}


class Answerer:
    """A model whose first run of a method on a question is slow, and which tires."""

    def __init__(self, clock):
        self.clock, self.calls, self.at_work, self.tired = clock, [], FULL, 1.0
        self.model = SimpleNamespace(device=torch.device("cpu"), generate=self.generate)

    def read(self, question):
        return question

    def shown(self, items, spec):
        return [(items, {"small": spec == SMALL})]

    def processed(self, items, options=None):
        return {"item": items[0].seen, "small": bool(options and options["small"])}

    @contextmanager
    def compressed(self, spec):
        self.at_work = spec
        yield

    def generate(self, item, small, max_new_tokens, stopping_criteria, **more):
        spec = self.at_work
        assert small == (spec == SMALL)
        cold = (spec, item) not in [call[:2] for call in self.calls]
        self.calls.append((spec, item, max_new_tokens))
        self.clock[0] += SECONDS[spec] * self.tired * (100 if cold else 1)
        self.tired *= 1.01
        for _ in range(max_new_tokens):
            stopping_criteria[0](torch.zeros(1, 1, dtype=torch.long), None)
            self.clock[0] += 0.01
        return {"past_key_values": DynamicCache()}


@pytest.fixture
def measured(monkeypatch):
    def measure(specs, samples):
        clock = [0.0]
        monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
        monkeypatch.setattr(timing, "peak_bytes", lambda run, device: run() and 7)
        answerer = Answerer(clock)
        return timing.measure(answerer, specs, range(samples), samples), answerer.calls  # type: ignore[arg-type]

    return measure


def test_warm_ups_do_not_count_and_what_tires_tires_all(measured):
    found, calls = measured([FULL, BLIND, FAST, SLOW, SMALL], 5)
    assert list(found) == [FULL, FAST, SLOW, SMALL]
    for spec, expected in ((FAST, 4), (SLOW, 0.5), (SMALL, 2)):
        speed = SpeedUp(**found[spec]["speedup"])
        assert speed.ratio == pytest.approx(expected, rel=0.05)
        assert speed.clear
        assert found[spec]["ttft_ms"] < 2000 * SECONDS[spec]  # 100 times that when cold
    assert found[FULL]["speedup"] is None
    assert found[FULL]["samples"] == 5
    assert found[FULL]["decode_tokens_per_s"] == pytest.approx(100)
    timed = [call[:2] for call in calls if call[2] > 1]
    assert timed[:8] == [*((s, 0) for s in (FULL, FAST, SLOW, SMALL)), *((s, 1) for s in (SMALL, SLOW, FAST, FULL))]
    for number, call in enumerate(timed):  # each was asked before
        first = calls.index((*call, 1))
        assert first < [i for i, other in enumerate(calls) if other[2] > 1][number]


def test_no_ratio_of_few_questions_or_without_the_uncompressed_run(measured):
    assert measured([FULL, FAST], 4)[0][FAST]["speedup"] is None
    assert measured([FAST], 5)[0][FAST]["speedup"] is None
    assert measured([FULL, FAST], 0)[0] == {}
