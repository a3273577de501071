"""What the page says: groups of methods, the verdict over the cards, and why something is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import vtc
from vtc.demos.serve import MOST_METHODS
from vtc.demos.studio import Run
from vtc.methods.base.notation import read_methods

MOST_LETTERS = 500
WHERE = {
    "pixels": "before the vision tower",
    "encoder": "inside the vision tower",
    "input": "before the LLM",
    "layer": "inside the LLM",
    "cache": "in the KV cache",
}
RECOMMENDED = ("vtc-cls", "todre", "divprune", "visionzip", "pyramiddrop")
_GROUPS = {
    "pixels": (
        "Before the vision tower",
        "The model is shown a smaller picture, which any method has to beat, or not the parts that repeat others.",
    ),
    "encoder": ("Inside the vision tower", "Patches leave between its blocks, so that it computes less itself."),
    "input": ("Before the language model", "Tokens are chosen or merged once, before the language model reads any."),
    "layer": (
        "Inside the language model",
        "Its first layers read everything; later ones keep what the question needs.",
    ),
    "cache": ("In its memory", "Everything is read once, and a part of it is remembered while the answer is written."),
}


@dataclass(frozen=True)
class Group:
    """Methods that stand together on the page, with a heading and a sentence."""

    title: str
    sentence: str
    methods: tuple[str, ...]


#: methods that a number of tokens says nothing to: one drops none, the other needs numbers that were calibrated
NOT_BY_SLIDER = ("minicache", "razor")


def stage_of(info: vtc.MethodInfo) -> str:
    """Where a method is listed, by a key of `WHERE`; methods of several stages stand under "layer"."""
    return "layer" if "layer" in info.stage else info.stage.split("+")[0]


def info_of(method: str | None) -> vtc.MethodInfo | None:
    """Of the method that a string names, with options or without."""
    name = None if method is None else read_methods(method)[0][0]
    return next((info for info in vtc.list_methods() if info.name == name), None)


def acts_inside(method: str | None) -> bool:
    """Whether layers of the language model hold different tokens."""
    info = info_of(method)
    return info is not None and stage_of(info) in ("layer", "cache")


def shown() -> list[vtc.MethodInfo]:
    """The methods that can be chosen: not those for models that are not shown."""
    return [info for info in vtc.list_methods() if info.name not in NOT_BY_SLIDER and not info.only]


def groups(own: Sequence[str] = ()) -> list[Group]:
    """All methods, each in one group: the recommended ones (and those asked for at start), then by stage."""
    first = tuple(dict.fromkeys((*own, *RECOMMENDED)))
    rest = [info for info in shown() if info.name not in first]
    found = [Group("Recommended", "Good at a tenth of the tokens, each in its own way. Start here.", first)]
    for stage, (title, sentence) in _GROUPS.items():
        found.append(Group(title, sentence, tuple(info.name for info in rest if stage_of(info) == stage)))
    return [group for group in found if group.methods]


def problem(question: str, methods: Sequence[str], percent: float) -> str | None:
    """Why this cannot be asked; None if it can."""
    if not question.strip():
        return "The question is empty: ask something about the picture."
    if len(question) > MOST_LETTERS:
        return f"The question has {len(question)} letters, and {MOST_LETTERS} is the limit: ask something shorter."
    if len(methods) > MOST_METHODS:
        return f"{len(methods)} methods are chosen, and {MOST_METHODS} fit side by side: take some away."
    if not 0 < percent <= 100:
        return f"A budget of {percent} % is outside 1 to 100: move the slider."
    return None


def same_answer(run: Run, base: Run) -> bool:
    """Whether an answer is that of all visual tokens, but for capitals."""
    return run.text.casefold() == base.text.casefold()


def verdict(runs: Sequence[Run]) -> tuple[str, str]:
    """What came out, in a line, and what to add in a smaller one: only what was measured so far.

    Args:
        runs: the answer with all visual tokens, then those of methods.
    Example:
        ("Same answer with 10 % of the visual tokens, 1.6× faster (1.4–1.8): visionzip.",
         "Also the same: vtc-cls. pool answers differently.")
    """
    base, *others = runs
    if base.report is None:
        return "Reading the picture with all visual tokens …", ""
    if not others:
        return f"Answered with all {base.report.tokens_in} visual tokens.", "Choose a method to compare."
    if any(run.state in ("waiting", "running") for run in others):
        return "Answered with all visual tokens.", "The methods follow …"
    answered = [run for run in others if run.state != "failed"]
    same = [run for run in answered if same_answer(run, base)]
    if not answered:
        return "No method could answer.", "The cards say why."
    if not same:
        who = f"{answered[0].method} does not give" if len(answered) == 1 else f"None of {len(answered)} methods gives"
        return f"{who} the same answer at {_percent(answered[0].keep)}.", "Keep more."
    best = min(same, key=lambda run: (round(100 * run.share()), -_gain(run)))
    where = ", averaged over its layers" if acts_inside(best.method) else ""
    share = f"Same answer with {_percent(best.share())} of the visual tokens"
    return f"{share}{where}{_pace(best)}: {best.method}.", " ".join(_others(best, same, answered))


def _others(best: Run, same: Sequence[Run], answered: Sequence[Run]) -> list[str]:
    also = [str(run.method) for run in same if run is not best]
    other = [str(run.method) for run in answered if run not in same]
    said = [f"Also the same: {_listed(also)}."] if also else []
    return said + ([f"{_listed(other)} {'answers' if len(other) == 1 else 'answer'} differently."] if other else [])


def _gain(run: Run) -> float:
    return run.speed.ratio if run.speed and run.speed.clear else 1.0


def _pace(run: Run) -> str:
    if run.speed is None:
        return ""
    return f", {run.speed}" if run.speed.clear else ", no clear difference in time"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1f} %"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
