"""Types of command-line arguments, and checks that commands share. Nothing here imports torch."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import vtc
from vtc.hints import did_you_mean
from vtc.methods.base.registry import check_options


def check_methods(names: Sequence[str], options: Iterable[str] = ()) -> None:
    """Refuse an unknown name, or an option that a method does not have, before a model is loaded."""
    known = {info.name: info for info in vtc.list_methods()}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f" There are: {', '.join(known)}."
            raise ValueError(f"there is no method {name!r}.{hint}")
        check_options(name, options, ["keep", *known[name].options])


def check_device(name: str | None) -> None:
    """Refuse a GPU where there is none."""
    if name is not None and name.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"--device {name}: no CUDA device is available here; leave it out to run on the CPU")


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
    """What `vtc.load` takes."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: try cpu, cuda, cuda:0 or auto")
    return text


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part.strip()) for part in text.split(",") if part.strip()]


def existing_folders(*files: str | None) -> None:
    """Make the folders that results are going to be written to."""
    for file in filter(None, files):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
