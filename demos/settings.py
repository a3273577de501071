"""The slider of what to keep and the methods to choose from: one part of the page, and what it says to the server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from vtc.demos.words import Group, groups, info_of, shown

STEPS = (1, 2, 5, 10, 25, 50, 75, 100)  # % of the visual tokens
FIRST_STEP = 10
FIRST_METHODS = ("vtc-cls", "visionzip", "pyramiddrop")


def write_settings(percent: float, methods: Sequence[str]) -> str:
    """What the page holds and sends with a question."""
    return json.dumps({"keep": percent, "methods": list(methods)})


def read_settings(text: Any, offered: Sequence[str]) -> tuple[float, list[str]]:
    """(% to keep, methods) of what a page sent; methods that are not offered, such as those for clips, are left out.

    Raises:
        ValueError: it was not written by this page.
    """
    try:
        said = json.loads(text)
        percent, methods = float(said["keep"]), [str(name) for name in said["methods"]]
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError("What to keep and which methods to use did not arrive: reload the page.") from error
    return percent, [name for name in dict.fromkeys(methods) if name in offered]


def offered(kind: str, own: Sequence[str]) -> list[str]:
    """Methods for pictures ("image") or clips ("video"), those asked for at start first."""
    names = dict.fromkeys((*own, *(info.name for info in shown())))
    return [name for name in names if (info := info_of(name)) and kind in info.modality]


def markup(own: Sequence[str], chosen: Sequence[str]) -> str:
    """The slider and the groups of methods, as HTML. `settings.js` makes them work."""
    ticks = "".join(f'<span data-step="{i}">{step}</span>' for i, step in enumerate(STEPS))
    at = STEPS.index(FIRST_STEP)
    slider = (
        '<div class="keep"><label for="keep">Keep <output for="keep"></output></label>'
        f'<input type="range" id="keep" min="0" max="{len(STEPS) - 1}" step="1" value="{at}" '
        f'data-steps=\'{json.dumps(STEPS)}\'><div class="ticks" aria-hidden="true">{ticks}</div></div>'
    )
    listed = "".join(_group(group, chosen, first=i == 0) for i, group in enumerate(groups(own)))
    return (
        f'{slider}<details class="methods-box" open><summary><b>Methods</b> <span class="chosen"></span></summary>'
        f"{listed}</details>"
    )


def _group(group: Group, chosen: Sequence[str], first: bool) -> str:
    rows = "".join(_method(name, name in chosen) for name in group.methods)
    title = escape(group.title)
    return (
        f'<details class="group"{" open" if first else ""}><summary><b>{title}</b> <i class="count"></i>'
        f"<small>{escape(group.sentence)}</small></summary>"
        f'<div role="group" aria-label="{title}">{rows}</div></details>'
    )


def _method(name: str, chosen: bool) -> str:
    info = info_of(name)
    assert info is not None
    box = f'<input type="checkbox" name="{escape(name)}" value="{escape(name)}"{" checked" if chosen else ""}>'
    return (
        f'<label class="method" data-for="{" ".join(info.modality)}">{box}<span><b>{escape(name)}</b> '
        f"<small>{escape(info.summary)}</small></span></label>"
    )
