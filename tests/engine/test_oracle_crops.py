"""The proof for methods whose thumbnail shares out the budget, on every kind of picture they know."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.engine.test_oracle import equal_to_oracle
from tests.families import batch, model_of
from tests.methods.test_definition_globalcom2 import globalcom2
from tests.methods.test_definition_hired import hired
from vtc.selection import Selection
from vtc.signals import VisualTokens

METHODS = [
    "hired",
    "hired(share=count, regions=strips, newline=True, exact_count=False)",
    "globalcom2",
    "globalcom2(scores=cosine, newline=False, exact_count=False)",
]
CELLS: dict[str, tuple[str, list[list[int | str]], str]] = {
    "thumbnail and crops": ("llava_next", [[0]], "left"),
    "two pictures of two sizes": ("llava_next", [[1, 2]], "left"),
    "padded batch, one row of text": ("llava_next", [[0], [1, 3], []], "left"),
    "padded on the right": ("llava_next", [[0, 1], [3]], "right"),
    "scaled crops, no CLS token": ("llava_onevision", [[2], [0, 1]], "left"),
    "a video beside a picture": ("llava_onevision", [[1, "v0"]], "left"),
    "tiles": ("internvl", [[0, 1], [3]], "left"),
    "one picture": ("llava", [[0], [1]], "left"),
    "one grid": ("qwen2_5_vl", [[0], [1]], "left"),
    "a video on one grid": ("qwen2_5_vl", [["v0"]], "left"),
    "frames": ("llava_next_video", [["v0"], [0]], "left"),
}


@pytest.mark.core_cells(method=["hired", "globalcom2"], cell=["padded batch, one row of text", "tiles"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("method", METHODS)
def test_equal_to_the_model_that_cannot_see_the_rest(method: str, cell: str) -> None:
    family, rows, side = CELLS[cell]
    report = equal_to_oracle(family, "sdpa", rows, side, method, keep=0.3)
    for span in report.spans:
        assert 0 < span.tokens_out < span.tokens_in
        if "exact_count" not in method:
            assert span.tokens_out == max(1, round(0.3 * span.tokens_in))


@pytest.mark.parametrize("keep", [1, 2, 0.999, 10**6])
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "internvl"])
@pytest.mark.parametrize("method", ["hired", "globalcom2"])
def test_extreme_budgets(method: str, family: str, keep: Any) -> None:
    report = equal_to_oracle(family, "sdpa", [[3], [1, 2]], "left", method, keep=keep)
    for span in report.spans:
        assert span.tokens_out == min(keep if isinstance(keep, int) else round(keep * span.tokens_in), span.tokens_in)


SEEN: list[VisualTokens] = []


class Watch(vtc.Method):
    """Keeps everything, and notes what it is shown: block 0, and the last one or that of the features."""

    needs = ("cls_attention", "cls_logits")
    last = False

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return (0, depth - 1 if self.last else feature_layer)

    def select(self, tokens: VisualTokens) -> Selection:
        SEEN.append(tokens)
        return Selection.identity(len(tokens.features))


class WatchLast(Watch):
    last = True


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "internvl"])
def test_a_wrapped_model_does_what_the_definition_says(family: str, method: str) -> None:
    """On pictures of every size that the tiny models have, with signals of its own tower."""
    rows: list[list[int | str]] = [[0], [1, 2], [3]]
    model, inputs = model_of(family), batch(family, rows)
    SEEN.clear()
    with torch.no_grad(), vtc.wrapped(model, Watch() if "hired" in method else WatchLast()):
        model(**inputs)
    with torch.no_grad(), vtc.wrapped(model, method, keep=0.25):
        model(**inputs)
        spans = vtc.report(model).spans
    made: Any = vtc.resolve(method, 0.25)
    for tokens, span in zip(SEEN, spans, strict=True):
        if "hired" in method:
            first, last = tokens.read("cls_attention").tolist()
            assert span.kept.tolist() == hired(tokens.span, first, last, made)
        else:
            assert span.kept.tolist() == globalcom2(tokens.span, tokens, made)


def test_a_picture_is_treated_alike_alone_and_in_a_batch() -> None:
    for method in ("hired", "globalcom2"):
        kept = []
        for rows in ([[1], [2, 3]], [[1]], [[2]], [[3]]):
            model = model_of("llava_next")
            with torch.no_grad(), vtc.wrapped(model, method, keep=0.2):
                model(**batch("llava_next", rows))
                kept.append([span.kept.tolist() for span in vtc.report(model).spans])
        assert kept[0] == [kept[1][0], kept[2][0], kept[3][0]]


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "internvl"])
def test_encoded_once_asked_with_either(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1, 2], [1]])
    text = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    encoded = vtc.encode(model, ["hired", "globalcom2"], **batch(family, [[0, 1, 2]]))
    for method in ("hired", "globalcom2"):
        with torch.no_grad(), vtc.wrapped(model, method, keep=0.2):
            expected = model(**inputs).logits
            kept = [span.kept.tolist() for span in vtc.report(model).spans]
            logits = model(**text, **encoded.take([0, 1, 2, 1])).logits
            assert [span.kept.tolist() for span in vtc.report(model).spans] == kept
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stages", ["divprune(keep=0.6) + hired(keep=0.2)", "hired(keep=0.5) + globalcom2(keep=0.2)"])
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_behind_another_method(family: str, stages: str) -> None:
    report = equal_to_oracle(family, "sdpa", [[0], [1, 2]], "left", stages)
    assert all(span.tokens_out == round(0.2 * span.tokens_in) for span in report.spans)
