"""Types of command-line arguments, and checks that commands share."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import vtc
from vtc.budget import read_keep
from vtc.methods.base.notation import read_methods, split_outside


def check_methods(names: Sequence[str]) -> None:
    """Refuse an unknown name, or options that a method does not have, before a model is loaded.

    Args:
        names: as `vtc.wrap` takes them: "fastv", "fastv(keep=0.2)", "vtc-cls + fastv".
    """
    known = [info.name for info in vtc.methods()]
    for name, options in [one for text in names for one in read_methods(text)]:
        if options and name in known:
            vtc.resolve(name, **options)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ValueError(f"there is no method {name!r}; {hint}")


def keep(text: str) -> int | float:
    """'64' is a count, '0.1' a fraction."""
    try:
        return read_keep(text)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
    """A type of arguments that are lists, "a,b"; commas within brackets or quotes are part of an entry."""
    return lambda text: [kind(part) for part in split_outside(text, ",") if part]


def existing_folders(*files: str | None) -> None:
    """Make the folders that results are going to be written to."""
    for file in filter(None, files):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
