"""The demo as visitors use it: with a mouse, a keyboard, a phone, at the same time, and with broken files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vtc

pytestmark = pytest.mark.browser
FIRST = ["full", "vtc-cls", "visionzip", "pyramiddrop"]
METHODS = [info.name for info in vtc.list_methods() if "image" in info.modality]
PICTURE = Path(__file__).resolve().parents[2] / "eval" / "data" / "tiny" / "pictures" / "0006.webp"


def test_it_opens_with_answers(pictures, visit):
    visitor = visit(pictures)
    assert visitor.cards() == FIRST
    assert "below" in visitor.card("full").inner_text()
    for method in FIRST[1:]:
        assert "576 → 58" in visitor.card(method).inner_text()
    assert visitor.page.locator("article img").count() == 4
    assert visitor.page.get_by_role("heading", level=1).inner_text() == "vtc"


@pytest.mark.parametrize("first", range(0, len(METHODS), 5))
def test_ask_with_each_method(pictures, visit, first):
    visitor, methods = visit(pictures), METHODS[first : first + 5]
    visitor.choose(*methods)
    for method in methods:
        visitor.until(lambda m=method: visitor.card(m).get_attribute("data-state") == "done", f"{method} to be done")
        text = visitor.card(method).inner_text()
        assert re.search(r"576 → \d+\n", text), text
        assert re.search(r"\d ms", text), text


def test_an_example_is_asked_about_and_streamed(pictures, visit):
    visitor = visit(pictures)
    visitor.page.evaluate("""() => {
        window.seen = new Set();
        const look = () => seen.add(document.querySelector('article[data-method=full] q')?.textContent);
        new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
    }""")
    visitor.page.get_by_role("button", name="Describe the picture.").click()
    visitor.until(
        lambda: visitor.page.get_by_label("Question").input_value() == "Describe the picture.", "the question"
    )
    visitor.said("full", "puzzle")
    visitor.settled()
    end = visitor.card("full").locator("q").inner_text()
    grown = [text for text in visitor.page.evaluate("[...seen]") if text and end.startswith(text)]
    assert len(grown) > 1, grown  # beginnings of the answer; a quick machine shows few of them


def test_a_layer_slider_shows_tokens_leave(pictures, visit):
    visitor = visit(pictures)
    slider, shown = visitor.slider("Decoder layer"), []
    for layer, tokens in ((4, 58), (3, 125), (2, 268), (1, 576)):
        visitor.said("pyramiddrop", f"layer {layer} of 4: {tokens} of 576")
        assert f"layer {layer} of 4: 58 of 576" in visitor.card("vtc-cls").inner_text()
        shown.append(visitor.card("pyramiddrop").locator("img").get_attribute("src"))
        slider.press("ArrowLeft")
    visitor.said("pyramiddrop", "from the vision tower: 576 of 576")
    assert len(set(shown)) == 4


def test_the_budget_slider_answers_by_itself(pictures, visit):
    visitor = visit(pictures)
    for _ in range(5):
        visitor.slider("Keep").press("ArrowRight")
    visitor.said("vtc-cls", "576 → 86")
    visitor.said("pyramiddrop", "576 → 86")
    visitor.settled()


def test_tabs(pictures, visit):
    visitor = visit(pictures)
    for name, expected in (("Numbers", "257 on average"), ("Methods", "arXiv 2403.06764"), ("Side by side", "dropped")):
        tab = visitor.page.get_by_role("tab", name=name)
        tab.click()
        visitor.page.get_by_text(expected).first.wait_for(state="visible")
        assert tab.get_attribute("aria-selected") == "true"


def test_uploads(pictures, visit, tmp_path):
    visitor = visit(pictures)
    error = visitor.page.locator(".notice.error")
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\nnonsense"}
    visitor.upload(broken)
    error.get_by_text("broken.png is truncated or damaged").wait_for()
    assert visitor.cards() == FIRST  # what was there stays
    visitor.upload({"name": "film.mp4", "mimeType": "video/mp4", "buffer": b"no film"})
    error.get_by_text("film.mp4 cannot be read as a video").wait_for()
    (tmp_path / "large.png").write_bytes(b"x" * (21 * 2**20))
    visitor.upload(tmp_path / "large.png")
    visitor.page.get_by_text("maximum allowed size").first.wait_for()
    visitor.upload(PICTURE)
    visitor.page.get_by_text("0006.webp is in place").wait_for()
    assert visitor.cards() == []
    visitor.page.get_by_label("Question").fill("What shape is red?")
    visitor.page.get_by_role("button", name="Ask").click()
    visitor.said("full", "heart")


def test_mistakes_are_sentences(pictures, visit):
    visitor = visit(pictures)
    error = visitor.page.locator(".notice.error")
    visitor.page.get_by_label("Question").fill("")
    visitor.page.get_by_role("button", name="Ask").click()
    error.get_by_text("The question is empty").wait_for()
    visitor.page.get_by_label("Question").fill("What is <image>?")
    visitor.page.get_by_role("button", name="Ask").click()
    error.get_by_text("leave it out").wait_for()
    visitor.tick(*METHODS[:6])
    visitor.page.get_by_label("Question").fill("What is it?")
    visitor.page.get_by_role("button", name="Ask").click()
    error.get_by_text("5 fit side by side: take some away").wait_for()


def test_two_visitors_at_once(pictures, visit):
    one, two = visit(pictures), visit(pictures)
    asked = ((one, ("divprune", "h2o")), (two, ("pool", "fastv", "sparsevlm")))
    for visitor, methods in asked:  # neither waits for the other
        visitor.tick(*methods)
    two.page.get_by_role("button", name="What shape is red?").click()
    one.page.get_by_label("Question").fill("Is there a yellow heart?")
    one.page.get_by_role("button", name="Ask").click()
    for visitor, methods in asked:
        visitor.until(lambda v=visitor, m=methods: sorted(v.cards()) == sorted(["full", *m]), "one's own cards")
        for method in methods:
            visitor.said(method, "576 → 58")
    one.said("full", "no")
    two.said("full", "heart")


def test_a_phone(pictures, visit):
    visitor = visit(pictures, 390, 844, has_touch=True, is_mobile=True, color_scheme="dark")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    visitor.page.get_by_role("button", name="What shape is red?").tap()
    visitor.said("full", "heart")
    visitor.page.get_by_text("todre", exact=True).first.tap()
    visitor.said("todre", "576 → ")
    visitor.card("todre").scroll_into_view_if_needed()
    assert visitor.card("todre").is_visible()
    visitor.page.get_by_role("tab", name="Numbers").tap()
    visitor.page.get_by_text("257 on average").wait_for()
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_keyboard(pictures, visit):
    """Everything from the first example to the answers' tabs, without a mouse."""
    visitor = visit(pictures)
    page, passed = visitor.page, []

    def tab_to(what: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            name = page.evaluate("""() => {
                const it = document.activeElement;
                return [it.title, it.ariaLabel, it.name, it.textContent, it.tagName].filter(Boolean).join(' ');
            }""")
            passed.append(name)
            if what in name:
                return
        raise AssertionError(f"{what!r} cannot be reached: {passed}")

    tab_to("What shape is red?")
    page.keyboard.press("Enter")
    visitor.said("full", "heart")
    tab_to("upload")
    tab_to("TEXTAREA")
    page.keyboard.press("Control+A")
    page.keyboard.type("Which color is the triangle?")
    page.keyboard.press("Enter")
    visitor.said("full", "white")
    tab_to("range slider for Keep")
    page.keyboard.press("ArrowLeft")
    visitor.said("vtc-cls", "576 → 52")
    tab_to("divprune")
    page.keyboard.press("Space")
    visitor.said("divprune", "576 → 52")
    tab_to("Numbers")
    page.keyboard.press("Enter")
    page.get_by_text("on average").first.wait_for(state="visible")


def test_clips(clips, visit, tmp_path):
    pytest.importorskip("av")
    from tests.media.test_video import write

    visitor = visit(clips)
    visitor.page.get_by_label("Model").click()
    visitor.page.get_by_role("option", name="tiny-llava").click()
    visitor.said("full", "below")
    visitor.upload(write(tmp_path / "clip.mp4", 16, (112, 84)))
    visitor.page.get_by_text("tiny-llava does not read clips, so small-qwen answers.").wait_for()
    assert "/" not in visitor.page.get_by_label("Model").input_value()
    visitor.page.get_by_label("Question").fill("what moves ?")
    visitor.choose("evs", "pyramiddrop")
    visitor.said("evs", "0.0 s, layer 3 of 3")
    shown = [visitor.card("evs").locator("img").get_attribute("src")]
    for second in ("0.2", "0.4", "0.6"):
        visitor.slider("Time step").press("ArrowRight")
        visitor.said("evs", f"{second} s, layer")
        shown.append(visitor.card("evs").locator("img").get_attribute("src"))
    assert len(set(shown)) == 4
    visitor.page.get_by_role("button", name="What shape is red?").click()  # back to pictures: evs is not for them
    visitor.until(lambda: visitor.cards() == ["full", "pyramiddrop"], "cards of the picture")
    visitor.until(lambda: not visitor.slider("Time step").is_visible(), "the time slider to go")
