"""`vtc.load` and `vtc.resolve`: what a command line hands over becomes a model and a method, or one sentence."""

from __future__ import annotations

import pytest

import vtc

pytestmark = pytest.mark.core


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_chosen_when_loading(attention):
    model, _ = vtc.load("tiny-llava", device="cpu", attn_implementation=attention)
    assert model.config._attn_implementation == attention


def test_a_method_from_its_name():
    assert vtc.resolve("divprune", 0.1) == vtc.DivPrune(keep=0.1)
    assert vtc.resolve(vtc.DivPrune(keep=4), positions="compact") == vtc.DivPrune(keep=4, positions="compact")
    with pytest.raises(ValueError, match="Did you mean 'divprune'"):
        vtc.resolve("divprun")
