"""How an answer is scored. A metric gives every answer a number, mostly in [0, 1]; some also look at all of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from vtc.eval import captions
from vtc.eval.datasets import Dataset
from vtc.eval.normalise import normalise, normalise_vqa
from vtc.eval.questions import Question, letter
from vtc.hints import did_you_mean

Scorer = Callable[[str, Question], float]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        prepare: the questions of a task -> (answer, question) -> score.
        unfit: a sentence about why a question cannot be scored this way, or None.
        summary: numbers about (answer, question) pairs taken together.
    """

    about: str
    prepare: Callable[[Sequence[Question]], Scorer]
    unfit: Callable[[Question], str | None] = lambda question: None
    summary: Callable[[Sequence[tuple[str, Question]]], dict[str, float]] = lambda pairs: {}


def exact(answer: str, question: Question) -> float:
    """1 for an exact match with any reference after `normalise`, else 0."""
    return float(normalise(answer) in {normalise(reference) for reference in question.answers})


def vqa(answer: str, question: Question) -> float:
    """VQA accuracy (Antol et al., ICCV 2015): min(1, matches / 3), averaged over leaving out each annotator in turn.

    A single reference stands for ten annotators who agree.
    """
    said, meant = normalise_vqa(answer), [normalise_vqa(reference) for reference in question.answers]
    if len(meant) == 1:
        return float(said == meant[0])
    same = [reference == said for reference in meant]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)


def relaxed(answer: str, question: Question) -> float:
    """Relaxed accuracy (ChartQA, Masry et al., 2022): numbers may be 5 % off, anything else must be equal."""
    return max(_relaxed(answer.strip(), reference.strip()) for reference in question.answers)


def _relaxed(said: str, meant: str) -> float:
    target, found = _number(meant), _number(said)
    if target and found is not None:
        return float(abs(found - target) <= 0.05 * abs(target))
    return float(said.lower().rstrip(".") == meant.lower().rstrip(".") or (target == 0 and found == 0))


def _number(text: str) -> float | None:
    plain = text.rstrip(".").replace(",", "")
    try:
        return float(plain.rstrip("%")) / 100 if plain.endswith("%") else float(plain.lstrip("$"))
    except ValueError:
        return None


def anls(answer: str, question: Question) -> float:
    """Average normalised Levenshtein similarity (Biten et al., ICCV 2019): below one half it counts as nothing."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise ImportError("the metric anls needs rapidfuzz: pip install 'vtc-vlm[eval]'") from error
    said = " ".join(answer.lower().split())
    near = max(Levenshtein.normalized_similarity(said, " ".join(ref.lower().split())) for ref in question.answers)
    return near if near > 0.5 else 0.0


def chosen(answer: str, choices: Sequence[str]) -> int | None:
    """Index of the option that an answer means: by its letter, its text, or the only option it mentions."""
    last = letter(len(choices) - 1)
    said = answer.strip()
    lead = re.match(rf"(?:option\s+)?[(\[]?([A-{last}])(?:[)\].:,]|\s*$|\s+-)", said, re.IGNORECASE)
    named = re.search(rf"\b(?i:answer|option|choice)(?:\s+is)?\s*:?\s*[(\[]?([A-{last}])\b", said)
    plain = [choice.strip().casefold() for choice in choices]
    if said.casefold() in plain:
        return plain.index(said.casefold())
    texts = [normalise(choice) for choice in choices]
    if normalise(said) in texts:
        return texts.index(normalise(said))
    for found in (lead, named, re.search(rf"\(([A-{last}])\)", said)):
        if found:
            return ord(found.group(1).upper()) - ord("A")
    mentioned = [i for i, text in enumerate(texts) if text and f" {text} " in f" {normalise(said)} "]
    whole = [i for i in mentioned if not any(i != j and texts[i] in texts[j] for j in mentioned)]  # "red" in "dark red"
    return whole[0] if len(whole) == 1 else None


def choice(answer: str, question: Question) -> float:
    """1 if the option that the answer means is right; an answer that means none is wrong."""
    index = chosen(answer, question.choices)
    return float(index is not None and question.choices[index] in question.answers)


def says_yes(answer: str) -> bool:
    """POPE's reading (Li et al., EMNLP 2023): no if the first sentence has "no" or "not", else yes."""
    return not {"no", "not"} & set(answer.lower().split(".")[0].replace(",", " ").split())


def pope(answer: str, question: Question) -> float:
    """1 if the answer's yes or no is right."""
    return float(says_yes(answer) == (normalise(question.answers[0]) == "yes"))


