"""Every question gets the answer that it gets alone, whatever the batch, the memory, or the question beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

import vtc
from tests.eval.runs import TINY, few
from tests.small_qwen import save
from vtc.eval import answer, compare, runner, table
from vtc.eval.settings import Settings


@pytest.fixture(scope="module")
def tiny():
    return vtc.load("tiny-llava", device="cpu")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    return Settings(
        data=str(few(folder, 6)), methods=("divprune", "fastv"), keep=(64,), blind=True, batch_size=4, timing=1,
        max_new_tokens=8, out=str(folder / "out"), device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcome(settings, tiny):
    return evaluate(settings, tiny)


def evaluate(settings, tiny, **more):
    return runner.evaluate(settings, load=lambda *args, **options: tiny, **more)


def samples(outcome, name):
    path = next(run for run in outcome.runs if run.name == name)
    return [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]


def metrics(outcome, name):
    return json.loads((next(run for run in outcome.runs if run.name == name) / "metrics.json").read_text())


NAMES = ("full", "blind", "random@64", "downsample@64", "divprune@64", "fastv@64")


def test_folders_and_counts(outcome):
    assert [run.name for run in outcome.runs] == list(NAMES)
    assert outcome.broken == {}
    for name in NAMES:
        lines = samples(outcome, name)
        assert len(lines) == 6
        assert {line["tokens_in"] for line in lines} == {576}
        assert {line["tokens_out"] for line in lines} == {64 if name[:4] in ("rand", "divp", "fast") else 576}
        found = metrics(outcome, name)
        assert found["accuracy"]["mean"] == pytest.approx(sum(line["score"] for line in lines) / 6)
        assert found["tokens"]["out"] == lines[0]["tokens_out"]


def test_answers_are_those_of_each_question_alone(outcome, settings, tiny):
    model, processor = tiny
    for name, method in (("full", None), ("divprune@64", "divprune"), ("fastv@64", "fastv")):
        for line in samples(outcome, name)[::2]:
            text = vtc.prompt(processor, line["question"])
            inputs = processor(text=[text], images=[[vtc.load_picture(line["media"])]], return_tensors="pt")
            if method:
                vtc.wrap(model, method, 64)
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
            vtc.unwrap(model)
            said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
            assert line["answer"] == said, (name, line)


def test_costs_agree_with_the_report(outcome):
    for full, random, fastv in zip(*(samples(outcome, n) for n in ("full", "random@64", "fastv@64")), strict=True):
        assert full["flops"][0] == full["flops"][1] == random["flops"][0]
        assert full["kv_bytes"][0] == full["kv_bytes"][1] == random["kv_bytes"][0]
        assert random["flops"][1] < fastv["flops"][1] < full["flops"][1]
        assert random["tokens_mean"] == 64 < fastv["tokens_mean"] < 576


def test_a_fixed_grid_is_shown_a_smaller_picture_at_full_cost(outcome, tiny):
    model, processor = tiny
    for line in samples(outcome, "downsample@64"):
        small = vtc.load_picture(line["media"]).resize((112, 112), Image.Resampling.BICUBIC)
        inputs = vtc.prepare(processor, line["question"], [small])
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
        assert line["answer"] == said
        assert line["full_cost"] is True
        assert line["flops"][0] == line["flops"][1]
    (row,) = [row for row in compare.load(outcome.runs)[0].rows if row.label.startswith("downsample")]
    assert row.name == "downsample †"
    assert "†: the picture was made smaller" in table.caption(compare.load(outcome.runs)[0])


def test_grids_that_follow_the_picture_cost_less(tmp_path):
    """Answers, tokens and costs are those of the small picture alone."""
    model, processor = vtc.load("tiny-qwen", device="cpu")
    data = few(tmp_path, 2)
    settings = Settings(
        data=str(data), models=("tiny-qwen",), methods=("random",), keep=(64,), batch_size=8, timing=1,
        max_new_tokens=4, out=str(tmp_path / "out"), device="cpu",
    )  # fmt: skip
    outcome = evaluate(settings, (model, processor))
    for line, other in zip(samples(outcome, "downsample@64"), samples(outcome, "random@64"), strict=True):
        small = vtc.downsample(vtc.load_picture(line["media"]), processor, 64)
        inputs = vtc.prepare(processor, line["question"], [small.media], **small.options)
        with vtc.wrapped(model, "random", 1.0):
            out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            report = vtc.report(model)
        said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
        assert line["answer"] == said
        assert (line["tokens_in"], line["tokens_out"]) == (small.whole, small.tokens)
        assert (line["flops"][1], line["kv_bytes"][1]) == (report.flops[1], report.kv_bytes[1])
        assert (line["flops"][0], line["kv_bytes"][0]) == (other["flops"][0], other["kv_bytes"][0])
        assert "full_cost" not in line
    faster, full = (metrics(outcome, name)["timing"]["ttft_ms"] for name in ("downsample@64", "full"))
    assert faster < full  # the vision tower is spared, too


def test_methods_before_the_tower_are_given_pixels(tmp_path):
    """The others share what the tower has made of the whole pictures; answers are those of `generate`."""
    model, processor = vtc.load("tiny-qwen", device="cpu")
    together = "pixelprune(keep=0.5) + tome(keep=0.4, stage=encoder) + divprune"
    settings = Settings(
        data=str(few(tmp_path, 2)), models=("tiny-qwen",), methods=("random", "pixelprune", together), keep=(64,),
        batch_size=8, timing=0, max_new_tokens=4, out=str(tmp_path / "out"), device="cpu",
    )  # fmt: skip
    outcome = evaluate(settings, (model, processor))
    for method in ("pixelprune(keep=64)", f"{together}(keep=64)"):
        name = method.replace("(keep=64)", "@64").replace(", ", ",").replace(" + ", "+")
        for line, other in zip(samples(outcome, name), samples(outcome, "random@64"), strict=True):
            inputs = vtc.prepare(processor, line["question"], [vtc.load_picture(line["media"])])
            with vtc.wrapped(model, method):
                out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
            assert line["answer"] == said
            assert line["tokens_out"] == other["tokens_out"] == 64
            assert line["tokens_in"] == other["tokens_in"]


def test_a_method_for_videos_is_refused_by_a_model_that_reads_none(tiny, tmp_path):
    settings = Settings(data=str(few(tmp_path, 1)), methods=("evs",), keep=(64,), timing=0, max_new_tokens=1)
    with pytest.raises(ValueError, match="evs is for videos, and llava reads none"):
        evaluate(replace(settings, out=str(tmp_path / "out"), device="cpu"), tiny)


def test_what_the_metrics_say(outcome):
    full, own = metrics(outcome, "full"), metrics(outcome, "divprune@64")
    assert "retention" not in full
    assert own["retention"]["mean"] == pytest.approx(own["accuracy"]["mean"] / full["accuracy"]["mean"], abs=1e-6)
    assert own["tokdense"] == pytest.approx(100 * own["accuracy"]["mean"] / 64)
    same = [
        a["answer"].lower() == b["answer"].lower()
        for a, b in zip(samples(outcome, "full"), samples(outcome, "divprune@64"), strict=True)
    ]
    assert own["loyalty"]["mean"] == pytest.approx(sum(same) / 6)
    assert set(own["versus_full"]) == set(own["versus_random"]) == {"mean", "low", "high", "n", "p"}
    assert own["timing"]["ttft_ms"] > 0
    assert own["timing"]["decode_tokens_per_s"] > 0
    assert own["timing"]["peak_bytes"] > 0
    assert metrics(outcome, "blind")["timing"] is None


def test_the_model_is_left_as_it_was(outcome, tiny):
    with pytest.raises(ValueError, match="not wrapped"):
        vtc.report(tiny[0])


def test_going_on_answers_nothing_again(outcome, settings, tiny, monkeypatch):
    before = {run: (run / "samples.jsonl").read_bytes() for run in outcome.runs}
    monkeypatch.setattr(answer.Answerer, "answer", None)  # would break
    again = evaluate(replace(settings, batch_size=64), tiny)
    assert {run: (run / "samples.jsonl").read_bytes() for run in again.runs} == before


def test_other_settings_are_refused_before_a_model_is_loaded(outcome, settings):
    def no_model(*args, **options):
        raise AssertionError("a model was loaded")

    for change, said in [
        (dict(limit=3), "questions is 6 there and 3 here"),
        (dict(max_new_tokens=9), "max_new_tokens is 8 there and 9 here"),
        (dict(metric="anls"), "another configuration: metrics is"),
        (dict(tasks=("nope",)), "has no task 'nope'"),
        (dict(methods=("nope",)), "no method 'nope'"),
        (dict(data="none"), "no data set 'none'"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            runner.evaluate(replace(settings, **change), load=no_model)


def test_other_weights_are_refused(outcome, settings, tiny):
    weight = next(tiny[0].parameters())
    with torch.no_grad():
        weight.add_(1)
    try:
        with pytest.raises(ValueError, match="another configuration: weights is"):
            evaluate(settings, tiny)
    finally:
        with torch.no_grad():
            weight.sub_(1)


def quick(tmp_path, **more):
    return Settings(**{"methods": ("pool",), "keep": (16,), "timing": 0, "max_new_tokens": 4, "device": "cpu"} | more)


def test_broken_questions_are_told_apart(tmp_path, tiny):
    file = few(tmp_path, 4)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    lines[1]["image"] = "broken.png"
    lines[2]["question"] = "What is <image>?"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = evaluate(quick(tmp_path, data=str(file), out=str(tmp_path / "out"), timing=4), tiny)
    assert set(outcome.broken) == {lines[1]["id"], lines[2]["id"]}
    assert metrics(outcome, "full")["timing"]["samples"] == 2
    assert "is not a picture" in outcome.broken[lines[1]["id"]]
    assert "placeholder '<image>'" in outcome.broken[lines[2]["id"]]
    found = metrics(outcome, "pool@16")
    assert (found["accuracy"]["n"], found["questions"], set(found["broken"])) == (2, 4, set(outcome.broken))


def test_weights_that_were_replaced_are_not_mixed_with_the_old(tmp_path, tiny):
    method = {"name": "vqtoken", "weights": str(tmp_path / "weights")}
    vtc.train(
        tiny[0], "vqtoken", TINY, processor=tiny[1], out=method["weights"], keep=16, steps=1, batch_size=1, log=None
    )
    given = quick(tmp_path, data=str(few(tmp_path, 2)), methods=(method,), out=str(tmp_path / "out"))
    evaluate(given, tiny)
    evaluate(given, tiny)
    card = tmp_path / "weights" / "module.json"
    card.write_text(card.read_text() + " ")
    with pytest.raises(ValueError, match="holds another configuration: files is"):
        evaluate(given, tiny)


def test_a_machine_without_a_reader_of_videos_is_no_broken_question(tmp_path, monkeypatch):
    monkeypatch.setattr(answer, "find_spec", lambda name: None)
    settings = Settings(data="tiny-video", models=("tiny-qwen",), limit=1, methods=("evs",), out=str(tmp_path / "out"))
    with pytest.raises(ImportError, match=r"reading videos needs decord or PyAV: pip install"):
        runner.evaluate(settings)


def test_memory_that_runs_out_halves_the_batch(tmp_path, tiny, monkeypatch):
    file, sizes = few(tmp_path, 5), []
    generate = answer.Answerer._generate

    def limited(self, items, *args):
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return generate(self, items, *args)

    plain = evaluate(quick(tmp_path, data=str(file), out=str(tmp_path / "plain")), tiny)
    with monkeypatch.context() as patch:
        patch.setattr(answer.Answerer, "_generate", limited)
        outcome = evaluate(quick(tmp_path, data=str(file), out=str(tmp_path / "out")), tiny)
    assert sizes[0] == 5
    assert outcome.broken == {}
    assert "out of memory with 5 questions at a time: going on with 3" in outcome.notes[0]
    for name in ("full", "random@16", "pool@16"):
        assert [s["answer"] for s in samples(outcome, name)] == [s["answer"] for s in samples(plain, name)]


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, is_memory):
    assert answer.out_of_memory(error) == is_memory


NOTHING = "full on tiny-llava answers no question at all: RuntimeError: no such thing"


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (RuntimeError("no such thing"), ValueError, NOTHING),
        (ImportError("no such package"), ImportError, "no such package"),  # what a machine lacks is no question's fault
    ],
)
def test_a_model_that_answers_nothing_stops_the_evaluation(tmp_path, tiny, monkeypatch, error, raised, said):
    def broken(*args):
        raise error

    monkeypatch.setattr(answer.Answerer, "_generate", broken)
    with pytest.raises(raised, match=said):
        evaluate(quick(tmp_path, data=str(few(tmp_path, 3)), out=str(tmp_path / "out")), tiny)


def test_videos_of_several_lengths(tmp_path):
    pytest.importorskip("av")
    from tests.media.test_video import write

    for name, frames, size in (("a", 16, (112, 84)), ("b", 6, (84, 112)), ("c", 20, (64, 64))):
        write(tmp_path / f"{name}.mp4", frames, size)
    Image.new("RGB", (90, 60), "red").save(tmp_path / "still.png")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:200])
    lines = [
        {"video": f"{name}.mp4", "question": q, "answer": "a"} for name in "abc" for q in ("what ?", "what moves ?")
    ]
    lines += [{"image": "still.png", "question": "what is there ?", "answer": "b"}]
    lines += [{"video": "cut.mp4", "question": "what ?", "answer": "a"}]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    small = vtc.load(save(tmp_path / "qwen"), device="cpu")
    base = quick(tmp_path, data=str(tmp_path / "clips.jsonl"), methods=("divprune", "evs"), keep=(0.5,), blind=True)
    whole = evaluate(replace(base, out=str(tmp_path / "whole")), small)
    single = evaluate(replace(base, out=str(tmp_path / "single"), batch_size=1), small)
    assert list(whole.broken) == ["8"]
    assert "cannot be read as a video" in whole.broken["8"]
    for name in ("full", "blind", "divprune@0.5", "evs@0.5"):
        assert samples(whole, name) == samples(single, name)
    full, half = samples(whole, "full"), samples(whole, "divprune@0.5")
    assert full[0]["tokens_in"] == full[1]["tokens_in"] != full[2]["tokens_in"]
    assert abs(half[0]["tokens_out"] - full[0]["tokens_in"] / 2) <= 1
    assert full[0]["flops"][0] == half[0]["flops"][0]
    few = replace(base, methods=("random",), keep=(1,), limit=1, blind=False, out=str(tmp_path / "few"))
    (line,) = samples(evaluate(few, small), "downsample@1")
    assert (line["least"], "full_cost" in line) == (True, False)
    assert 1 < line["tokens_out"] < line["tokens_in"]
    assert line["flops"][1] < line["flops"][0]


def test_pictures_for_a_model_that_reads_no_videos(tmp_path, tiny):
    (tmp_path / "a.mp4").write_bytes(b"?")
    (tmp_path / "clips.jsonl").write_text(json.dumps({"video": "a.mp4", "question": "what ?", "answer": "a"}))
    with pytest.raises(ValueError, match="does not read videos"):
        evaluate(quick(tmp_path, data=str(tmp_path / "clips.jsonl"), out=str(tmp_path / "out")), tiny)


def test_options_and_the_instruction_are_asked_along(tiny, settings):
    from vtc.eval.questions import Media, Question

    model, processor = tiny
    asked = Question("1", Media("image", "a"), "Which?", ("red",), choices=("red", "blue"))
    text = answer.Answerer(model, processor, settings, {}, {}).text(asked)
    assert text.splitlines()[:3] == ["Which?", "A. red", "B. blue"]
    assert "letter" in text.splitlines()[3]
    told = answer.Answerer(model, processor, replace(settings, instruction="One word."), {}, {}).text(asked)
    assert told.splitlines()[3:] == ["One word."]
