"""The slider and the methods: what stands there, and what comes back from a page, whoever wrote it."""

from __future__ import annotations

import pytest

import vtc
from tests.demos.test_cards import Tree
from vtc.demos.settings import STEPS, markup, offered, read_settings, write_settings
from vtc.demos.words import NOT_BY_SLIDER


def test_settings_come_back_as_they_were():
    assert read_settings(write_settings(25, ["pool", "tome"]), ["tome", "pool"]) == (25, ["pool", "tome"])


def test_what_is_not_offered_is_left_out():
    assert read_settings('{"keep": 5, "methods": ["evs", "pool", "pool", "/etc"]}', offered("image", ())) == (
        5,
        ["pool"],
    )


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"keep": "x", "methods": []}', '{"keep": 1, "methods": 3}', "[1"]
)
def test_what_no_page_wrote_is_one_sentence(text):
    with pytest.raises(ValueError, match=r"^What to keep and which methods to use did not arrive: reload the page\.$"):
        read_settings(text, [])


def test_clips_have_methods_of_their_own():
    assert "evs" in offered("video", ())
    assert "evs" not in offered("image", ())
    assert offered("image", ("todre(mode=kcenter)",))[0] == "todre(mode=kcenter)"


def test_every_method_can_be_chosen():
    tree = Tree(markup(("todre(mode=kcenter)",), ("todre(mode=kcenter)", "pool")))
    boxes = {a["value"]: a for tag, a in tree.tags if tag == "input" and a.get("type") == "checkbox"}
    found = [info for info in vtc.list_methods() if info.name not in NOT_BY_SLIDER and not info.only]
    assert sorted(boxes) == sorted([*(info.name for info in found), "todre(mode=kcenter)"])
    assert [name for name, a in boxes.items() if "checked" in a] == ["todre(mode=kcenter)", "pool"]
    assert STEPS == (1, 2, 5, 10, 25, 50, 75, 100)
    for step in STEPS:
        assert f" {step} " in tree.text
    for info in found:
        assert info.summary in tree.text
