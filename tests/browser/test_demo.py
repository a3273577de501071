"""The demo as visitors use it: with a mouse, a keyboard, a phone, at the same time, and with what goes wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser.conftest import demo
from vtc.demos.settings import offered

pytestmark = pytest.mark.browser
FIRST = ["full", "vtc-cls", "visionzip", "pyramiddrop"]
METHODS = offered("image", [])
PICTURE = Path(__file__).resolve().parents[2] / "eval" / "data" / "tiny" / "pictures" / "0006.webp"
PHONE = dict(width=390, height=844, has_touch=True, is_mobile=True)


def test_it_opens_with_answers(pictures, visit):
    visitor = visit(pictures)
    assert visitor.cards() == FIRST
    assert "below" in visitor.card("full").inner_text()
    for method in FIRST[1:]:
        assert "576 → 58" in visitor.card(method).inner_text()
    assert visitor.page.locator("article img").count() == 4
    assert visitor.page.get_by_role("heading", level=1).inner_text() == "vtc"
    assert re.match(
        r"Same answer with 10 % of the visual tokens(, .* (faster|slower|difference) .*)?: ", visitor.verdict()
    )


@pytest.mark.parametrize("height", [768, 844])
def test_question_and_answer_are_in_sight(pictures, visit, height):
    visitor = visit(pictures, height=height) if height == 768 else visit(pictures, **PHONE)
    for what in ("#question textarea", ".ask button", "#keep", ".verdict", "article[data-method=full] .answer"):
        box = visitor.page.locator(what).bounding_box()
        assert box["y"] + box["height"] <= height, what


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
    question = visitor.page.get_by_label("Question", exact=True)
    visitor.until(lambda: question.input_value() == "Describe the picture.", "the question")
    visitor.said("full", "puzzle")
    visitor.settled()
    end = visitor.card("full").locator("q").inner_text()
    grown = [text for text in visitor.page.evaluate("[...seen]") if text and end.startswith(text)]
    assert len(grown) > 1, grown  # beginnings of the answer; a quick machine shows few of them


def test_a_layer_slider_shows_tokens_leave(pictures, visit):
    """It is there for methods that act inside of the model, and for no others."""
    visitor = visit(pictures)
    slider, shown = visitor.slider("Decoder layer"), []
    for layer, tokens in ((4, 58), (3, 125), (2, 268), (1, 576)):
        visitor.said("pyramiddrop", f"layer {layer} of 4: {tokens} of 576")
        assert f"layer {layer} of 4: 58 of 576" in visitor.card("vtc-cls").inner_text()
        shown.append(visitor.card("pyramiddrop").locator("img").get_attribute("src"))
        slider.press("ArrowLeft")
    visitor.said("pyramiddrop", "from the vision tower: 576 of 576")
    assert len(set(shown)) == 4
    visitor.choose("vtc-cls")
    visitor.until(lambda: not slider.is_visible(), "the slider of layers to go")


def test_what_to_keep_has_steps(pictures, visit):
    visitor = visit(pictures)
    visitor.page.locator("#keep").press("ArrowRight")
    visitor.said("vtc-cls", "576 → 144")
    visitor.said("pyramiddrop", "576 → 144")
    assert visitor.page.locator("#keep").get_attribute("aria-valuetext") == "25 %"
    visitor.keep(100)
    visitor.said("vtc-cls", "576 → 576")
    visitor.settled()


def test_what_nobody_waits_for_any_more_ends(pictures, visit):
    """Another wish does not wait until the last one has been measured; the page numbers what it sends."""
    visitor, sent = visit(pictures), []
    visitor.page.on("request", lambda asked: sent.append(asked) if "/queue/join" in asked.url else None)
    visitor.tick("vtc-cls", "divprune", "todre", "pool", "fastv")
    for percent in (1, 2, 5, 25, 50):
        visitor.keep(percent)
    visitor.said("fastv", "576 → 288")
    visitor.settled()
    assert all("576 → 288" in visitor.card(method).inner_text() for method in visitor.chosen())
    last = [asked.post_data_json["data"][-1:] for asked in sent]
    numbers = [value for values in last for value in values if isinstance(value, int)]
    assert len(numbers) > 5
    assert numbers == sorted(set(numbers))


def test_a_card_turns_over(pictures, visit):
    visitor = visit(pictures)
    card = visitor.card("vtc-cls").locator(".flip")
    original = visitor.card("full").locator("img").get_attribute("src")
    sources = "all => all.map(img => img.src)"
    kept = card.locator("img").evaluate_all(sources)
    card.click()
    assert card.get_attribute("aria-pressed") == "true"
    assert card.locator("img").evaluate_all(sources) == [*kept, original]
    card.click()
    assert card.get_attribute("aria-pressed") == "false"
    assert card.locator("img").evaluate_all(sources) == kept


def test_an_answer_is_copied_as_code_and_its_picture_saved(pictures, visit, tmp_path):
    visitor = visit(pictures, permissions=["clipboard-read", "clipboard-write"])
    card = visitor.card("vtc-cls")
    card.get_by_role("button", name="Copy this as code").click()
    visitor.page.get_by_text("Copied.").wait_for()
    code = visitor.page.evaluate("navigator.clipboard.readText()")
    (tmp_path / "pasted.py").write_text(code)
    ran = subprocess.run([sys.executable, "pasted.py"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == card.locator("q").inner_text(), ran.stderr
    with visitor.page.expect_download() as download:
        card.get_by_role("button", name="Save picture").click()
    assert download.value.suggested_filename == "0001-vtc-cls-10.webp"
    assert Path(download.value.path()).read_bytes()[8:12] == b"WEBP"


def test_tabs(pictures, visit):
    visitor = visit(pictures)
    for name, expected in (("Numbers", "257 on average"), ("Methods", "arXiv 2403.06764"), ("Side by side", "dropped")):
        tab = visitor.page.get_by_role("tab", name=name)
        tab.click()
        visitor.page.get_by_text(expected).first.wait_for(state="visible")
        assert tab.get_attribute("aria-selected") == "true"


def test_uploads(pictures, visit, tmp_path):
    visitor = visit(pictures)
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\nnonsense"}
    visitor.upload(broken)
    visitor.refused("broken.png is truncated or damaged")
    visitor.upload({"name": "film.mp4", "mimeType": "video/mp4", "buffer": b"no film"})
    visitor.refused("film.mp4 cannot be read as a video")
    (tmp_path / "large.png").write_bytes(b"x" * (21 * 2**20))
    visitor.upload(tmp_path / "large.png")
    visitor.refused("large.png has 21 MB, and 20 MB is the limit: make it smaller.")
    visitor.upload(PICTURE)
    visitor.page.get_by_text("0006.webp is in place").wait_for()
    assert visitor.cards() == []
    assert visitor.page.get_by_label("Question", exact=True).input_value() == ""
    visitor.until(lambda: visitor.page.evaluate("document.activeElement.tagName") == "TEXTAREA", "the cursor")
    visitor.ask("What shape is red?")
    visitor.said("full", "heart")


def test_mistakes_are_sentences(pictures, visit):
    visitor = visit(pictures)
    visitor.ask("")
    visitor.refused("The question is empty")
    visitor.ask("What is <image>?")
    visitor.refused("leave it out")
    visitor.tick(*METHODS[:6])
    visitor.ask("What is it?")
    visitor.refused("5 fit side by side: take some away")
    visitor.choose("divprune")  # all is well again
    assert visitor.page.locator(".notice.error:visible").count() == 0


def test_two_visitors_at_once(pictures, visit):
    one, two = visit(pictures), visit(pictures)
    asked = ((one, ("divprune", "h2o")), (two, ("pool", "fastv", "sparsevlm")))
    for visitor, methods in asked:  # neither waits for the other
        visitor.tick(*methods)
    two.page.get_by_role("button", name="What shape is red?").click()
    one.ask("Is there a yellow heart?")
    for visitor, methods in asked:
        visitor.until(lambda v=visitor, m=methods: sorted(v.cards()) == sorted(["full", *m]), "one's own cards")
        for method in methods:
            visitor.said(method, "576 → 58")
    one.said("full", "no")
    two.said("full", "heart")


def test_two_tabs_of_one_visitor(pictures, visit):
    one = visit(pictures)
    two = visit(pictures, beside=one)
    one.upload(PICTURE)
    one.page.get_by_text("0006.webp is in place").wait_for()
    one.ask("What shape is red?")
    two.ask("Is there a heart?")  # about the example that it shows
    one.said("full", "heart")
    two.settled()
    assert two.card("full").locator("q").inner_text() == "no"


def test_a_dropped_connection(pictures, visit):
    visitor = visit(pictures)
    lost, answers = visitor.page.locator("#vtc-lost"), visitor.page.locator("article .answer:visible, .verdict:visible")
    assert answers.count() == 5
    visitor.context.set_offline(True)
    visitor.ask("What word is printed?")
    lost.get_by_text("The connection to the demo was lost").wait_for()
    visitor.until(lambda: answers.count() == 0, "answers to the question of before to go")
    visitor.context.set_offline(False)
    visitor.until(lambda: not lost.is_visible(), "the sentence to go")
    visitor.ask("What word is printed?")
    visitor.settled()
    visitor.until(lambda: answers.count() == 5, "answers")


def test_a_full_line_says_so(pictures, visit):
    """In place of the answers to the question of before, until something is asked that is let in."""
    visitor, told = visit(pictures), "24 questions from this address are in line already: wait for an answer."
    sentence, answers = visitor.page.locator("#vtc-lost"), visitor.page.locator("article .answer:visible")
    visitor.page.route("**/queue/join*", lambda route: route.fulfill(status=429, json={"detail": told}))
    visitor.ask("What word is printed?")
    sentence.get_by_text(told).wait_for()
    visitor.until(lambda: answers.count() == 0, "answers to the question of before to go")
    visitor.page.unroute("**/queue/join*")
    visitor.ask("Is there a yellow heart?")
    visitor.until(lambda: answers.count() == 4, "answers")
    visitor.said("full", "no")
    assert not sentence.is_visible()
    visitor.settled()


def test_a_demo_that_has_ended_says_so(visit):
    """In the middle of an answer."""
    with demo() as address:
        visitor = visit(address)
        visitor.ask("Describe the picture.")
        visitor.page.locator("article[aria-busy=true]").first.wait_for()
    visitor.page.get_by_text("The connection to the demo was lost").wait_for()
    visitor.until(lambda: visitor.page.locator("article[aria-busy=true]").count() == 0, "nobody to wait for more")
    visitor.page.goto("about:blank")  # gradio's own parts hold that something broke, as it did


def test_a_phone(pictures, visit):
    visitor = visit(pictures, **PHONE, color_scheme="dark")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    visitor.page.get_by_role("button", name="What shape is red?").tap()
    visitor.said("full", "heart")
    visitor.until(lambda: visitor.page.locator("#results").bounding_box()["y"] < 100, "the page to go to the answer")
    visitor.tick("todre", "pyramiddrop")
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
                return [it.title, it.ariaLabel, it.id, it.name, it.textContent, it.tagName].filter(Boolean).join(' ');
            }""")
            passed.append(name)
            if what in name:
                return
        raise AssertionError(f"{what!r} cannot be reached: {passed}")

    tab_to("What shape is red?")
    page.keyboard.press("Enter")
    visitor.said("full", "heart")
    tab_to("Upload")
    tab_to("TEXTAREA")
    page.keyboard.press("Control+A")
    page.keyboard.type("Which color is the triangle?")
    page.keyboard.press("Enter")
    visitor.said("full", "white")
    tab_to("keep")
    page.keyboard.press("ArrowLeft")
    visitor.said("vtc-cls", "576 → 29")
    tab_to("divprune")
    page.keyboard.press("Space")
    visitor.said("divprune", "576 → 29")
    tab_to("Before the language model")
    page.keyboard.press("Enter")
    tab_to("pool")
    tab_to("Numbers")
    page.keyboard.press("Enter")
    page.get_by_text("on average").first.wait_for(state="visible")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [dict(width=1366, height=768), PHONE], ids=["1366", "390"])
