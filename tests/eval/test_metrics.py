"""Scores against values worked out by hand from each metric's definition."""

from pathlib import Path

import pytest

from vtc.eval.datasets import Dataset
from vtc.eval.metrics import METRICS, chosen, objects, plan, relaxed, scorers, vqa
from vtc.eval.normalise import normalise, normalise_vqa
from vtc.eval.questions import Media, Question


def question(*answers, task="all", identity="1", **more):
    return Question(identity, Media("image", "a.png", Path("a.png")), "?", answers, task, **more)


def score(metric, answer, asked):
    return METRICS[metric].prepare([asked])(answer, asked)


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("A red star.", "red star"),
        ("  The   Top-Left!", "top left"),
        ("three", "3"),
        ("it's", "its"),
        ("A", "a"),  # a printed letter, not an article
        ("", ""),
        ("-5", "-5"),
        ("2.5 m.", "2.5 m"),
        ("C++.", "c++"),
        ("well-known", "well known"),
        ("<", "<"),
    ],
)
def test_normalise(said, means):
    assert normalise(said) == means


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("Two dogs.", "2 dogs"),
        ("the  man", "man"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("None", "0"),
        ("1,000", "1000"),
        ("black/white", "black white"),
        ("yes, sir", "yes sir"),
        ("3.5", "3.5"),
        ("well-done", "well done"),
    ],
)
def test_normalise_as_the_vqa_challenge_does(said, means):
    assert normalise_vqa(said) == means


def test_exact_takes_any_reference():
    assert score("exact", "Three.", question("3", "several")) == 1
    assert score("exact", "four", question("3", "several")) == 0
    assert score("exact", "", question("3")) == 0


@pytest.mark.parametrize(("agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_annotators(agree, expected):
    asked = question(*["red"] * agree, *["blue"] * (10 - agree))
    assert vqa("The red.", asked) == pytest.approx(expected)


def test_vqa_accuracy_of_one_annotator():
    assert vqa("a dog", question("dog")) == 1.0
    assert vqa("cat", question("dog")) == 0.0


@pytest.mark.parametrize(
    ("said", "meant", "expected"),
    [
        ("104", "100", 1),
        ("105.1", "100", 0),
        ("95 %", "100%", 0),
        ("99%", "100%", 1),
        ("0.5", "50%", 1),
        ("1,020", "1000", 1),
        ("-2", "2", 0),
        ("0", "0", 1),
        ("0.01", "0", 0),
        ("Yes", "yes.", 1),
        ("May", "June", 0),
    ],
)
def test_relaxed_accuracy(said, meant, expected):
    assert relaxed(said, question(meant)) == expected


@pytest.mark.parametrize(
    ("said", "expected"), [("Hello World", 1.0), ("hello worl", 10 / 11), ("hello", 0.0), ("xyz", 0.0), ("", 0.0)]
)
def test_anls(said, expected):
    assert score("anls", said, question("goodbye", "hello world")) == pytest.approx(expected)


CHOICES = ("red", "dark red", "a dog", "two")


@pytest.mark.parametrize(
    ("said", "index"),
    [
        ("B", 1),
        ("b.", 1),
        ("(C) a dog", 2),
        ("D) two", 3),
        ("The answer is C.", 2),
        ("Answer: A", 0),
        ("a dog", 2),
        ("A dog.", 2),
        ("It is dark red", 1),
        ("2", 3),
        ("It shows red and two things", None),
        ("E", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_the_option_that_is_meant(said, index):
    assert chosen(said, CHOICES) == index


@pytest.mark.parametrize(
    ("said", "choices", "index"),
    [("5", ("-5", "5"), 1), ("-", ("+", "-"), 1), ("", ("+", "-"), None), ("b", ("a", "b"), 1), ("C", ("C++", "C"), 1)],
)
def test_options_that_differ_by_signs(said, choices, index):
    assert chosen(said, choices) == index


def test_choice():
    asked = question("a dog", choices=CHOICES)
    assert [score("choice", said, asked) for said in ("C", "dog", "A", "none")] == [1, 1, 0, 0]


def test_pope():
    pairs = [("Yes.", "yes"), ("Yes, there is", "no"), ("no", "no"), ("There is not", "yes"), ("It is", "yes")]
    assert [score("pope", said, question(meant)) for said, meant in pairs] == [1, 0, 1, 0, 1]
    found = METRICS["pope"].summary([(said, question(meant)) for said, meant in pairs])
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes-ratio": 3 / 5})


@pytest.mark.parametrize(
    ("caption", "phrases", "expected"),
    [
        ("a red star, a bird", ("red star", "bird"), 1.0),
        ("A bird and a red star.", ("red star", "bird"), 1.0),
        ("a bird", ("bird", "bird"), 2 / 3),
        ("a bird, a bird, a bird, a fish", ("bird", "bird"), 2 / 3),
        ("a fish", ("bird",), 0.0),
        ("", ("bird",), 0.0),
    ],
)
def test_objects(caption, phrases, expected):
    assert objects(caption, question("x", objects=phrases)) == pytest.approx(expected)


def test_captions():
    pytest.importorskip("sacrebleu")
    asked = [
        question("a red bird sits on a tree", "a bird on a tree", identity="1"),
        question("two dogs run along the wide beach", identity="2"),
        question("a man rides a blue bicycle", identity="3"),
    ]
    cider = METRICS["caption"].prepare(asked)
    right = [cider(q.answers[0], q) for q in asked]
    assert right[1] == pytest.approx(10)
    assert right[2] == pytest.approx(10, abs=1e-6)
    assert cider("a man rides a red bicycle", asked[2]) < right[2]
    assert cider("nothing of it", asked[1]) == 0
    assert cider("", asked[1]) == 0
    perfect = METRICS["caption"].summary([(q.answers[0], q) for q in asked])
    assert perfect == pytest.approx({"bleu-4": 1, "chrf": 1})


def test_the_plan_fits_the_fields():
    data = Dataset(
        "mine",
        (
            question("x", task="plain"),
            question("x", task="caption", objects=("x",)),
            question("x", task="options", choices=("x", "y")),
            question(*["x"] * 10, task="ten"),
            question("yes", task="own", metric="pope"),
        ),
    )
    fitting = {"plain": "exact", "caption": "objects", "options": "choice", "ten": "vqa", "own": "pope"}
    assert plan(data) == fitting
    assert plan(data, {"plain": "anls"}) == {**fitting, "plain": "anls"}
    assert set(plan(data, "exact").values()) == {"exact"}
    assert set(scorers(data, fitting)) == set(data.tasks)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("exat", "Did you mean 'exact'"),
        ({"nope": "exact"}, "no task 'nope'; it has all"),
        ("pope", "cannot score the question '1': it has an answer other than yes and no"),
        ("choice", "has no 'choices'"),
        ("objects", "has no 'objects'"),
        ("vqa", "has two or three answers"),
    ],
)
def test_a_metric_that_does_not_fit(asked, said):
    with pytest.raises(ValueError, match=said):
        plan(Dataset("mine", (question("x", "y"),)), asked)
