"""recoverable: its options, what it does when there is nothing to go by, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.families import batch, model_of


def shown(n: int = 40, seed: int = 0) -> tuple[Tensor, dict[str, Any]]:
    g = torch.Generator().manual_seed(seed)
    signals = {
        "joined_cls_attention": torch.randn(n, generator=g).softmax(dim=0),
        "joined_keys": torch.randn(n, 6, generator=g),
        "text": torch.randn(3, 4, generator=g),
    }
    return torch.randn(n, 4, generator=g), signals


def same(one: vtc.Selection, two: vtc.Selection, x: Tensor) -> bool:
    return one.anchor.equal(two.anchor) and one.apply(x).equal(two.apply(x))


def test_the_shares_of_the_papers_budget() -> None:
    """58 of 576: 35 visual, 14 of the text, 8 centres and the last."""
    x, signals = shown(576)
    selection = vtc.select(vtc.Recoverable(), x, **signals)
    assert selection.tokens_out == 58
    visual = vtc.top_k(signals["joined_cls_attention"], 35).tolist()
    kept, centres = selection.anchor[:49].tolist(), selection.anchor[49:57].tolist()
    assert kept == sorted(kept)
    assert set(visual) < set(kept)
    weights = signals["joined_cls_attention"]
    rest = sorted(set(range(576)) - set(kept), key=lambda i: -float(weights[i]))
    assert centres == rest[:8]
    assert (selection.source >= 0).all()


def test_the_question_decides_what_comes_back() -> None:
    x, signals = shown()
    asked: dict[str, Any] = {**signals, "text": x[[7]] * 3 + 0.01}
    first, second = (vtc.select(vtc.Recoverable(keep=10), x, **s) for s in (signals, asked))
    assert not first.anchor.equal(second.anchor)
    without = vtc.Recoverable(keep=10, guided=False)
    assert without.requires() == ("joined_cls_attention", "joined_keys")
    assert not without.query_aware
    assert vtc.Recoverable().query_aware
    assert same(vtc.select(without, x, **signals), vtc.select(without, x, **asked), x)


def test_without_words_it_is_unguided() -> None:
    x, signals = shown()
    silent: dict[str, Any] = {**signals, "text": torch.zeros(0, 4)}
    options: dict[str, Any]
    for options in ({"keep": 12}, {"keep": 1.0, "exact_count": False}):
        quiet = vtc.select(vtc.Recoverable(**options), x, **silent)
        assert same(quiet, vtc.select(vtc.Recoverable(guided=False, **options), x, **signals), x)


def test_a_row_without_words_in_a_model() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0]])
    inputs["input_ids"], inputs["attention_mask"] = (
        inputs[name][:, (inputs["input_ids"] == 2)[0]] for name in ("input_ids", "attention_mask")
    )
    for keep in (1, 9, 35):
        with vtc.wrapped(model, vtc.Recoverable(keep=keep)):
            assert model(**inputs).logits.isfinite().all()
            assert vtc.report(model).tokens_out == keep


def test_equal_attention_keeps_one_token_and_the_sum_of_the_rest() -> None:
    """No outlier anywhere: the released rule would keep nothing at all."""
    x, signals = shown(50)
    even: dict[str, Any] = {**signals, "joined_cls_attention": torch.full((50,), 1 / 51), "text": torch.zeros(2, 4)}
    selection = vtc.select(vtc.Recoverable(keep=1.0, exact_count=False), x, **even)
    assert selection.tokens_out == 2
    assert selection.anchor[0] == 0
    torch.testing.assert_close(selection.apply(x)[1], x[1:].sum(dim=0) / 51)


def test_normalised_outputs_are_means() -> None:
    _, signals = shown()
    flat = torch.ones(40, 4) * 3
    made = vtc.select(vtc.Recoverable(keep=12, merged=0.5, normalise=True), flat, **signals).apply(flat)
    torch.testing.assert_close(made, torch.full((12, 4), 3.0))
    loud = vtc.select(vtc.Recoverable(keep=12, merged=0.5), flat, **signals).apply(flat)
    assert (loud[6:11] > 3).all()
    assert (loud[11] < 3).all()


def test_keys_are_read_only_where_something_absorbs() -> None:
    x, signals = shown()
    del signals["joined_keys"]
    assert vtc.select(vtc.Recoverable(keep=9, merged=0), x, **signals).tokens_out == 9


def test_it_writes_itself_down() -> None:
    method = vtc.Recoverable(keep=64, recovered=0.3, exact_count=False, guided=False)
    assert vtc.Method.from_dict(method.as_dict()) == method
    assert vtc.resolve(str(method)) == method
    assert not vtc.Method.from_dict(method.as_dict()).query_aware
    assert not method.exact_count
    assert not method.keeps_all()
    assert vtc.Recoverable().exact_count
    with pytest.raises(TypeError, match=r"^recoverable cannot be written down: scorer= holds a function, [^\n]*\.$"):
        vtc.Recoverable(scorer=lambda tokens: tokens.features[:, 0]).as_dict()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recovered": 1.0}, r"recovered=1\.0 is not a number in \[0, 1\): it is a share of the outputs"),
        ({"merged": -0.1}, r"merged=-0\.1 is not a number in \[0, 1\)"),
        ({"recovered": 0.7, "merged": 0.3}, r"recovered=0\.7 and merged=0\.3 leave no share for the visual set"),
        ({"neighbours": 0}, "neighbours=0 is not a whole number of 1 or more"),
        ({"neighbours": 2.0}, r"neighbours=2\.0 is not a whole number"),
        ({"guidance": float("nan")}, "guidance=nan is not a number"),
        ({"guided": 1}, "guided=1 of recoverable is neither True nor False"),
        ({"exact_count": None}, "exact_count=None of recoverable is neither True nor False"),
        ({"scorer": 3}, "scorer=3 is not a function from VisualTokens to a relevance per token"),
        ({"scorer": len, "guided": False}, "scorer= says how relevant tokens are to the text, which guided=False"),
        ({"scope": "row"}, "scope='row' is not one of clip, frame, crop"),
    ],
)
def test_bad_options_are_one_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{says}[^\n]*\.$"):
        vtc.Recoverable(**options)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (torch.zeros(39), r"shape \(39,\), 39 of whose numbers are finite"),
        (torch.zeros(40, 1), r"shape \(40, 1\), 40 of whose numbers are finite"),
        (torch.full((40,), float("nan")), r"shape \(40,\), 0 of whose numbers are finite"),
    ],
)
def test_a_scorer_that_does_not_fit_is_refused(answer: Tensor, says: str) -> None:
    x, signals = shown()
    with pytest.raises(ValueError, match=rf"^scorer= returned a tensor of {says}; expected one finite[^\n]*\.$"):
        vtc.select(vtc.Recoverable(keep=9, scorer=lambda tokens: answer), x, **signals)


def test_bare_tensors_lack_a_signal() -> None:
    x, signals = shown()
    del signals["joined_cls_attention"]
    with pytest.raises(ValueError, match=r"^this method needs the signal 'joined_cls_attention': pass [^\n]*\.$"):
        vtc.select("recoverable", x, **signals)
    with pytest.raises(ValueError, match=r"^joined_keys has shape \(40,\); expected \[40, d\] or \[L, 40, d\]\.$"):
        vtc.select("recoverable", x, **{**signals, "joined_keys": torch.zeros(40)})
    received = vtc.select("recoverable", x, received_attention=torch.rand(40), **signals)
    assert received.tokens_out == 4


def test_a_tower_without_cls_is_noted() -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    with vtc.wrapped(model, "recoverable", keep=0.3):
        model(**inputs)
        (note,) = vtc.report(model).notes
    assert (
        note
        == "recoverable: qwen2_5_vl_vision has no CLS token; received attention stands in for joined CLS attention."
    )


def test_numbers_that_are_none_are_last() -> None:
    x, signals = shown()
    x[3], signals["joined_keys"][5], signals["joined_cls_attention"][8] = float("nan"), float("nan"), float("nan")
    options: dict[str, Any]
    for options in ({"keep": 12}, {"keep": 1.0, "exact_count": False}, {"keep": 39}):
        selection = vtc.select(vtc.Recoverable(**options), x, **signals).check()
        assert 1 <= selection.tokens_out <= 40
        if options["keep"] == 12:
            assert not {3, 8} & set(selection.anchor[:10].tolist())