def test_nothing_bars_anybody(pictures, clips, visit, window, scheme):
    """axe-core finds nothing serious: with answers, with all groups open, with a refusal, in each tab, with a clip."""
    visitor = visit(pictures, **window, color_scheme=scheme)
    assert visitor.barriers() == []
    visitor.tick(*visitor.chosen())  # opens all groups
    visitor.ask("")
    visitor.refused("The question is empty")
    assert visitor.barriers() == []
    visitor.ask("What shape is red?")
    visitor.settled()
    for tab in ("Numbers", "Methods"):
        visitor.page.get_by_role("tab", name=tab).click()
        assert visitor.barriers() == [], tab
    film = visit(clips, **window, color_scheme=scheme)
    film.page.locator(".examples button", has_text="clip").first.click()
    film.until(lambda: film.page.locator(".film[data-steps]").count() > 0, "a clip on the cards")
    film.settled()
    assert film.barriers() == []


def test_clips(clips, visit, tmp_path):
    pytest.importorskip("av")
    from tests.media.test_video import write

    visitor = visit(clips)
    visitor.page.get_by_label("Model", exact=True).click()
    visitor.page.get_by_role("option", name="tiny-llava").click()
    visitor.said("full", "below")
    visitor.upload(write(tmp_path / "clip.mp4", 16, (112, 84)))
    visitor.page.get_by_text("tiny-llava does not read clips, so small-qwen answers.").wait_for()
    assert "/" not in visitor.page.get_by_label("Model", exact=True).input_value()
    visitor.page.get_by_label("Question", exact=True).fill("what moves ?")
    visitor.choose("evs", "pyramiddrop")
    visitor.said("evs", "layer 3 of 3")
    visitor.page.get_by_role("button", name="Pause").click()
    bar, said = visitor.page.get_by_label("Time step"), []
    bar.fill("0")
    film = visitor.card("evs").locator(".film img")
    places = []
    for second in ("0.0", "0.2", "0.4", "0.6"):
        visitor.said("evs", f"{second} s: ")
        said.append(visitor.card("evs").locator("figcaption").inner_text())
        places.append(film.bounding_box()["x"])
        bar.press("ArrowRight")
    assert len(set(said)) == 4
    assert places == sorted(places, reverse=True)  # the strip moves on
    assert len(set(places)) == 4
    visitor.page.get_by_role("button", name="What shape is red?").click()  # back to pictures: evs is not for them
    visitor.until(lambda: visitor.cards() == ["full", "pyramiddrop"], "cards of the picture")
    visitor.until(lambda: not bar.is_visible(), "the bar of time steps to go")


def test_a_clip_plays(clips, visit):
    visitor = visit(clips)
    visitor.page.locator(".examples button", has_text="clip").first.click()
    visitor.until(lambda: visitor.page.locator(".film[data-steps]").count() > 0, "a clip on the cards")
    seen = set()
    visitor.until(lambda: seen.add(visitor.page.get_by_label("Time step").input_value()) or len(seen) > 2, "it to play")
    still = visit(clips, reduced_motion="reduce")
    still.page.locator(".examples button", has_text="clip").first.click()
    still.page.get_by_role("button", name="Play").wait_for()
