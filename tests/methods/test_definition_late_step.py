"""Late-step pruning as its docstring defines it, in loops over what a plain model attends to, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

import vtc
from tests.engine.test_denoising import KINDS, STEPS, TOKENS, gone_of, prompt, rows_read, tiny, written
from tests.methods.definitions import defines
from tests.tiny_parts import IMAGE

pytestmark = pytest.mark.skipif("diffusion_gemma" not in CONFIG_MAPPING, reason="transformers has no such model yet")

OPTIONS: list[dict[str, Any]] = [
    dict(keep=0.25, after=2),
    dict(keep=3, after=1, layer=1),
    dict(keep=0.5, after=3, layer=2),
    dict(keep=5, after=STEPS - 1, layer=0.9),
    dict(keep=0.5, after=2, withdraw=True),
]


def deciding(layer: float) -> int:
    """The first layer without a window from the one that is asked for on, which counts from 1; else the last."""
    asked = layer if isinstance(layer, int) else round(layer * len(KINDS))
    full = [number for number, kind in enumerate(KINDS) if kind == "full_attention"]
    for number in full:
        if number >= asked:
            return number
    return full[-1]


@defines("late-step", "after", "withdraw", "layer")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_late_steps_read_what_the_last_full_one_attended_to(options: dict[str, Any]) -> None:
    model, given, weights = tiny("eager"), prompt(1, 2), []
    method = vtc.LateStep(**options)
    decider = model.model.decoder.layers[deciding(method.layer)].self_attn
    handle = decider.register_forward_hook(lambda _, args, out: weights.append(out[1][0]))  # [heads, block, keys]
    try:
        written(model, given)
    finally:
        handle.remove()
    heard, ids = weights[method.after - 1], given["input_ids"][0].tolist()
    places = [place for place, token in enumerate(ids) if token == IMAGE]
    gone = set()
    for picture in (places[:TOKENS], places[TOKENS:]):
        scores = {}
        for place in picture:
            own = [float(heard[h, q, place]) for h in range(heard.shape[0]) for q in range(heard.shape[1])]
            scores[place] = sum(own) / len(own)
        count = method.keep if isinstance(method.keep, int) else round(method.keep * TOKENS)
        best = sorted(picture, key=lambda place: -scores[place])[: 0 if method.withdraw else count]
        gone |= {*picture} - {*best}
    with vtc.wrapped(model, method), rows_read(model) as read:
        written(model, given)
        (found,) = gone_of(model)
    assert {*found} == gone
    for step, rows in enumerate(read, start=1):
        assert rows[1] == (len(ids) if step <= method.after else len(ids) - len(gone))


def test_bare_tensors() -> None:
    record = torch.tensor([0.1, 0.5, 0.2, 0.4])
    assert vtc.select("late-step", torch.zeros(4, 2), keep=2, attention_record=record).anchor.tolist() == [1, 3]
