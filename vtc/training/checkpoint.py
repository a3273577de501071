"""Checkpoint: where a training stands, so that it can go on after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vtc.checks import check_number

PROGRESS = "progress.json"


class Checkpoint:
    """The state of one training in `out`/checkpoint: written beside it and then moved, so that one is always whole.

    Raises:
        TypeError, ValueError: `every` is no number of steps.
        ValueError: `out` holds a training with other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any], every: int) -> None:
        check_number(every, "checkpoint_every", 1, integer=True, what="a number of steps")
        self.settings, self.every = json.loads(json.dumps(settings)), every
        self.place, self.fresh = out / "checkpoint", out / "checkpoint.new"
        if not (self.place / PROGRESS).is_file() and (self.fresh / PROGRESS).is_file():
            shutil.rmtree(self.place, ignore_errors=True)
            self.fresh.rename(self.place)  # killed between the two moves
        self.exists = (self.place / PROGRESS).is_file()
        if self.exists:
            known = self._progress()["settings"]
            for name, value in self.settings.items():
                if known.get(name) != value:
                    raise ValueError(
                        f"{out} holds a training with {name}={known.get(name)!r}, not {value!r}: give another folder, "
                        "or delete it to train anew."
                    )

    def _progress(self) -> dict[str, Any]:
        return json.loads((self.place / PROGRESS).read_text(encoding="utf-8"))

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def restore(self, accelerator: Any) -> tuple[list[float], list[int]]:
        """Load the state into what the accelerator has prepared: the losses so far, the range of token counts."""
        if not self.exists:
            return [], []
        accelerator.load_state(str(self.place))
        progress = self._progress()
        return progress["losses"], progress["tokens"]

    def save(self, accelerator: Any, losses: list[float], tokens: list[int]) -> None:
        shutil.rmtree(self.fresh, ignore_errors=True)
        accelerator.save_state(str(self.fresh))
        progress = {"settings": self.settings, "losses": losses, "tokens": tokens}
        (self.fresh / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")  # last: it makes the rest count
        shutil.rmtree(self.place, ignore_errors=True)
        self.fresh.rename(self.place)
