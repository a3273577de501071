"""The line over the cards says what was measured and no more; methods stand in one group each."""

from __future__ import annotations

from dataclasses import replace

import pytest

import vtc
from vtc.demos.studio import Run
from vtc.demos.words import (
    MOST_LETTERS,
    NOT_BY_SLIDER,
    RECOMMENDED,
    WHERE,
    acts_inside,
    groups,
    info_of,
    problem,
    stage_of,
    verdict,
)
from vtc.speedup import SpeedUp


class Report:
    """100 tokens, of which layers hold some."""

    def __init__(self, *held: int) -> None:
        self.held, self.tokens_in, self.tokens_by_layer = held, 100, held

    def at(self, layer: int) -> list:
        return [type("Span", (), {"tokens_out": self.held[layer]})]


def run(method: str | None, text: str = "heart", held=(10, 10), state="done", speed=None) -> Run:
    report = None if state in ("waiting", "running", "failed") else Report(*held)
    return Run(method, 0.1 if method else 1.0, state, text, report=report, speed=speed)  # type: ignore[arg-type]


BASE = run(None, held=(100, 100))
FASTER, UNSURE, SLOWER = SpeedUp(1.6, 1.4, 1.8), SpeedUp(1.6, 0.9, 2.0), SpeedUp(0.5, 0.4, 0.8)


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([run(None, state="running")], "Reading the picture with all visual tokens …"),
        ([BASE], "Answered with all 100 visual tokens. Choose a method to compare."),
        ([BASE, run("pool", state="waiting")], "Answered with all visual tokens. The methods follow …"),
        ([BASE, run("pool", state="answered")], "Same answer with 10 % of the visual tokens: pool."),
        (
            [BASE, run("pool", speed=FASTER)],
            "Same answer with 10 % of the visual tokens, 1.6× faster (1.4–1.8): pool.",
        ),
        (
            [BASE, run("pool", speed=UNSURE)],
            "Same answer with 10 % of the visual tokens, no clear difference in time: pool.",
        ),
        (
            [BASE, run("pool", speed=SLOWER)],
            "Same answer with 10 % of the visual tokens, 2.0× slower (1.2–2.5): pool.",
        ),
        (
            [BASE, run("pool", "HEART"), run("tome", speed=FASTER), run("random", "moon")],
            "Same answer with 10 % of the visual tokens, 1.6× faster (1.4–1.8): tome. Also the same: pool. "
            "random answers differently.",
        ),
        (
            [BASE, run("fastv", held=(100, 10)), run("random", "moon"), run("pool", "star")],
            "Same answer with 55 % of the visual tokens, averaged over its layers: fastv. "
            "random and pool answer differently.",
        ),
        ([BASE, run("pool", "star")], "pool does not give the same answer at 10 %. Keep more."),
        (
            [BASE, run("pool", "star"), run("tome", "moon")],
            "None of 2 methods gives the same answer at 10 %. Keep more.",
        ),
        ([BASE, run("pool", state="failed")], "No method could answer. The cards say why."),
        ([BASE, run("pool", state="failed"), run("tome")], "Same answer with 10 % of the visual tokens: tome."),
        ([BASE, replace(run("pool", "star"), keep=0.005)], "pool does not give the same answer at 0.5 %. Keep more."),
    ],
)
def test_the_verdict(runs, says):
    assert " ".join(verdict(runs)).strip() == says


def test_each_method_stands_in_one_group():
    found = [name for group in groups(("todre(mode=kcenter)",)) for name in group.methods]
    names = {info.name for info in vtc.list_methods()} - {*NOT_BY_SLIDER, "late-step"}
    assert sorted(found) == sorted([*names, "todre(mode=kcenter)"])
    first = groups()[0]
    assert first.title == "Recommended"
    assert first.methods == RECOMMENDED
    assert all(group.sentence.endswith(".") for group in groups())


def test_each_method_says_where_it_acts():
    """Each stage that methods are listed under has words of its own, and a heading that agrees with them."""
    assert {stage_of(info) for info in vtc.list_methods()} == set(WHERE)
    titles = {name: group.title for group in groups() for name in group.methods}
    for name in ("downsample", "pixelprune", "framededupe", "zerotprune"):
        found = info_of(name)
        assert found is not None
        assert titles[name].lower() == WHERE[stage_of(found)]


def test_which_methods_act_inside():
    assert [name for name in ("h2o", "fastv", "todre", "divprune", "downsample", None) if acts_inside(name)] == [
        "h2o",
        "fastv",
        "todre",
    ]


@pytest.mark.parametrize(
    ("question", "methods", "percent", "says"),
    [
        (" ", [], 10, "The question is empty: ask something about the picture."),
        ("x" * 501, [], 10, f"The question has 501 letters, and {MOST_LETTERS} is the limit: ask something shorter."),
        ("x", list("abcdef"), 10, "6 methods are chosen, and 5 fit side by side: take some away."),
        ("x", [], 0, "A budget of 0 % is outside 1 to 100: move the slider."),
        ("x", [], float("nan"), "A budget of nan % is outside 1 to 100: move the slider."),
        ("x", list("abcde"), 100, None),
    ],
)
def test_what_cannot_be_asked(question, methods, percent, says):
    assert problem(question, methods, percent) == says
