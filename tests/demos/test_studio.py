"""Answers of the studio: streamed, remembered, kept apart from each other, and refused in a sentence."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch

import vtc
from tests.small_qwen import save
from vtc.api import ATTRIBUTE
from vtc.demos import cards
from vtc.demos.draw import drawn, held_by_step, plain, seconds
from vtc.demos.examples import shipped_pictures
from vtc.demos.studio import Recent, Run, Studio

MODEL = "tiny-llava"


@pytest.fixture(scope="module")
def studio():
    studio = Studio([MODEL], device="cpu")
    studio.load(MODEL)
    return studio


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    """Answers are measured once: most of these tests are not about time."""
    monkeypatch.setattr("vtc.demos.studio._PATIENCE", 0)


@pytest.fixture(scope="module")
def heart():
    return next(media for media, question in shipped_pictures() if question == "What shape is red?")


def last(studio, media, question="What shape is red?", method=None, keep=1.0, model=MODEL) -> Run:
    return list(studio.answer(model, media, question, method, keep))[-1]


def test_a_smaller_picture_is_shown_before_the_processor(heart):
    """Of a model whose grid follows the picture; its numbers stand beside those of the whole picture."""
    studio = Studio(["tiny-qwen"], device="cpu")
    full = last(studio, heart, model="tiny-qwen")
    run = last(studio, heart, method="downsample", keep=0.25, model="tiny-qwen")
    assert run.state == "done", run.text
    assert run.report is not None
    assert full.report is not None
    assert run.shown is not None
    loaded = studio.load("tiny-qwen")
    small = vtc.downsample(heart.still, loaded.processor, 0.25)
    inputs = vtc.prepare(loaded.processor, "What shape is red?", [small.media], **small.options)
    ids = loaded.model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert run.text == loaded.processor.batch_decode([ids], skip_special_tokens=True)[0].strip()
    assert (run.report.tokens_in, run.report.tokens_out) == (small.whole, small.tokens)
    assert run.report.flops[0] == full.report.flops[0] > run.report.flops[1]
    assert run.report.kv_bytes[0] == full.report.kv_bytes[0] > run.report.kv_bytes[1]
    assert run.report.notes == [small.note]
    assert f"layer 1 of {run.depth}: {small.tokens} of {small.whole}" in cards.card(
        run, full, drawn(heart, loaded.processor, run, 1), (1, 1), 1
    )
    assert run.shown.still.size == small.media.size


def test_an_answer_grows_and_ends_with_its_numbers(studio, heart):
    runs = list(studio.answer(MODEL, heart, "Describe the picture.", None))
    assert [run.state for run in (runs[0], runs[1], runs[-1])] == ["waiting", "running", "done"]
    assert [run.busy for run in (runs[0], runs[1], runs[-1])] == [True, True, False]
    texts = [run.text for run in runs[1:]]
    assert len(texts) > 3
    assert all(after.startswith(before) for before, after in pairwise(texts))
    end = runs[-1]
    assert end.seconds is not None
    assert end.seconds > 0
    assert end.report is not None
    assert end.report.tokens_in == end.report.tokens_out == 576
    assert end.report.flops[0] == end.report.flops[1] > 0


ACTING = ["pixelprune", "zerotprune", "tome(stage=encoder)", "vtc-cls", "visionzip", "pyramiddrop", "mustdrop", "h2o"]


@pytest.mark.parametrize("method", ACTING)
def test_methods_answer_as_without_the_studio(studio, heart, method):
    run = last(studio, heart, method=method, keep=0.2)
    assert run.state == "done", run.text
    model, processor = vtc.load(MODEL, device="cpu")
    inputs = vtc.prepare(processor, "What shape is red?", [heart.still])
    with vtc.wrapped(model, method, 0.2):
        ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert run.text == processor.batch_decode([ids], skip_special_tokens=True)[0].strip()
        assert run.report is not None
        assert run.report.as_dict()["spans"] == vtc.report(model).as_dict()["spans"]
    assert drawn(heart, processor, run, run.depth).size == plain(heart, processor).size


def test_a_method_with_options_has_a_look_of_its_own(studio, heart):
    """`pivot=center` asks the vision tower for less than the plain method does."""
    for method in ("todre(pivot=center)", "todre", "todre(mode=kcenter)"):
        run = last(studio, heart, "What is red?", method, 0.2)
        assert run.state == "done", run.text
        assert run.method == method


def test_another_budget_does_not_look_at_the_picture_again(studio, heart, monkeypatch):
    """To answer; to measure, it does."""
    seen, encode = [], vtc.encode
    monkeypatch.setattr(vtc, "encode", lambda *given, **more: seen.append(given) or encode(*given, **more))
    studio.load(MODEL).encoded.clear()
    runs = [last(studio, heart, "Is there a heart?", "vtc-cls", keep) for keep in (0.3, 0.1, 0.5)]
    assert [run.tokens(0) for run in runs] == [173, 58, 288]
    assert len(seen) == 1


def test_every_method_finds_what_it_reads_of_a_picture_that_others_have_seen(studio, heart):
    """Methods of like needs may read other layers, and other numbers at another budget."""
    methods = ["vtc-cls", "hired", "globalcom2", "recoverable", "mustdrop", "visiondrop", "vflowopt"]
    for method, keep in [*((name, 0.1) for name in methods), ("vflowopt", 0.5)]:
        run = last(studio, heart, method=method, keep=keep)
        assert run.state == "done", (method, run.text)


def test_a_method_takes_turns_with_all_tokens(studio, heart, monkeypatch):
    """However long the uncompressed answer took before, and whatever a method's first run costs."""
    seconds, calls = {False: 0.4, True: 0.1}, []

    def first_token(model, inputs, wrapped=nullcontext):
        with wrapped():
            at_work = hasattr(model, ATTRIBUTE)
        calls.append(at_work)
        return 60.0 if len(calls) == 2 else seconds[at_work]

    monkeypatch.setattr("vtc.demos.studio._PATIENCE", 4)
    monkeypatch.setattr("vtc.demos.studio.first_token", first_token)
    run = last(studio, heart, "Is there a circle?", "divprune", 0.1)
    assert str(run.speed) == "4.0× faster (4.0–4.0)"
    assert run.seconds == 0.1
    assert calls[:6] == [False, True, False, True, True, False]
    seconds[False] = 0.1
    assert str(last(studio, heart, "Is there a square?", "divprune", 0.1).speed) == "no clear difference"
    assert last(studio, heart, "Is there a square?").speed is None


