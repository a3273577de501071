"""Sentences that visitors may see: no folders of this machine, no addresses in memory, not longer than a paragraph."""

from __future__ import annotations

import re

_LONGEST = 300  # letters
# /tmp/a/b.png and C:\Users\a\b.png, not "and/or", "16 / 9", "https://": at least two parts, and nothing before them.
_PLACE = re.compile(r"(?<![\w/:.])(?:[A-Za-z]:\\|~?/)(?:[^\s/\\:'\"<>]+[/\\])+([^\s/\\:'\",;<>]*)")
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


def presentable(sentence: str) -> str:
    """The sentence in one line, with files named without their folders.

    >>> presentable("/tmp/vtc-demo-x/ab/cat.png is empty: fetch it again")
    'cat.png is empty: fetch it again'
    """
    text = " ".join(sentence.split())
    text = _ADDRESS.sub("", _PLACE.sub(lambda place: place[1] or "a folder", text))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…"
