"""The page's own HTML: numbers as measured, names escaped, every method listed."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

import vtc
from vtc.demos import cards
from vtc.demos.media import Media
from vtc.demos.studio import Run
from vtc.demos.words import WHERE, stage_of
from vtc.speedup import SpeedUp

VOID = {"img", "br", "input"}


class Tree(HTMLParser):
    """Fails on tags that do not nest; keeps text and attributes."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.text, self.tags = "", []
        self.feed(markup)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


@pytest.fixture(scope="module")
def runs():
    model, processor = vtc.load(device="cpu")
    picture = Image.new("RGB", (336, 336), "red")
    inputs = vtc.prepare(processor, "What is it?", [picture])
    found = []
    for method, keep in (("random", 1.0), ("divprune", 0.1), ("pyramiddrop", 0.1), ("h2o", 0.25)):
        with vtc.wrapped(model, method, keep):
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
            speed = SpeedUp(2.0, 1.8, 2.1)
            found.append(Run(method, keep, "done", "a <b>star</b>", 0.1, speed, vtc.report(model), 0.2))
    return [replace(found[0], method=None, seconds=0.2, speed=None, whole_seconds=None), *found[1:]]


def card(run, base, layer=4, **more):
    return Tree(cards.card(run, base, Image.new("RGB", (48, 48)), (48, 48), layer, **more))


def test_a_card_says_what_was_measured(runs):
    tree = card(runs[1], runs[0])
    for expected in (
        "divprune",
        "before the LLM",
        "576 → 58",
        "layer 4 of 4: 58 of 576",
        "200 → 100 ms  2.0× faster (1.8–2.1)",
    ):
        assert expected in tree.text
    assert "a <b>star</b>" in tree.text  # escaped
    assert "same answer" in tree.text
    assert tree.text.index("same answer") < tree.text.index("576 → 58")
    full, kept = runs[1].report.flops
    assert f"{full / kept:.1f}× less" in tree.text
    assert "another answer" in card(replace(runs[1], text="no"), runs[0]).text
    assert "2.0× slower (1.2–2.5)" in card(replace(runs[1], speed=SpeedUp(0.5, 0.4, 0.8)), runs[0]).text
    for unsure in (SpeedUp(3.0, 0.9, 4.0), None):  # the other medians may say what they like
        assert not re.search("faster|slower", card(replace(runs[1], speed=unsure), runs[0]).text)


def test_tokens_leave_layer_by_layer(runs):
    said = [card(runs[2], runs[0], layer).text for layer in range(5)]
    for text, tokens in zip(said, (576, 576, 268, 125, 58), strict=True):
        assert f": {tokens} of 576 tokens" in text
    assert "from the vision tower" in said[0]
    assert "layer 1 of 4: 144 of 576" in card(runs[3], runs[0], 1).text  # the cache


def test_cards_on_the_way(runs):
    waiting = Tree(cards.card(Run("divprune", 0.1), None, None, (400, 300), 0))
    assert "waiting for its turn" in waiting.text
    assert ("article", "true") in [(tag, a.get("aria-busy")) for tag, a in waiting.tags if tag == "article"]
    failed = Tree(cards.card(Run("divprune", 0.1, "failed", "It <i>broke</i>."), None, None, (4, 3), 0))
    assert "It <i>broke</i>." in failed.text
    assert any(a.get("role") == "alert" for _, a in failed.tags)
    base = card(runs[0], runs[0])
    assert "All tokens" in base.text
    assert "uncompressed" in base.text


def test_pictures_have_words(runs):
    tree = card(runs[1], runs[0])
    (picture,) = [a for tag, a in tree.tags if tag == "img"]
    assert picture["alt"] == "divprune, layer 4 of 4: 58 of 576 tokens"
    assert picture["src"].startswith("data:image/webp;base64,")


def test_cards_turn_over_and_can_be_taken_away(runs):
    tree = card(runs[1], runs[0], code='print("<i>")', save_as="a.webp")
    buttons = {a["class"]: a for tag, a in tree.tags if tag == "button"}
    assert buttons["flip"]["aria-pressed"] == "false"
    assert buttons["copy"]["data-code"] == 'print("<i>")'
    assert buttons["save"]["data-name"] == "a.webp"
    assert "flip" not in {a["class"] for tag, a in card(runs[0], runs[0]).tags if tag == "button"}  # is the original


def test_the_table(runs):
    tree = Tree(cards.table(runs))
    for expected in ("all visual tokens", "257 on average", "576 → 268 → 125 → 58", "144 on average"):
        assert expected in tree.text
    assert "Ask something first" in Tree(cards.table([])).text


def test_a_note_names_its_method_once(runs):
    noted = replace(runs[1], report=replace(runs[1].report, notes=["divprune: looks away", "no CLS token"]))
    text = Tree(cards.table([runs[0], noted])).text
    assert "divprune: looks away" in text
    assert "divprune: no CLS token" in text
    assert "divprune: divprune" not in text


def test_every_method_is_listed():
    tree = Tree(cards.method_list())
    for info in vtc.list_methods():
        assert info.name in tree.text
        assert stage_of(info) in WHERE


def test_names_are_escaped():
    media = Media("", '<img src=x onerror="alert(1)">.png', Image.new("RGB", (9, 9)))
    for markup in (cards.preview(media), cards.examples([(media, '"><script>')], 0), cards.notice("error", media.name)):
        tree = Tree(markup)
        assert not any("onerror" in a or tag == "script" for tag, a in tree.tags)
