"""recoverable in a model: what it makes of the tokens is what the language model reads, and the rest is unseen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.engine.test_oracle import assert_rows_equal, equal_to_oracle
from tests.families import FAMILIES, batch, model_of
from tests.oracle import decisions, oracle

LARGE = ["llava", "llava_next", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl"]
BATCHES = {
    "left padded, unequal, text-only row": ([[0], [1, 2], []], "left"),
    "right padded, unequal": ([[0, 1], [3]], "right"),
}


def texts(inputs: Any) -> dict[str, Any]:
    return {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("family", LARGE)
def test_it_equals_the_oracle(family: str, positions: str, rows: Any) -> None:
    images, side = rows
    report = equal_to_oracle(family, "sdpa", images, side, "recoverable", keep=0.3, positions=positions)
    for span in report.spans:
        assert span.tokens_out == round(0.3 * span.tokens_in)


@pytest.mark.parametrize("options", ["exact_count=False", "scope=clip", "guided=False, normalise=True"])
@pytest.mark.parametrize("family", ["llava_next", "internvl", "qwen3_vl"])
def test_its_options_equal_the_oracle(family: str, options: str) -> None:
    method = vtc.resolve(f"recoverable(keep=0.4, {options})")
    report = equal_to_oracle(family, "sdpa", [[1], [0, 2]], "left", method)
    assert all(1 <= span.tokens_out <= round(0.4 * span.tokens_in) for span in report.spans)


@pytest.mark.core
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(LARGE)))
def test_it_equals_the_oracle_in_the_other_families(family: str) -> None:
    equal_to_oracle(family, "sdpa", [[0], [1]], "left", "recoverable", keep=0.3)


@pytest.mark.parametrize("family", ["llava", "internvl", "qwen2_5_vl"])
def test_one_picture_and_two_questions(family: str) -> None:
    """A picture encoded once is asked about in two rows: each row keeps what its own words bring back."""
    model, inputs = model_of(family), batch(family, [[0], [0]])
    text = (inputs["input_ids"][1] > 5).nonzero()[:, 0]
    inputs["input_ids"][1, text] = 98 - inputs["input_ids"][1, text] % 7
    encoded = vtc.encode(model, "recoverable", **batch(family, [[0]]))
    shown: list[list[list[int]]] = []
    for guided in (True, False):
        method = vtc.Recoverable(keep=0.4, recovered=0.5, guided=guided)
        with vtc.wrapped(model, method):
            together = model(**texts(inputs), **encoded.take([0, 0])).logits
            made = decisions(model)
            shown.append([span.kept.tolist() for span in vtc.report(model).spans])
        with torch.no_grad(), oracle(model, made, 2, compact=True):
            expected = model(**inputs).logits
        assert_rows_equal(together, expected, inputs["attention_mask"].bool(), made)
        assert method.query_aware == guided
    assert shown[0][0] != shown[0][1]
    assert shown[1][0] == shown[1][1]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_a_row_that_is_broken_harms_no_other(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [0]])
    alone = batch(family, [[0]])
    pixels = inputs["pixel_values"]
    half = len(pixels) // 2
    inputs["pixel_values"] = torch.cat([pixels[:half], torch.full_like(pixels[half:], float("nan"))])
    for method in ("recoverable(keep=8)", "recoverable(keep=0.5, exact_count=False)"):
        with vtc.wrapped(model, method):
            right, kept = model(**alone).logits, vtc.report(model).spans[0].kept
            got, spans = model(**inputs).logits[0], vtc.report(model).spans
        assert spans[0].kept.equal(kept)
        torch.testing.assert_close(got[-right.shape[1] :], right[0], atol=1e-5, rtol=1e-4)
