"""What the page is told when something is asked, and when it is refused: never a card beside a sentence of refusal."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")
import gradio as gr

import vtc
from vtc.demos.app import build
from vtc.demos.callbacks import Callbacks
from vtc.demos.examples import shipped_pictures
from vtc.demos.layout import lay_out
from vtc.demos.media import Media
from vtc.demos.settings import write_settings
from vtc.demos.studio import Studio

MODEL = "tiny-llava"
SETTINGS = write_settings(10, ["divprune", "evs", "pyramiddrop"])


@pytest.fixture(scope="module")
def calls():
    studio, items = Studio([MODEL], device="cpu"), shipped_pictures()
    depth = studio.load(MODEL).depth
    with gr.Blocks():
        return Callbacks(studio, lay_out(items, [MODEL], (), depth), items)


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    monkeypatch.setattr("vtc.demos.studio._PATIENCE", 0)


def ask(
    calls, token="example:2", uploaded=None, question="What shape is red?", settings=SETTINGS, visitor="a", order=0
):
    request: Any = SimpleNamespace(session_hash=visitor)
    return list(calls.ask(token, uploaded, MODEL, question, settings, order, request))


def page_after(changes: list[dict]) -> dict:
    """Markup of every part, by the part, as a page would hold it in the end; None where it is not to be seen."""
    page: dict = {}
    for change in changes:
        for part, value in change.items():
            if isinstance(value, gr.HTML):
                page[part] = None if value.visible is False else value.value or page.get(part)
            else:
                page[part] = value
    return page


def refused(calls, changes: list[dict], text: str) -> None:
    page, p = page_after(changes), calls.parts
    assert text in page[p.note]
    assert 'role="alert"' in page[p.note]
    assert [page[part] for part in (*p.slots, p.layer, p.film, p.legend)] == [None] * (len(p.slots) + 3)
    assert page[p.verdict] == ""
    assert "Ask something first" in page[p.numbers]
    assert page[p.view] is None


def test_answers_come_before_their_times(calls):
    changes = ask(calls)
    page, p = page_after(changes), calls.parts
    assert [page[slot] is not None for slot in p.slots] == [True, True, True, False, False, False]  # evs is for clips
    assert "Same answer with 10 %" in page[p.verdict]
    assert "divprune" in page[p.numbers]
    assert page[p.layer] is not None  # pyramiddrop acts inside
    assert [run.state for run in page[p.view].runs] == ["done"] * 3
    states = [
        value for change in changes for part, value in change.items() if part in p.slots and isinstance(value, str)
    ]
    answered = [i for i, card in enumerate(states) if 'data-state="answered"' in card]
    timed = [i for i, card in enumerate(states) if 'data-state="done"' in card]
    assert len(answered) >= 3
    assert min(timed) > min(answered)
    assert {"Copy this as code", "Save picture"} <= set(page[p.slots[1]].replace("<", ">").split(">"))


def test_no_slider_of_layers_where_none_differs(calls):
    page = page_after(ask(calls, settings=write_settings(10, ["divprune"])))
    assert page[calls.parts.layer] is None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (dict(question=""), "The question is empty"),
        (dict(question="What is <image>?"), "leave it out"),
        (
            dict(settings=write_settings(10, [i.name for i in vtc.list_methods() if "image" in i.modality][:6])),
            "6 methods",
        ),
        (dict(settings="?"), "did not arrive: reload the page."),
        (dict(settings=write_settings(0, [])), "A budget of 0.0 % is outside"),
        (dict(token="example:99"), "no longer held here: upload it again."),
        (dict(token=None), "no longer held here: upload it again."),
        (dict(token="gone"), "no longer held here: upload it again."),
        (dict(token="mine", uploaded=Media("another", "b.png", Image.new("RGB", (9, 9)))), "upload it again."),
    ],
)
def test_what_is_refused_leaves_a_sentence_alone(calls, more, says):
    refused(calls, ask(calls, **more), says)


def test_too_little_memory_leaves_a_sentence_alone(calls, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(calls.studio.load(MODEL).model, "generate", fail)
    refused(calls, ask(calls, question="Is there a whale?"), "The device has no memory left for this")


def test_a_method_that_the_model_cannot_feed_says_so_on_its_card(calls, monkeypatch):
    wrapped = vtc.wrapped

    def refuse(model, method, keep):
        if method == "divprune":
            raise ValueError("tiny-llava has no CLS token, which divprune reads: choose another method")
        return wrapped(model, method, keep)

    monkeypatch.setattr(vtc, "wrapped", refuse)
    page, p = page_after(ask(calls, question="Is there a lamp?")), calls.parts
    assert "has no CLS token" in page[p.slots[1]]
    assert 'role="alert"' in page[p.slots[1]]
    assert 'data-state="done"' in page[p.slots[2]]
    assert "pyramiddrop" in page[p.verdict]


def began(calls, question, visitor, order):
    """An answer that has begun."""
    answer = calls.ask("example:2", None, MODEL, question, SETTINGS, order, SimpleNamespace(session_hash=visitor))
    assert next(answer)
    return answer


def wish(calls, question, visitor, order):
    calls.wish("example:2", MODEL, question, SETTINGS, order, SimpleNamespace(session_hash=visitor))


def finished(calls, changes: list[dict]) -> bool:
    return page_after(changes).get(calls.parts.view) is not None


def test_what_is_wished_for_ends_what_was(calls):
    old = began(calls, "Is there a boat?", "b", 1)
    wish(calls, "Is there a cat?", "c", 2)  # somebody else's
    next(old)
    wish(calls, "Is there a cat?", "b", 2)
    assert list(old) == []
    assert finished(calls, ask(calls, question="Is there a cat?", visitor="b", order=3))


def test_what_was_typed_since_the_wish_is_answered(calls):
    wish(calls, "Is there a", "d", 1)
    assert finished(calls, ask(calls, question="Is there a dog?", visitor="d", order=2))


def test_a_question_that_comes_after_the_wish_that_ends_it_is_not_answered(calls):
    wish(calls, "Is there a goat?", "e", 3)
    assert ask(calls, question="Is there a hen?", visitor="e", order=2) == []
    answer = began(calls, "Is there a goat?", "e", 4)
    assert ask(calls, question="Is there a hen?", visitor="e", order=2) == []  # nor does it end the newer one
    assert finished(calls, list(answer))


def test_a_wish_that_comes_after_its_question_ends_nothing_newer(calls):
    answer = began(calls, "Is there a fox?", "f", 4)
    wish(calls, "Is there an owl?", "f", 1)
    assert finished(calls, list(answer))


def test_the_same_wished_for_again_goes_on(calls):
    answer = began(calls, "Is there a pig?", "g", 1)
    wish(calls, "Is there a pig?", "g", 2)
    assert finished(calls, list(answer))


def test_an_upload_takes_the_old_question_along(calls, tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "mine.png")
    changes = calls.upload(str(tmp_path / "mine.png"), MODEL)
    page, p = page_after([changes]), calls.parts
    assert changes[p.question].value == ""
    assert "mine.png is in place: ask about it." in page[p.note]
    assert page[p.slots[0]] is None
    assert page[p.token] == page[p.media].key
    said = page_after(ask(calls, page[p.token], page[p.media], "What?"))
    assert said[p.slots[0]] is not None


def test_a_broken_upload_leaves_a_sentence_alone(calls, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    refused(calls, [calls.upload(str(tmp_path / "broken.png"), MODEL)], "broken.png is truncated or damaged")


@pytest.mark.parametrize("index", [None, -1, 99, "0"])
def test_there_is_no_other_example(calls, index):
    event: Any = SimpleNamespace(_data={"index": index})
    assert calls.pick(event, MODEL) == gr.skip()


@pytest.mark.parametrize("sent", [None, [1], "x", {"name": None, "bytes": "x"}, {"bytes": 10**400}])
def test_what_no_page_sends_breaks_nothing(calls, sent):
    event: Any = SimpleNamespace(_data=sent)
    assert calls.pick(event, MODEL) == gr.skip()
    refused(calls, [calls.too_large(event)], "20 MB is the limit: make it smaller.")


def test_a_closer_look_draws_again(calls):
    view, p = page_after(ask(calls))[calls.parts.view], calls.parts
    first = calls.look(view, "1/4")
    assert list(first) == list(p.slots[:3])
    assert "layer 1 of 4: 576 of 576" in first[p.slots[2]]
    assert "layer 4 of 4: 58 of 576" in calls.look(view, "99/4")[p.slots[2]]
    for nonsense in ("", "x/4", None):
        assert calls.look(view, nonsense) == gr.skip()
    assert calls.look(None, "1/4") == gr.skip()
    assert calls.catch_up(view, MODEL, "4/4", SETTINGS) == gr.skip()
    assert p.go in calls.catch_up(view, MODEL, "4/4", "{}")
    assert p.go in calls.catch_up(replace(view, model="x"), MODEL, "4/4", SETTINGS)


def test_methods_with_options_are_offered_and_ticked(calls, monkeypatch):
    monkeypatch.setattr(calls.studio, "methods", ("todre(mode=kcenter)", "evs(first=0.5)"))
    components = build(calls.studio).config["components"]
    (settings,) = [part["props"] for part in components if "methods-box" in str(part["props"])]
    assert settings["value"] == write_settings(10, ["todre(mode=kcenter)", "evs(first=0.5)"])
    markup = settings["props"]["markup"]
    assert 'value="todre(mode=kcenter)" checked' in markup
    assert 'value="todre"' in markup