def test_an_answer_can_be_had_before_it_is_timed(studio, heart, monkeypatch):
    begun = []
    monkeypatch.setattr("vtc.demos.studio.first_token", lambda *_, **__: begun.append(1) or 0.5)
    answered = list(studio.answer(MODEL, heart, "Is there a sun?", "divprune", 0.1, timed=False))[-1]
    assert (answered.state, answered.seconds, answered.tokens(0)) == ("answered", None, 58)
    assert answered.busy
    assert not begun
    after = list(studio.answer(MODEL, heart, "Is there a sun?", "divprune", 0.1))
    assert after[0] == answered
    assert (after[-1].state, after[-1].seconds, after[-1].text) == ("done", 0.5, answered.text)
    assert begun
    assert list(studio.answer(MODEL, heart, "Is there a sun?", "divprune", 0.1, timed=False)) == [after[-1]]


def test_a_known_answer_comes_at_once(studio, heart):
    first = last(studio, heart, method="divprune", keep=0.1)
    assert list(studio.answer(MODEL, heart, "What shape is red? ", "divprune", 0.1)) == [first]


def test_visitors_do_not_see_each_others_compression(studio, heart):
    """Four at once, each with a method of their own, get what they would get alone; the model ends up bare."""
    wanted = {"vtc-cls": 0.11, "pool": 0.12, "pyramiddrop": 0.13, "h2o": 0.14, None: 1.0}
    got: dict[str | None, list[Run]] = {method: [] for method in wanted}

    def ask(method: str | None, keep: float) -> None:
        for question in ("What color is the heart?", "How many hearts are there?"):
            got[method].append(last(studio, heart, question, method, keep))

    threads = [threading.Thread(target=ask, args=item) for item in wanted.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for method, runs in got.items():
        for run in runs:
            assert run.state == "done", run.text
            assert run.report is not None
            assert {stage.name for stage in run.report.stages} == {method or "random"}
            expected = 576 if method is None else round(576 * wanted[method])
            assert run.tokens(run.depth - 1) == pytest.approx(expected, abs=1)
    model = studio.load(MODEL).model
    assert ATTRIBUTE not in model.__dict__
    assert not model._forward_pre_hooks


def test_who_leaves_stops_the_answer(studio, heart, monkeypatch):
    monkeypatch.setattr("vtc.demos.studio.MAX_NEW_TOKENS", 2000)
    settings = studio.load(MODEL).model.generation_config
    before, settings.eos_token_id = settings.eos_token_id, -1  # never ends by itself
    try:
        answer = studio.answer(MODEL, heart, "Describe the picture.", "divprune", 0.05)
        while next(answer).state != "running":
            pass
        answer.close()
        start = time.monotonic()
        assert last(studio, heart, "What shape is red?", "pool", 0.05).state == "done"
        assert time.monotonic() - start < 20  # 2,000 tokens take longer
    finally:
        settings.eos_token_id = before
    assert "divprune" not in {key[3] for key in studio._answers if key[2] == "Describe the picture."}


@pytest.mark.parametrize(
    ("question", "method", "says"),
    [
        ("", None, "The question is empty: ask something."),
        ("What is <image>?", "divprune", "leave it out"),
        ("What?", "divprone", "Did you mean 'divprune'"),
    ],
)
def test_mistakes_end_as_a_sentence(studio, heart, question, method, says):
    run = last(studio, heart, question, method, 0.5)
    assert run.state == "failed"
    assert says in run.text
    assert run.text.endswith((".", "?"))


def test_a_mistake_of_ours_ends_as_a_sentence_too(studio, heart, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(vtc, "prepare", fail)
    run = last(studio, heart, "Is there a star?", None)
    assert run.state == "failed"
    assert "a mistake in the demo, not yours (ZeroDivisionError)" in run.text


def test_clips(tmp_path):
    pytest.importorskip("av")
    from tests.media.test_video import write
    from vtc.demos.media import load_media

    folder = save(tmp_path / "small-qwen")
    studio = Studio([str(folder), MODEL], device="cpu")
    assert studio.names == ["small-qwen", MODEL]  # no path of this machine
    film = load_media(write(tmp_path / "a.mp4", 16, (112, 84)))
    run = last(studio, film, "what moves ?", "evs", 0.5, "small-qwen")
    assert run.report is not None, run.text
    assert run.report.spans[0].grid[0] == 8
    processor = studio.load("small-qwen").processor
    strip, bare = drawn(film, processor, run, run.depth), plain(film, processor, 8)
    assert strip.size == bare.size == (8 * 320, 240)
    frames = [strip.crop((320 * step, 0, 320 * step + 320, 240)).tobytes() for step in range(8)]
    assert len(set(frames)) == 8
    assert seconds(film, run)[:4] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    (span,) = run.report.spans
    expected = [0] * 8
    for index in span.kept.tolist():
        expected[index // (span.grid[1] * span.grid[2])] += 1
    assert held_by_step(run, run.depth) == expected
    assert held_by_step(run, 0) == [span.grid[1] * span.grid[2]] * 8
    assert drawn(film, processor, run, 0).tobytes() == bare.tobytes()
    assert studio.load("small-qwen").reads_clips
    assert not studio.load(MODEL).reads_clips
    assert "does not read videos" in last(studio, film, model=MODEL).text


def test_of_two_models_with_one_name_the_first_is_meant(tmp_path):
    mine = save(tmp_path / "tiny-llava")
    assert Studio([str(mine), MODEL], device="cpu").load(MODEL).reads_clips


def test_an_unknown_model_is_refused(studio, heart):
    with pytest.raises(ValueError, match="there is no model '/etc' here; there are: tiny-llava"):
        studio.load("/etc")


def test_recent_forgets_what_was_used_longest_ago():
    recent: Recent[int] = Recent(2)
    assert [recent.fetch(key, lambda: len(recent)) for key in "abacb"] == [0, 1, 0, 2, 2]
    assert list(recent) == ["c", "b"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_too_little_memory_is_a_sentence(studio, heart, monkeypatch, error):
    """And what was held for later is given back."""

    def fail(*_, **__):
        raise error

    loaded, question = studio.load(MODEL), f"Is there a cone, {type(error).__name__}?"
    last(studio, heart, question)
    assert loaded.encoded
    monkeypatch.setattr(loaded.model, "generate", fail)
    run = last(studio, heart, question, "random", 0.5)
    assert run.text == ("The device has no memory left for this: take a smaller picture, or keep fewer tokens.")
    assert not loaded.encoded


def test_what_is_remembered_has_a_weight():
    recent: Recent[int] = Recent(9, most=10, weigh=lambda value: value)
    for value in (1, 4, 6):
        recent.put(value, value)
    assert list(recent) == [4, 6]
    recent.put(12, 12)  # the last one stays, whatever it weighs
    assert list(recent) == [12]
