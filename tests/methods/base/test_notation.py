"""The string form of methods: what is read, what is written, and what is refused."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vtc.methods.base.notation import read_methods, split_outside, write_method


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("fastv", [("fastv", {})]),
        (" fastv () ", [("fastv", {})]),
        ("vtc-cls(keep=64,)", [("vtc-cls", {"keep": 64})]),
        ("a(x=-1.5e-3, y=True, z=None)", [("a", {"x": -0.0015, "y": True, "z": None})]),
        ("a(layers=(0.25, 3), keeps=[1])", [("a", {"layers": (0.25, 3), "keeps": (1,)})]),
        ("a(mode=kcenter, other='k center')", [("a", {"mode": "kcenter", "other": "k center"})]),
        ("a(weights=runs/a-1/b.safetensors)", [("a", {"weights": "runs/a-1/b.safetensors"})]),
        ("a(weights=./b, none=nan, quoted='None')", [("a", {"weights": "./b", "none": "nan", "quoted": "None"})]),
        ("""a(x='1 + (2', y="it's, \\" so")""", [("a", {"x": "1 + (2", "y": "it's, \" so"})]),
        ("a + b(x=1)+c", [("a", {}), ("b", {"x": 1}), ("c", {})]),
    ],
)
def test_what_is_read(text, methods):
    assert read_methods(text) == methods


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' does not name a method: expected name(option=value, ...)"),
        ("a +", "does not name a method"),
        ("a(x=1", "'a(x=1' does not name a method"),
        ("a)", "'a)' does not name a method"),
        ("a b", "'a b' does not name a method"),
        ("a(64)", "'64' in 'a(64)' gives no option a value"),
        ("a(x=1,,y=2)", "'' in 'a(x=1,,y=2)' gives no option a value"),
        ("a(x=1, x=2)", "'a(x=1, x=2)' gives x twice"),
        ("a(x=)", "x= in 'a(x=)' is no value"),
        ("a(x=two words)", "x=two words in 'a(x=two words)' is no value"),
        ("a(x={1: 2})", "x={1: 2} in"),
        ("a(x=1j)", "x=1j in"),
        ("a(x=b'y')", "is no value"),
        ("a(x=__import__('os').getcwd())", "is no value"),
        ("a(x=" + 9999 * "-" + "1)", "is no value"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        read_methods(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        *(0, 1, 1.0, -0.1, 1e-30, True, False, None),
        *("word", "two words", "True", "None", "nan", "1", "", "it's", 'a"b\\', "a\nb", "../a/b-1", "~/a"),
        *((), (1,), (0.5, 2), ("a", "b c"), ((1, 2), None)),
    ],
)
def test_every_value_comes_back(value):
    text = write_method("some-method", {"option": value, "keep": 1})
    ((name, options),) = read_methods(text)
    assert (name, repr(options)) == ("some-method", repr({"keep": 1, "option": value}))


def test_numbers_of_others_and_paths_are_written_plainly():
    values = {"a": np.int64(3), "b": np.float64(0.5), "c": Fraction(1, 4), "d": Path("a/b"), "e": [1, np.float32(2)]}
    assert write_method("m", values) == "m(a=3, b=0.5, c=0.25, d=a/b, e=(1, 2.0))"


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": 1}, {1}, object(), len, (1, len)])
def test_what_cannot_be_written(value):
    with pytest.raises(TypeError, match=r"^a \w+ has no string form: expected a number, text, None"):
        write_method("m", {"x": value})


def test_keep_comes_first():
    assert write_method("m", {"b": 1, "keep": 2, "a": 3}) == "m(keep=2, a=3, b=1)"


def test_splitting_outside_brackets_and_quotes():
    assert split_outside("a, b(c, [d, e]), 'f, (g', h", ",") == ["a", "b(c, [d, e])", "'f, (g'", "h"]
    assert split_outside("64,0.1", ",") == ["64", "0.1"]
