"""From answers to rows: the numbers in the table are those of a by-hand count."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from vtc.eval import table
from vtc.eval.datasets import Dataset, Question
from vtc.eval.metrics import score
from vtc.eval.runner import Result, Run

QUESTIONS = tuple(
    Question(f"{i}", Path(f"{i // 2}.png"), "?", ("yes",) if i % 2 else ("red",), "existence" if i % 2 else "color")
    for i in range(40)
)


def run(method, keep, right):
    answers = [question.answers[0] if i in right else "blue" for i, question in enumerate(QUESTIONS)]
    scores = [score(answer, question) for answer, question in zip(answers, QUESTIONS, strict=True)]
    return Run(method, keep, answers, scores, tokens_in=40 * 576, tokens_out=40 * (keep or 576))


@pytest.fixture
def result():
    runs = [
        run("full", None, range(40)),
        run("random", 64, range(0, 40, 2)),
        run("good", 64, range(30)),
    ]
    return Result(Dataset("mine", QUESTIONS), "tiny-llava", runs, 1.0)


def test_rows(result):
    full, random, good = table.rows(result)
    assert (full.overall.mean, full.loyalty, full.gain) == (1.0, None, None)
    assert (random.tasks["color"].mean, random.tasks["existence"].mean) == (1.0, 0.0)
    assert random.gain is None
    assert random.tokens == 64
    assert (good.overall.mean, good.overall.n) == (0.75, 40)
    assert good.loyalty is not None
    assert good.loyalty.mean == 0.75
    assert good.gain is not None
    assert good.gain.mean == pytest.approx(0.25)
    assert good.gain.low < 0.25 < good.gain.high


def test_printed_forms_agree(result):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table.terminal(result))
    text, markdown = console.export_text(), table.markdown(result)
    assert "good" in text
    for form in (text, markdown):
        assert "75.0 ±" in form
        assert "+25.0 ±" in form
        assert "40 questions on 20 pictures" in form
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "| **+25.0 ±" in markdown  # better than random beyond the interval
    assert "| full |" in markdown


def test_json_has_every_answer(result):
    found = json.loads(table.as_json(result))
    assert [row["method"] for row in found["rows"]] == ["full", "random", "good"]
    assert found["rows"][2]["overall"]["mean"] == 0.75
    assert found["questions"][1] == {
        "id": "1",
        "task": "existence",
        "answers": {"full": "yes", "random@64": "blue", "good@64": "yes"},
    }
