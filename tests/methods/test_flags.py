"""Options that are True or False: nothing else is taken for one of them."""

from dataclasses import fields

import pytest

import vtc

FLAGS = [
    (info.name, field.name)
    for info in vtc.list_methods()
    for field in fields(vtc.resolve(info.name))
    if field.type == "bool"
]


def test_there_are_some():
    assert ("transprune", "absolute") in FLAGS


@pytest.mark.parametrize(("method", "option"), FLAGS)
@pytest.mark.parametrize("value", ["released", 1, None])
def test_a_flag_is_true_or_false(method, option, value):
    with pytest.raises(ValueError, match=f"{option}={value!r} of {method} is neither True nor False") as caught:
        vtc.resolve(method, **{option: value})
    assert "\n" not in str(caught.value)
