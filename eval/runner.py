"""The evaluation: every combination of model, method and budget answers every question, each into a folder of its own.

All runs of a model go through a batch together, so that the vision tower sees it once. The batches depend on the
questions and the batch size alone; process r of n takes every n-th. A batch that is not wholly there is answered again
as a whole. So a run that was interrupted, or shared by several processes, ends with the numbers of one that was not.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vtc
from vtc.eval import datasets, metrics
from vtc.eval.datasets import Dataset
from vtc.eval.origin import origin, said
from vtc.eval.processes import Processes
from vtc.eval.results import Run, metrics_of
from vtc.eval.settings import FULL, Settings, Spec
from vtc.eval.store import RunFolder, alone
from vtc.methods.base.notation import read_methods

if TYPE_CHECKING:
    from vtc.eval.asking import Asker

FORMAT = 2  # of the folders


@dataclass(frozen=True)
class Outcome:
    """What an evaluation left behind: the folder, its runs, the questions that broke (id -> reason), and notes."""

    folder: Path
    runs: list[Path]
    broken: dict[str, str]
    notes: list[str]


@dataclass(frozen=True)
class _Share:
    """Counts what is done for one of several models as a part of the whole, so that what is left can be foretold."""

    progress: Callable[[str, int, int], None]
    number: int  # of the model, from 0
    models: int

    def __call__(self, what: str, done: int, total: int) -> None:
        self.progress(what, self.number * total + done, self.models * total)


def evaluate(
    settings: Settings,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    processes: Processes | None = None,
    load: Callable[..., tuple[Any, Any]] | None = None,
) -> Outcome:
    """Answer every question uncompressed and with each method at each budget, greedily, so that runs repeat exactly.

    Args:
        progress: called with (what is counted, so far, in all), for this process's share.
        processes: those that share the work; this one alone by default.
        load: as `vtc.load`, which is the default.
    Raises:
        ValueError, FileNotFoundError, ImportError: a setting, a question, a method or a folder is not as it should be;
            before any question is answered; or another process is at work in the folder.
        ValueError: later, if a model answers none of the questions of a whole batch.
        OSError: no space is left on the device; what was answered is kept.
    """
    team = processes or Processes(settings.device)
    data = datasets.load(settings.data, settings.columns)
    data = (data.only(settings.tasks) if settings.tasks else data).first(settings.limit)
    names = metrics.plan(data, settings.metric)
    specs = settings.specs(data.kinds, data.model)
    digest = data.digest()
    folder = settings.folder(digest)
    configs = {spec: _config(settings, spec, data, names, digest) for spec in specs}
    for spec, config in configs.items():  # all of them, before the first model is loaded
        RunFolder(folder / spec.folder).check(config)
    broken: dict[str, str] = {}
    notes = list(data.notes)
    models = list(dict.fromkeys(spec.model for spec in specs))
    with alone(folder) if team.rank == 0 else nullcontext():
        for number, model in enumerate(models):
            own = {spec: config for spec, config in configs.items() if spec.model == model}
            share = _Share(progress, number, len(models))
            runs = _evaluate_model(settings, own, data, names, folder, share, team, load or vtc.load, notes)
            broken |= {i: line["error"] for run in runs.values() for i, line in run.lines.items() if "error" in line}
    return Outcome(folder, [folder / spec.folder for spec in specs], broken, notes)


def _evaluate_model(
    settings: Settings,
    configs: Mapping[Spec, dict[str, Any]],
    data: Dataset,
    names: dict[str, str],
    folder: Path,
    progress: Callable[[str, int, int], None],
    team: Processes,
    load: Callable[..., tuple[Any, Any]],
    notes: list[str],
) -> dict[Spec, RunFolder]:
    import torch

    specs = list(configs)
    model, processor = load(specs[0].model, device=team.device, dtype=settings.dtype)
    torch.manual_seed(0)
    answerer = _asker(model, processor, settings, data, names)
    answerer.check(specs, data)
    weights = _fingerprint(model)
    folders = {spec: RunFolder(folder / spec.folder, team.rank) for spec in specs}
    for turn in (True, False):  # the first process makes the folders, the others find them
        if turn == (team.rank == 0):
            for spec, run in folders.items():
                run.open(configs[spec] | {"weights": weights, "how": _how(settings, answerer, team)})
        team.wait()
    notes += _begun_by_others(folders)
    batches = answerer.batches(data.questions)[team.rank :: team.world]
    total, done = len(folders) * sum(len(batch.questions) for batch in batches), 0
    for batch in batches:
        waiting = [spec for spec, run in folders.items() if run.lacks(batch.ids)]
        done += (len(folders) - len(waiting)) * len(batch.questions)
        progress("answers", done, total)
        for spec, lines in answerer.answer(batch, waiting) if waiting else ():
            folders[spec].append(lines)
            if not folders[spec].answered and "asked" in lines[-1]:
                _refuse_if_hopeless(spec, folders[spec], batch.ids, lines[-1]["error"])
            done += len(lines)
            progress("answers", done, total)
    if settings.timing and any(run.finished for run in folders.values()):
        answerer.notes.append("runs that were finished before are not timed again")
    _finish(settings, answerer, folders, data, names, team, progress)
    notes += answerer.notes
    return folders


def _asker(model: Any, processor: Any, settings: Settings, data: Dataset, names: dict[str, str]) -> Asker:
    """What asks this model: one of language, or a bare classifier."""
    from vtc.models.classifier import Preparation

    scorers = metrics.scorers(data, names)
    if isinstance(processor, Preparation):
        from vtc.eval.classify import Classifier

        return Classifier(model, processor, settings, scorers, names)
    from vtc.eval.answer import Answerer

    return Answerer(model, processor, settings, scorers, names)


def _begun_by_others(folders: Mapping[Spec, RunFolder]) -> list[str]:
    """A sentence if some of the runs were begun by other code than this."""
    here = said({"how": {"versions": origin()}})
    older = [(spec, code) for spec, run in folders.items() if (code := said(run.config)) not in (None, here)]
    if not older:
        return []
    spec, code = older[0]
    many = f"{len(older)} of the runs, such as {spec.folder}, were" if len(older) > 1 else f"{spec.folder} was"
    return [f"{many} begun by {code}, and this is {here}: give another --out to have all from the same code"]


def _refuse_if_hopeless(spec: Spec, run: RunFolder, ids: Sequence[str], reason: str) -> None:
    """One question may break a model; all of a first batch are no accident."""
    if len(ids) > 1 and not run.lacks(ids):
        run.drop()
        raise ValueError(f"{spec.label} on {spec.model} answers no question at all: {reason}")


def _finish(
    settings: Settings,
    answerer: Asker,
    folders: dict[Spec, RunFolder],
    data: Dataset,
    names: dict[str, str],
    team: Processes,
    progress: Callable[[str, int, int], None],
) -> None:
    """Bring all samples together, measure times, and write the metrics of what has none yet."""
    for run in folders.values():
        for line in team.gather(list(run.lines.values())):
            run.lines.setdefault(line["id"], line)
    new = [spec for spec, run in folders.items() if not run.finished]
    if team.rank == 0 and new:
        times: dict[Spec, dict[str, Any]] = {}
        if settings.timing:
            broken = {i for run in folders.values() for i, line in run.lines.items() if "error" in line}
            whole = [question for question in data.questions if question.id not in broken]
            try:
                times = answerer.measure(new, whole, partial(progress, "timings"))
            except Exception as error:  # the answers are worth more than the times
                answerer.notes.append(f"nothing was timed: {str(error) or type(error).__name__}")
        order = [question.id for question in data.questions]
        runs = {spec: Run.of(spec, data, names, [run.lines[i] for i in order]) for spec, run in folders.items()}
        full = next(run for spec, run in runs.items() if spec.method == FULL)
        random = {spec.keep: run for spec, run in runs.items() if spec.label == "random"}
        for spec in new:
            found = metrics_of(runs[spec], data, full, random.get(spec.keep), times.get(spec))
            folders[spec].finish(order, found)
    team.wait()


def _config(settings: Settings, spec: Spec, data: Dataset, names: dict[str, str], digest: str) -> dict[str, Any]:
    """What decides a run's numbers, weights left out."""
    return {
        "format": FORMAT,
        "model": spec.model,
        "method": spec.label,
        "keep": spec.keep,
        **_files(spec),
        "data": data.name,
        "kinds": data.kinds,
        "questions": len(data.questions),
        "tasks": data.tasks,
        "metrics": names,
        "digest": digest,
        "instruction": settings.instruction,
        "max_new_tokens": settings.max_new_tokens,
        "frames": settings.frames,
        "fps": settings.fps,
        "dtype": settings.dtype,
    }


def _files(spec: Spec) -> dict[str, Any]:
    """What the files hold that options name, such as weights, as names may come to stand for others."""
    from vtc.methods.base.serial import digest

    known = {}
    before = [(name, value) for text in spec.before for _, own in read_methods(text) for name, value in own.items()]
    for name, value in [*before, *spec.options.items()]:
        if isinstance(value, str) and Path(value).exists():
            known[name] = digest(value)
    return {"files": known} if known else {}


def _how(settings: Settings, answerer: Asker, team: Processes) -> dict[str, Any]:
    import torch
    import transformers

    weight = next(answerer.model.parameters())
    return {
        "model_type": answerer.kind,
        "device": torch.cuda.get_device_name(weight.device) if weight.is_cuda else platform.machine(),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "batch_size": settings.batch_size,
        "processes": team.world,
        "versions": {**origin(), "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _fingerprint(model: Any) -> str:
    """Tells models of one name apart by names, shapes and some values of their weights."""
    known = hashlib.sha256()
    for name, value in model.named_parameters():
        some = value.detach().flatten()[:: max(1, value.numel() // 4)][:4]
        known.update(f"{name}{tuple(value.shape)}{[round(x, 4) for x in some.float().tolist()]}".encode())
    return known.hexdigest()[:16]
