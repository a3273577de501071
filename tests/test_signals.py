"""What a method sees: signals by keyword, their checks, and what a second stage is shown."""

from typing import ClassVar

import pytest
import torch

import vtc
from vtc.layout import Tile, VisualSpan
from vtc.methods.base.method import Method
from vtc.signals import VisualTokens, given_signals


def test_one_row_and_several_rows_of_attention():
    read = given_signals({"cls_attention": torch.arange(4.0)}, 4, torch.device("cpu"))
    assert read("cls_attention").shape == (1, 4)
    read = given_signals({"received_attention": torch.ones(3, 4)}, 4, torch.device("cpu"))
    assert read("received_attention").shape == (3, 4)
    assert read("cls_attention").shape == (3, 4)  # the documented stand-in


@pytest.mark.parametrize(
    ("signals", "says"),
    [
        ({"cls_attention": torch.ones(5)}, r"cls_attention has shape \(5,\); expected \[4\]"),
        ({"cls_attention": torch.ones(1, 2, 4)}, "cls_attention has shape"),
        ({"cls_attention": torch.tensor(1.0)}, "cls_attention has shape"),
        ({"keys": torch.ones(4)}, "keys has shape"),
        ({"keys": torch.ones(3, 2)}, "keys has shape"),
        ({"text": torch.ones(4)}, "text has shape"),
        ({"cls_atention": torch.ones(4)}, "Did you mean 'cls_attention'"),
    ],
)
def test_misshapen_signals_are_refused(signals, says):
    with pytest.raises(ValueError, match=says):
        vtc.select(vtc.VTCCLS(keep=2), torch.ones(4, 3), **signals)


def test_a_missing_signal_is_named_with_its_meaning():
    with pytest.raises(ValueError, match=r"needs the signal 'keys': pass keys=\.\.\. \(\[N, d\] key vectors"):
        vtc.select(vtc.VisionZip(keep=3, contextual=0.5), torch.ones(6, 3), cls_attention=torch.rand(6))


def test_a_class_that_needs_an_unknown_signal_is_refused():
    with pytest.raises(ValueError, match="Needy needs 'atention', which is not a signal"):

        class Needy(Method):
            needs: ClassVar[tuple[str, ...]] = ("atention",)


def tokens_of(span):
    n = span.tokens
    values = {
        "cls_attention": torch.arange(2.0 * n).view(2, n),
        "keys": torch.arange(3.0 * n).view(n, 3),
        "text": torch.ones(9, 5),
    }
    return VisualTokens(torch.randn(n, 5), span, torch.arange(n), values.__getitem__)


def test_a_later_stage_sees_what_is_left():
    span = VisualSpan(row=0, index=torch.arange(8), grid=(1, 2, 3), tiles=(Tile(0, 1, 2, 3, newline=True),))
    tokens = tokens_of(span)
    assert tokens.separators.tolist() == [False, False, False, True] * 2
    later = tokens.after(torch.tensor([7, 2, 3, 5]), torch.randn(4, 5)).after(torch.tensor([0, 3]), torch.randn(2, 5))
    assert later.index.tolist() == [7, 5]
    assert later.total == 8
    assert later.separators.tolist() == [True, False]
    assert later.signal("cls_attention").tolist() == [[7, 5], [15, 13]]
    assert later.signal("keys").tolist() == [[21, 22, 23], [15, 16, 17]]
    assert later.signal("text").shape == (9, 5)


def test_fractions_refer_to_the_uncompressed_span():
    span = VisualSpan(row=0, index=torch.arange(8), grid=(1, 2, 4), tiles=(Tile(0, 1, 2, 4),))
    later = tokens_of(span).after(torch.arange(6), torch.randn(6, 5))
    assert vtc.Random(keep=0.5).count(later) == 4
    assert vtc.Random(keep=7).count(later) == 6
