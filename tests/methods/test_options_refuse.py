"""Every option of every method that ships refuses what it cannot be, in one sentence that names it."""

from __future__ import annotations

from typing import Any

import pytest

import vtc
from tests.methods.definitions import options_of, shipped


class Strange:
    """Of no kind that an option takes."""

    def __repr__(self) -> str:
        return "<strange>"


@pytest.mark.parametrize("name", sorted(shipped()))
def test_what_no_option_can_be(name):
    strange: Any = Strange()
    for option in options_of(name):
        with pytest.raises((ValueError, TypeError), match=rf"^[^\n]*\b{option}=<strange>[^\n]*\.$"):
            vtc.resolve(name, **{option: strange})


@pytest.mark.parametrize("keeps", ["64", 64, 0.5])
def test_budgets_by_layer_are_a_row(keeps):
    with pytest.raises(TypeError, match=rf"^keeps={keeps!r} is no row of budgets: give one per layer, such as "):
        vtc.FastV(keeps=keeps)
