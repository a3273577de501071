"""How many patches each block of a vision tower leaves."""

from __future__ import annotations

import pytest

from vtc.budget import SCHEDULES, merged_counts


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_last_block_leaves_what_was_asked_for_and_none_takes_more_than_half(schedule: str):
    for total in (1, 2, 7, 16, 49, 196):
        for blocks in (1, 2, 3, 12):
            for last in {1, total // 3, total // 2, total} - {0}:
                if last << blocks < total:
                    with pytest.raises(ValueError, match=f"keep {-(-total // 2**blocks)} or more"):
                        merged_counts(total, last, blocks, schedule)
                    continue
                counts = merged_counts(total, last, blocks, schedule)
                assert counts[-1] == last
                assert all(0 <= a - b <= a // 2 for a, b in zip((total, *counts), counts, strict=False))


def test_schedules_are_what_they_are_called():
    assert merged_counts(16, 4, 4, "constant") == (13, 10, 7, 4)
    assert merged_counts(16, 4, 4, "decreasing") == (10, 6, 4, 4)
    assert merged_counts(16, 4, 4, "geometric") == (11, 8, 6, 4)
    assert merged_counts(196, 98, 12, "increasing")[:3] == (196, 195, 192)
