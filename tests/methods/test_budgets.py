"""What `keep` promises, for every registered method: all tokens at 1.0, and no more and no less than was asked for."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import pytest
import torch

import vtc
from tests.families import batch, model_of
from vtc.methods.base import registry
from vtc.methods.base.cache import PairedMethod

NAMES = sorted(name for name, cls in registry.discover().items() if cls.__module__.startswith("vtc.methods."))
OPTIONS = {"razor": {"heads": ((0, 0), (2, 1))}}  # without which a method cannot be wrapped
FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "internvl")
VIDEOS = (("qwen2_5_vl", "v0"), ("llava_next_video", "v0"), ("llava_onevision", "v0"))
PACKED = ("qwen2_5_vl",)  # whose pictures can be made smaller on a wrapped model
KEEPS = (1.0, 0.5, 0.25, 7)
CASES = [
    (name, family, seed)
    for name in NAMES
    for family, seed in (*((family, 0) for family in FAMILIES), *VIDEOS)
    if ("video" if seed == "v0" else "image") in registry.discover()[name].modality
    and (family in PACKED or registry.discover()[name].stage != "pixels")
    and not issubclass(registry.discover()[name], PairedMethod)  # from which no token goes
    and registry.discover()[name].stage != "encoder"  # what it leaves is checked in tests/engine/test_encoder_vlm.py
]


def governed(method):
    """The method with whatever else decides how many tokens stay switched off, so that `keep` alone does."""
    if method.keeps_all():
        return method
    for field in fields(method):
        for value in (None, True):
            try:
                changed = replace(method, **{field.name: value})
            except (TypeError, ValueError):
                continue
            if changed.keeps_all():
                return changed
    raise AssertionError(f"{method} never keeps everything")


@cache
def prompt(family, seed):
    """One about one picture or video, and what the model alone makes of it."""
    inputs = batch(family, [[seed]])
    with torch.no_grad():
        return inputs, model_of(family)(**inputs).logits


def run(family, seed, method):
    """Logits, and what the report says, of one prompt about one picture or video."""
    model, (inputs, plain) = model_of(family), prompt(family, seed)
    with vtc.wrapped(model, method):
        logits = model(**inputs, use_cache=True).logits
        report = vtc.report(model)
    (span,) = report.spans
    return plain, logits, report, span, len(report.tokens_by_layer)


def asked(keep, total):
    return min(total, keep if isinstance(keep, int) else max(1, round(keep * total)))


@pytest.mark.parametrize(("name", "family", "seed"), CASES)
def test_everything_is_kept_at_one(name, family, seed):
    for keep in (1.0, 10**6):
        method = vtc.resolve(name, keep, **OPTIONS.get(name, {}))
        plain, logits, report, span, depth = run(family, seed, governed(method))
        assert report.tokens_by_layer == [span.tokens_in] * depth
        for layer in range(depth):
            assert span.at(layer).kept.tolist() == list(range(span.tokens_in))
            assert span.at(layer).source.tolist() == list(range(span.tokens_in))
        torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "family", "seed"), CASES)
def test_budgets_are_met(name, family, seed):
    for keep in KEEPS:
        method = vtc.resolve(name, keep, **OPTIONS.get(name, {}))
        _, _, report, span, depth = run(family, seed, method)
        wanted, left = asked(keep, span.tokens_in), span.at(depth - 1).tokens_out
        if span.held:  # layers, or heads, may share their budgets out unequally
            held = [selection.tokens_out for heads in span.held.values() for selection in heads]
            left = sum(held) / len(held)
        if getattr(method, "average", False):
            assert abs(report.tokens_average - wanted) <= 0.5
        elif method.exact_count:
            assert left == wanted
        assert 1 <= left <= span.tokens_in


@pytest.mark.parametrize(
    ("name", "family", "seed"), [case for case in CASES if "average" in {f.name for f in fields(vtc.resolve(case[0]))}]
)
def test_averages_are_met_or_refused_before_compute(name, family, seed):
    met = 0
    for keep in KEEPS:
        method = governed(vtc.resolve(name, keep, average=True))
        try:
            _, _, report, span, _ = run(family, seed, method)
        except ValueError as error:
            refused = str(error)
            assert "visual tokens on average: before layer" in refused
            continue
        met += 1
        if method.exact_count or method.stage == "layer":  # of others the pictures decide
            assert abs(report.tokens_average - asked(keep, span.tokens_in)) <= 0.5
    assert met >= 1


@pytest.mark.parametrize("name", [name for name in NAMES if not vtc.resolve(name).keeps_all()])
def test_what_cannot_keep_everything_says_why(name):
    owner = next(cls for cls in registry.discover()[name].__mro__ if "keeps_all" in cls.__dict__)
    assert owner is not vtc.Method
    assert owner.keeps_all.__doc__
