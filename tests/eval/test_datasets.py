"""Question sets: the shipped one, the published one, and a user's own file with its possible mistakes."""

import json

import pytest
from PIL import Image

from vtc.eval import datasets

GOOD = {"id": "7", "image": "a.png", "question": "What is it?", "answer": "star", "task": "object"}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


def written(folder, *lines, name="mine.jsonl"):
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_the_shipped_set_is_whole():
    data = datasets.load("tiny")
    assert len(data.questions) >= 2000
    assert len({question.image for question in data.questions}) >= 400
    assert len({question.id for question in data.questions}) == len(data.questions)
    assert {"color", "object", "existence", "count", "position", "reading", "caption"} <= set(data.tasks)
    assert all(bool(question.objects) == (question.task == "caption") for question in data.questions)


def test_easy_vqa_is_the_published_test_split():
    data = datasets.load("easy-vqa")
    assert len(data.questions) == 9673
    assert set(data.tasks) == {"shape", "color", "existence", "negation"}
    assert {q.answers[0] for q in data.questions if q.task == "negation"} == {"yes", "no"}


def test_a_file_and_its_folder(folder):
    path = written(folder, GOOD, "", {**GOOD, "id": "8", "answers": ["a star", "star"]})
    data = datasets.load(path)
    assert data == datasets.Dataset("mine", datasets.load(folder).questions)
    assert [question.answers for question in data.questions] == [("star",), ("a star", "star")]
    assert data.questions[0].image == folder / "a.png"
    assert [question.id for question in data.first(1).questions] == ["7"]


def test_id_and_task_are_optional(folder):
    data = datasets.load(written(folder, {"image": "a.png", "question": "What?", "answer": 3}))
    assert (data.questions[0].id, data.questions[0].task, data.questions[0].answers) == ("1", "all", ("3",))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "line 2"),
        ("[1, 2]", "line 2"),
        ({"image": "a.png", "answer": "x"}, "'question' is missing"),
        ({"image": "a.png", "question": "What?"}, "'answer' is missing"),
        ({**GOOD, "answers": []}, "at least one"),
        ({**GOOD, "question": 3}, "line 2"),
    ],
)
def test_a_line_that_is_no_question(folder, line, said):
    with pytest.raises(ValueError, match=said):
        datasets.load(written(folder, GOOD, line))


def test_missing_things(folder):
    with pytest.raises(FileNotFoundError, match="easy-vqa"):
        datasets.load("tinyy")
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        datasets.load(written(folder, {**GOOD, "image": "b.png"}))
    with pytest.raises(ValueError, match="no questions"):
        datasets.load(written(folder, ""))
    written(folder, GOOD, name="other.jsonl")
    with pytest.raises(ValueError, match=r"2 \.jsonl files"):
        datasets.load(folder)
