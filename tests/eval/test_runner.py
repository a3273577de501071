"""The batched loop gives every question the answer that it gets alone, and refuses before it works."""

import pytest
import torch

import vtc
from vtc.eval import datasets, runner
from vtc.pictures import load_picture
from vtc.prompts import prompt


@pytest.fixture(scope="module")
def tiny():
    return vtc.load("tiny-llava", device="cpu")


@pytest.fixture(scope="module")
def data():
    """Every task, several questions on one picture, and more pictures than one chunk is made to hold here."""
    whole = datasets.load("tiny")
    return datasets.Dataset("tiny", tuple(question for question in whole.first(24).questions))


@pytest.fixture(scope="module")
def result(tiny, data):
    return runner.evaluate(tiny[0], tiny[1], data, ["divprune", "visionzip"], [64], blind=True, batch_size=5)


def alone(model, processor, question, limit):
    inputs = processor(
        text=[prompt(processor, question.question)], images=[[load_picture(question.image)]], return_tensors="pt"
    )
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


def test_settings_and_counts(result, data):
    settings = [(run.method, run.keep) for run in result.runs]
    assert settings == [("full", None), ("blind", None), ("random", 64), ("divprune", 64), ("visionzip", 64)]
    for run in result.runs:
        assert len(run.answers) == len(run.scores) == len(data.questions)
        assert run.tokens_in == 576 * len(data.questions)
        assert run.tokens_out == (run.keep or 576) * len(data.questions)


def test_batched_answers_are_those_of_each_question_alone(result, tiny, data):
    model, processor = tiny
    limits = runner._answer_limits(processor, data)
    for run in (result.runs[0], *result.runs[2:]):
        for number in range(0, len(data.questions), 7):
            question = data.questions[number]
            if run.keep is None:
                said = alone(model, processor, question, limits[question.task])
            else:
                with vtc.wrapped(model, run.method, run.keep):
                    said = alone(model, processor, question, limits[question.task])
            assert run.answers[number] == said, (run.method, question)


def test_the_blind_baseline_does_not_see(result, tiny, data):
    blind = result.runs[1]
    by_text = {}
    for question, answer in zip(data.questions, blind.answers, strict=True):
        assert by_text.setdefault((question.question, question.task), answer) == answer


def test_the_model_is_left_as_it_was(result, tiny):
    with pytest.raises(ValueError, match="not wrapped"):
        vtc.report(tiny[0])


def test_small_chunks_change_nothing(result, tiny, data, monkeypatch):
    monkeypatch.setattr(runner, "_PICTURES_AT_ONCE", 2)
    seen = []
    again = runner.evaluate(
        tiny[0],
        tiny[1],
        data,
        ["divprune"],
        [64],
        batch_size=64,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert again.full.answers == result.full.answers
    assert again.runs[-1].answers == result.runs[3].answers
    assert seen[-1] == (3 * len(data.questions), 3 * len(data.questions))


def test_refusals_come_before_any_answer(tiny, data):
    def no_answers(done, total):
        raise AssertionError("a question was answered")

    with pytest.raises(ValueError, match="nope"):
        runner.evaluate(tiny[0], tiny[1], data, ["nope"], [64], progress=no_answers)
    with pytest.raises(ValueError, match="keep"):
        runner.evaluate(tiny[0], tiny[1], data, ["pool"], [0], progress=no_answers)


def test_budgets_inside_the_language_model(tiny, data):
    few = datasets.Dataset("tiny", data.questions[:4])
    for budget, keep, final in (("final", 200, 200), ("average", 192, 64)):
        result = runner.evaluate(tiny[0], tiny[1], few, ["transprune"], [keep], budget=budget)
        run = result.runs[-1]
        assert run.tokens_out <= final * 4
        if budget == "average":
            assert abs(run.tokens_average / 4 - 192) < 2
        assert run.flops[1] < run.flops[0]
        assert run.kv_bytes[1] < run.kv_bytes[0]
    with pytest.raises(ValueError, match="budget='mean' is not one of"):
        runner.evaluate(tiny[0], tiny[1], few, ["transprune"], [64], budget="mean")
    with pytest.raises(ValueError, match="cannot keep 20 of 576 visual tokens on average"):
        runner.evaluate(tiny[0], tiny[1], few, ["transprune"], [20], budget="average")
