"""vtc.calibrate: a method's numbers for a model, from pictures and questions; the model stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vtc
from vtc.api import ATTRIBUTE
from vtc.calibration.pairs import Given, read_pairs
from vtc.calibration.trials import Trial, Trials, check_out
from vtc.checks import check_number
from vtc.engine.wrappers import look_through
from vtc.lock import alone
from vtc.methods.base.calibrated import FORMAT, CalibratedMethod
from vtc.methods.base.method import Method
from vtc.methods.base.registry import not_calibrated, resolve
from vtc.models import adapter_for
from vtc.models.fingerprint import fingerprint_of
from vtc.training.loop import frozen


@dataclass(frozen=True)
class Calibrated:
    """A finished calibration.

    Attributes:
        path: the file that `calibration=` takes.
        options: what was found, by option.
        trials: what was tried, the options as they were before first; empty where nothing was searched.
    """

    path: Path
    options: dict[str, Any]
    trials: tuple[Trial, ...]

    @property
    def before(self) -> float | None:
        """The objective of the options as they were."""
        return self.trials[0].objective if self.trials else None

    @property
    def after(self) -> float | None:
        """The objective of those that were found."""
        return max(trial.objective for trial in self.trials) if self.trials else None


def calibrate(
    model: nn.Module,
    method: str | Method,
    data: Given,
    *,
    out: str | Path,
    processor: Any,
    keep: int | float | None = None,
    pairs: int = 30,
    trials: int = 60,
    seed: int = 0,
    frames: int | None = None,
    fps: float | None = None,
    cache_bytes: float = 4e9,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Calibrated:
    """Find a method's numbers for a model, and write them into a small JSON file.

    A run is a function of its arguments. With the same ones, a run that was stopped goes on: until it is finished its
    trials are in `out` with ".trials" behind the name. No answers are needed, and nothing about the model changes.

    Args:
        method: the name of a method that is calibrated (`vflowopt`), or one with options.
        data: a set of questions as `vtc eval` reads it (a name, a file or a folder), or a list of (picture, question).
        out: the file, which `vtc.wrap(model, method, calibration=out)` takes.
        processor: of the model.
        keep, options: of the method, as in `vtc.wrap`.
        pairs: how many of the data's pairs are looked at, drawn by `seed`.
        trials: how many settings are tried, besides the one that the method has by itself.
        frames, fps: of videos, as in `vtc.load_clip`.
        cache_bytes: memory for what the vision tower makes of the pictures, which it sees once as far as it goes.
        progress: called with (what is counted, so far, in all).

    Raises:
        ValueError, TypeError, FileNotFoundError: with one sentence, before any compute.
    """
    from vtc.calibration.work import Work  # it imports the engine, which other calls can do without

    chosen = resolve(method, keep, **options)
    if not isinstance(chosen, CalibratedMethod):
        raise not_calibrated(chosen.title)
    if chosen.calibration is not None:
        raise ValueError(f"{chosen.title} has a calibration already: leave calibration= out to find another.")
    chosen.check_calibration()
    check_number(trials, "trials", 1, integer=True, what="how many settings are tried")
    file = check_out(out)
    found = read_pairs(data, pairs, seed)
    inner, _ = look_through(model)
    adapter_for(inner)  # refuses what is not supported
    if ATTRIBUTE in inner.__dict__:
        raise ValueError("this model is wrapped: vtc.unwrap it before it is calibrated.")
    config: Any = inner.config
    known = {"type": config.model_type, "fingerprint": fingerprint_of(inner)}
    settings = {
        "method": str(chosen),
        "data": found.source,
        "pairs": len(found.chosen),
        "digest": found.digest(),
        "trials": trials,
        "seed": seed,
        "frames": frames,
        "fps": fps,
        "model": known,
    }
    told = progress or (lambda what, done, total: None)
    with alone(lock_of(file), f"another calibration is at work on {file}: wait for it, or give another file."):
        check_out(file)  # another may have ended meanwhile
        done = Trials(file.with_name(f"{file.name}.trials"), settings)
        work = Work(inner, processor, chosen, found.chosen, done, trials, seed, told, frames, fps, cache_bytes)
        with frozen(inner), torch.inference_mode():
            values = dict(chosen.calibrated(work))
        result = Calibrated(file, values, tuple(done.done))
        _write(result, chosen, known, settings)
        done.remove()
    return result


def lock_of(file: Path) -> Path:
    """The file that is locked while a calibration is at work on `file`."""
    return file.with_name(f"{file.name}.lock")


def _write(found: Calibrated, method: CalibratedMethod, model: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """The file, beside where it is to be and then moved, so that it is there as a whole or not at all."""
    import transformers

    card = {
        "format": FORMAT,
        "method": method.title,
        "keep": method.keep,
        "options": found.options,
        "model": model,
        "objective": {"before": found.before, "after": found.after},
        "settings": settings,
        "versions": {"vtc": vtc.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    trials = ",\n  ".join(json.dumps(trial._asdict()) for trial in found.trials)  # a line each
    text = json.dumps(card, indent=1).removesuffix("\n}") + f',\n "trials": [\n  {trials}\n ]\n}}\n'
    part = found.path.with_name(f"{found.path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(found.path)
