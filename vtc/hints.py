"""The name that somebody who wrote another one may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'divprune'?", to follow the sentence that refuses `name`; "" if nothing in `known` is near it.

    Capitals and "_" for "-" make no difference: they are the likeliest mistakes.
    """
    plain = {_plain(one): one for one in known}
    near = get_close_matches(_plain(name), plain, 1)
    return f" Did you mean {plain[near[0]]!r}?" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
