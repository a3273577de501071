"""The leaderboard: all committed results as one page to look around in."""

from __future__ import annotations


def pages() -> dict[str, str]:
    return {}