def _pope_summary(pairs: Sequence[tuple[str, Question]]) -> dict[str, float]:
    said = [says_yes(answer) for answer, _ in pairs]
    meant = [normalise(question.answers[0]) == "yes" for _, question in pairs]
    hits = sum(s and m for s, m in zip(said, meant, strict=True))
    precision, recall = hits / max(1, sum(said)), hits / max(1, sum(meant))
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "yes-ratio": sum(said) / max(1, len(said))}


def objects(answer: str, question: Question) -> float:
    """F1 between the objects in a caption ("a red star, a bird and a fish") and those present, as multisets."""
    named = Counter(filter(None, (normalise(phrase) for phrase in re.split(r",|\band\b", answer.lower()))))
    present = Counter(normalise(phrase) for phrase in question.objects)
    return 2 * sum((named & present).values()) / max(1, named.total() + present.total())


def _plain(scorer: Scorer) -> Callable[[Sequence[Question]], Scorer]:
    return lambda questions: scorer


METRICS: dict[str, Metric] = {
    "exact": Metric("equal to a reference after normalisation", _plain(exact)),
    "vqa": Metric(
        "VQA accuracy: agreement with ten annotators",
        _plain(vqa),
        lambda q: "has two or three answers, not one, or four or more" if len(q.answers) in (2, 3) else None,
    ),
    "relaxed": Metric("relaxed accuracy: numbers within 5 %", _plain(relaxed)),
    "anls": Metric("average normalised Levenshtein similarity", _plain(anls)),
    "choice": Metric(
        "multiple choice, by letter or text", _plain(choice), lambda q: None if q.choices else "has no 'choices'"
    ),
    "pope": Metric(
        "yes or no, with precision, recall, F1 and yes-ratio",
        _plain(pope),
        lambda q: None if normalise(q.answers[0]) in ("yes", "no") else "has an answer other than yes and no",
        _pope_summary,
    ),
    "objects": Metric(
        "caption: F1 over the objects named", _plain(objects), lambda q: None if q.objects else "has no 'objects'"
    ),
    "caption": Metric(
        "caption: CIDEr-D, with BLEU-4 and chrF",
        captions.cider,
        summary=lambda pairs: captions.corpus([(answer, question.answers) for answer, question in pairs]),
    ),
}


def check_name(name: str) -> str:
    """ValueError if there is no such metric."""
    if name not in METRICS:
        hint = did_you_mean(name, METRICS) or f" There are: {', '.join(METRICS)}."
        raise ValueError(f"there is no metric {name!r}.{hint}")
    return name


_PACKAGES = {"anls": "rapidfuzz", "caption": "sacrebleu"}


def plan(data: Dataset, asked: Mapping[str, str] | str | None = None) -> dict[str, str]:
    """Task -> metric: what is asked for, else what the data set says, else what its fields are made for.

    Args:
        asked: one metric for all tasks, or some by task.
    Raises:
        ValueError: no such metric or task, or a question that the metric cannot score (with its id and the reason).
    """
    wanted = dict.fromkeys(data.tasks, asked) if isinstance(asked, str) else dict(asked or {})
    for task in wanted:
        if task not in data.tasks:
            raise ValueError(f"the data set {data.name!r} has no task {task!r}; it has {', '.join(data.tasks)}")
    chosen_by_task = {}
    for task in data.tasks:
        questions = [question for question in data.questions if question.task == task]
        own = {question.metric for question in questions}
        if task not in wanted and len(own) > 1:
            raise ValueError(f"the questions of the task {task!r} name different metrics ({own}): split the task")
        name = chosen_by_task[task] = check_name(wanted.get(task) or own.pop() or _fitting(questions))
        if (package := _PACKAGES.get(name)) and not find_spec(package):
            raise ImportError(f"the metric {name} needs {package}: pip install 'vtc-vlm[eval]'")
        for question in questions:
            if reason := METRICS[name].unfit(question):
                raise ValueError(f"the metric {name!r} cannot score the question {question.id!r}: it {reason}")
    return chosen_by_task


def _fitting(questions: Sequence[Question]) -> str:
    if all(question.objects for question in questions):
        return "objects"
    if all(question.choices for question in questions):
        return "choice"
    return "vqa" if all(len(question.answers) == 10 for question in questions) else "exact"


def scorers(data: Dataset, names: Mapping[str, str]) -> dict[str, Scorer]:
    """Task -> scorer, for the metrics that `plan` chose."""
    return {
        task: METRICS[name].prepare([question for question in data.questions if question.task == task])
        for task, name in names.items()
    }
