"""The cells that run by default are few, the same in every process, and others under another seed."""

from __future__ import annotations

from tests.sampling import SHARE, drawn

NAMES = [f"tests/x.py::test[{i}]" for i in range(5000)]


def test_a_share_is_drawn_that_moves_with_the_seed() -> None:
    one, two = ({name for name in NAMES if drawn(name, seed=seed)} for seed in ("a1", "b2"))
    assert one == {name for name in NAMES if drawn(name, seed="a1")}
    for found in (one, two):
        assert 0.5 * SHARE < len(found) / len(NAMES) < 1.5 * SHARE
    assert len(one & two) < len(one) / 2
