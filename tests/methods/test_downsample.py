"""The definition of `downsample`, in plain numbers."""

from __future__ import annotations

import pytest

import vtc
from tests.grids import largest_grid
from tests.methods.definitions import defines


@defines("downsample")
@pytest.mark.parametrize("keep", [1, 5, 9, 40, 64, 200, 0.03, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("grid", [(1, 12, 16), (1, 24, 24), (1, 3, 40), (4, 12, 12), (3, 5, 2), (1, 1, 1)])
def test_the_grid_is_the_largest_that_fits(grid, keep):
    """No larger grid in these proportions has few enough tokens; every frame keeps one at least."""
    t, h, w = grid
    wanted = min(t * h * w, keep if isinstance(keep, int) else max(1, round(keep * t * h * w)))
    assert vtc.Downsample(keep=keep).smaller(grid) == (t, *largest_grid(h, w, max(1, wanted // t)))


def test_a_method_of_ones_own_needs_to_say_how_small():
    class Nothing(vtc.PixelMethod):
        pass

    with pytest.raises(TypeError, match=r"Nothing defines no smaller\(grid\)"):
        Nothing(keep=4).smaller((1, 4, 4))
