"""A row's answer does not depend on its neighbours in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer

import vtc
from tests.families import FAMILIES, IMAGE, VIDEO, batch, model_of
from tests.sweep import EVERY, VIDEOS, cells, only_videos

Rows = list[list[int | str]]
STEPS: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
CACHES: dict[str, Any] = {
    "h2o": lambda **o: vtc.H2O(keep=0.4, **o),
    "scissorhands": lambda **o: vtc.Scissorhands(keep=0.4, history=5, **o),
    "streaming": lambda **o: vtc.Streaming(keep=0.4, sinks=2, **o),
}


def alone(family: str, rows: Rows, number: int) -> dict[str, Any]:
    """Row `number` of `batch(family, rows)` in a batch of its own."""
    whole, vision = batch(family, rows), batch(family, [rows[number]])
    ids = whole["input_ids"][number][whole["attention_mask"][number].bool()][None]
    vision |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in vision:
        vision["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return vision


def assert_row(got: Any, number: int, expected: Any) -> None:
    """Row `number` of what a batch generated is what that row generated alone."""
    steps = len(expected.logits)
    assert got.sequences[number, -steps:].equal(expected.sequences[0, -steps:])
    scale = max(float(x.abs().max()) for x in expected.logits)
    for a, b in zip(got.logits, expected.logits, strict=True):
        assert (a[number] - b[0]).abs().max() / scale < 1e-4


@pytest.mark.parametrize(("family", "method"), cells(EVERY))
def test_unequal_rows(family: str, method: str) -> None:
    rows: Rows = [["v0"], [], ["v1", 0]] if only_videos(method) else [[0], [], [1, 2]]
    model = model_of(family)
    with vtc.wrapped(model, EVERY[method]()):
        together = model.generate(**batch(family, rows), **STEPS)
        for i in range(3):
            assert_row(together, i, model.generate(**alone(family, rows, i), **STEPS))


@pytest.mark.parametrize("every", [None, 1, 3])
@pytest.mark.parametrize("scope", ["visual", "all"])
@pytest.mark.parametrize(("family", "method"), cells(CACHES))
def test_text_only_rows(family: str, method: str, scope: str, every: int | None) -> None:
    rows, model = [[0], [], [1, 2]], model_of(family)
    with vtc.wrapped(model, CACHES[method](scope=scope, every=every)):
        together = model.generate(**batch(family, rows), **STEPS | {"max_new_tokens": 8})
        for i in range(3):
            one = model.generate(**alone(family, rows, i), **STEPS | {"max_new_tokens": 8})
            assert_row(together, i, one)


@pytest.mark.parametrize("method", [*EVERY, "h2o, every", "streaming, all, every"])
def test_plain_text_leaves_the_cache_alone(method: str) -> None:
    family = VIDEOS[len(method) % len(VIDEOS)]
    special = {"h2o, every": vtc.H2O(keep=0.4, every=1), "streaming, all, every": vtc.Streaming(scope="all", every=1)}
    model, inputs = model_of(family), batch(family, [[], []])
    expected = model.generate(**inputs, **STEPS)
    with vtc.wrapped(model, special[method] if method in special else EVERY[method]()):
        got = model.generate(**inputs, **STEPS)
    assert got.sequences.equal(expected.sequences)
    for one, two in zip(got.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert type(one) is DynamicLayer
        assert torch.equal(one.keys, two.keys)  # type: ignore[arg-type]
        assert torch.equal(one.values, two.values)  # type: ignore[arg-type]


# -- a damaged picture -----------------------------------------------------------------------------------------


def damaged(family: str, rows: Rows, which: int, value: float) -> dict[str, Any]:
    """`batch(family, rows)` of one picture or clip each, with that of row `which` filled with `value`."""
    inputs, kind = batch(family, rows), FAMILIES[family]
    moving = isinstance(rows[0][0], str)
    name = "pixel_values_videos" if moving else "pixel_values"
    seeds = [int(str(row[0]).lstrip("v")) for row in rows]
    made: Any = kind.videos if moving else kind.images
    start = 0 if which == 0 else len(made(seeds[:which])[0][name])
    inputs[name] = inputs[name].clone()
    inputs[name][start : len(made(seeds[: which + 1])[0][name])] = value
    return inputs


@pytest.mark.parametrize(("family", "method"), cells(EVERY))
def test_a_damaged_picture_beside_a_good_one(family: str, method: str) -> None:
    rows: Rows = [["v0"], ["v1"]] if only_videos(method) else [[1], [0]]
    model, steps = model_of(family), STEPS | {"max_new_tokens": 2}
    with vtc.wrapped(model, EVERY[method]()):
        for good in (0, 1):
            expected = model.generate(**alone(family, rows, good), **steps)
            for value in (float("nan"), float("inf")):
                got = model.generate(**damaged(family, rows, 1 - good, value), **steps)
                assert_row(got, good, expected)
                assert not got.logits[0][1 - good].isfinite().all()  # it has been read
