"""Trials: what a search has measured so far, in a file that a stopped run goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


def check_out(out: str | Path) -> Path:
    """Where a calibration is to be written; ValueError if a folder or a finished one is there."""
    file = Path(out).expanduser()
    if file.is_dir():
        raise ValueError(f"{file} is a folder: give the name of a file for the calibration.")
    if file.exists():
        raise ValueError(f"{file} is there already: give another file, or delete it to calibrate anew.")
    return file


class Trial(NamedTuple):
    """Values of the options, and what they came to."""

    values: dict[str, float]
    objective: float


class Trials:
    """The trials of one calibration, one JSON line each behind one of its settings; without a file, in memory.

    Raises:
        ValueError: the file holds a calibration with other settings, or is none.
    """

    def __init__(self, file: Path | None, settings: dict[str, Any]) -> None:
        self.file, self.done = file, list[Trial]()
        self._settings = json.loads(json.dumps(settings))
        if file is not None and file.is_file():
            self._read(file)

    def _read(self, file: Path) -> None:
        whole = file.read_text(encoding="utf-8")
        lines = whole[: whole.rfind("\n") + 1].splitlines()  # a kill may have torn the last one
        if not lines:
            return
        try:
            known, *rest = [json.loads(line) for line in lines]
            self.done = [Trial(dict(line["values"]), float(line["objective"])) for line in rest]
            items = known.items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} does not hold the trials of a calibration ({error!r}): delete it.") from None
        for name, value in items:
            if self._settings.get(name) != value:
                raise ValueError(
                    f"{file} holds a calibration with {name}={value!r}, not {self._settings.get(name)!r}: give another "
                    "file as out=, or delete it to begin anew."
                )
        if whole[-1] != "\n":
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def add(self, trial: Trial) -> None:
        self.done.append(trial)
        if self.file is None:
            return
        begins = not self.file.is_file() or not self.file.stat().st_size
        with self.file.open("a", encoding="utf-8") as out:
            out.write((json.dumps(self._settings) + "\n") * begins + json.dumps(trial._asdict()) + "\n")

    def best(self) -> Trial:
        """The trial that came to most; of equals the first."""
        return max(self.done, key=lambda trial: trial.objective)

    def remove(self) -> None:
        if self.file is not None:
            self.file.unlink(missing_ok=True)
