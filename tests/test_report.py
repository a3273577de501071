"""Report.at: what each decoder layer holds of a picture, for methods before, inside and in the cache. Stopwatch."""

from __future__ import annotations

import time

import pytest
import torch

import vtc
from tests.families import batch, model_of
from vtc.reports import Stopwatch


def ran(method: str | vtc.Method | list, family: str = "llava", rows=((0,), (1, 2)), **options) -> vtc.Report:
    model = model_of(family)
    with vtc.wrapped(model, method, **options):
        model.generate(**batch(family, rows), max_new_tokens=3, do_sample=False)
        return vtc.report(model)


def held(report: vtc.Report) -> list[int]:
    """Visual tokens that each layer holds, by `at`."""
    return [sum(span.tokens_out for span in report.at(layer)) for layer in range(len(report.tokens_by_layer))]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_next"])
@pytest.mark.parametrize("method", ["divprune", "fastv", "pyramiddrop", "sparsevlm"])
def test_layers_hold_what_they_see(family, method):
    report = ran(method, family, keep=0.25)
    assert held(report) == report.tokens_by_layer
    last = report.at(len(report.tokens_by_layer) - 1)
    for span, end in zip(report.spans, last, strict=True):
        assert end.kept.equal(span.kept)
        assert end.source.equal(span.source)


def test_tokens_leave_and_none_comes_back():
    report = ran(vtc.PyramidDrop(layers=(1, 2), keeps=(12, 5)))
    first, second, third = (set(report.at(layer)[0].kept.tolist()) for layer in range(3))
    assert len(first) == report.spans[0].tokens_in
    assert (len(second), len(third)) == (12, 5)
    assert third < second < first


def test_a_cache_loses_tokens_layer_by_layer():
    report = ran("h2o", keep=6)
    assert set(report.tokens_by_layer) == {sum(span.tokens_in for span in report.spans)}  # the layers saw all of them
    assert held(report) == [6 * len(report.spans)] * 3
    kept = [report.at(layer)[0].kept.tolist() for layer in range(3)]
    assert kept[0] != kept[1] or kept[1] != kept[2]  # each layer has heavy hitters of its own
    for layer in range(3):
        span = report.at(layer)[0]
        assert torch.equal(span.source[span.kept], torch.arange(6))


def test_evictions_while_decoding_are_not_the_prefills():
    once, often = ran("h2o", keep=6), ran(vtc.H2O(keep=6, every=1))
    assert held(often) == held(once)


def test_before_inside_and_in_the_cache():
    report = ran([vtc.VTCCLS(keep=16), vtc.FastV(keep=8), vtc.Streaming(keep=3)], rows=((0,),))
    assert held(report) == [3, 3, 3]
    assert report.tokens_by_layer[0] == 16
    assert report.tokens_by_layer[-1] == 8


def test_merged_tokens_follow_their_output():
    report = ran([vtc.VisionZip(keep=8), vtc.Streaming(keep=4)], rows=((0,),))
    span = report.at(0)[0]
    assert span.tokens_out == 4
    assert span.source.max() == 3
    before = report.spans[0]
    for token in range(span.tokens_in):  # in the same group as before, or gone with it
        if span.source[token] >= 0:
            assert span.kept[span.source[token]] == before.kept[before.source[token]]


def test_there_is_no_such_layer():
    report = ran("divprune", keep=4)
    for layer in (-1, 3):
        with pytest.raises(IndexError, match="outside the model's 3 decoder layers"):
            report.at(layer)


def test_a_stopwatch_records_on_the_stream_of_its_own_device(monkeypatch):
    recorded = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            recorded.append((self, stream))

        def synchronize(self):
            assert [event for event, _ in recorded][1] is self

        def elapsed_time(self, other):
            return 12.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    watch = Stopwatch(torch.device("cuda:1"))
    assert watch.stop().ms == 12.5
    assert [stream for _, stream in recorded] == ["the stream of cuda:1"] * 2
    assert recorded[0][0] is not recorded[1][0]


def test_a_stopwatch_on_the_cpu():
    watch = Stopwatch(torch.device("cpu"))
    assert watch.ms == 0.0
    time.sleep(0.01)
    first = watch.stop().ms
    assert 10 <= first < 1000
    assert watch.stop().ms > first


@pytest.mark.parametrize("method", ["hired", "globalcom2", "divprune", "visionzip"])
def test_what_each_crop_keeps_is_told(method):
    report = ran(method, "llava_next", rows=((0,), (2,)), keep=0.2)
    for span, crops in zip(report.spans, (5, 10), strict=True):
        assert len(span.crops) == crops
        assert span.crops[0].role == "thumbnail"
        assert sum(crop.tokens_in for crop in span.crops) == int((span.crop >= 0).sum())
        assert sum(crop.tokens_out for crop in span.crops) == int((span.crop[span.kept] >= 0).sum())
    first = [crop.tokens_out for crop in report.spans[0].crops]
    line = f"kept by crop   picture 1: thumbnail {first[0]}, crops {' '.join(map(str, first[1:]))}"
    assert line in str(report)
    assert [crop["tokens_out"] for crop in report.as_dict()["spans"][0]["crops"]] == first


@pytest.mark.parametrize(("family", "rows"), [("llava", ((0,),)), ("qwen2_5_vl", ((0, "v0"),)), ("internvl", ((0,),))])
def test_pictures_of_one_crop_and_videos_have_no_such_line(family, rows):
    report = ran("divprune", family, rows=rows, keep=0.2)
    assert all(span.crops == () for span in report.spans)
    assert "kept by crop" not in str(report)
    assert report.as_dict()["spans"][0]["crops"] == []
