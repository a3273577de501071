"""Types of command-line arguments, and checks that commands share."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import vtc


def check_methods(names: Sequence[str]) -> None:
    """Refuse an unknown name before a model is loaded."""
    known = [info.name for info in vtc.methods()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ValueError(f"there is no method {name!r}; {hint}")


def keep(text: str) -> int | float:
    """'64' is a count, '0.1' a fraction."""
    try:
        value = int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        value = math.nan
    if not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a count of 1 or more nor a fraction in (0, 1]")
    return value


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def device(text: str) -> str:
    try:
        return str(torch.device(text))
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: try cpu, cuda or cuda:0") from None


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part.strip()) for part in text.split(",") if part.strip()]


def existing_folders(*files: str | None) -> None:
    """Make the folders that results are going to be written to."""
    for file in filter(None, files):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
