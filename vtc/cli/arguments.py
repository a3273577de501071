"""Types of command-line arguments, and checks that commands share. Nothing here imports torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import vtc
from vtc.budget import check_keep, read_keep
from vtc.hints import did_you_mean
from vtc.methods.base.notation import read_methods, split_outside
from vtc.methods.base.registry import check_options


def check_methods(texts: Sequence[str], options: Iterable[str] = (), several: bool = False) -> list[str]:
    """Refuse an unknown name, or options that a method does not have, before a model is loaded.

    Args:
        texts: "fastv", "fastv(keep=0.2)"; if `several` may act one after another, "vtc-cls + fastv", too.
        options: that are given besides.

    Returns:
        their names.
    """
    known = {info.name: info for info in vtc.list_methods()}
    read = [read_methods(text) for text in texts]
    for text, own in zip(texts, read, strict=True):
        if len(own) > 1 and not several:
            raise ValueError(f"{text!r} are several methods, where one is expected: give one at a time")
    for name, written in [one for own in read for one in own]:
        if name not in known:
            hint = did_you_mean(name, known) or f" There are: {', '.join(known)}."
            raise ValueError(f"there is no method {name!r}.{hint}")
        check_options(name, [*options, *written], ["keep", *known[name].options])
        if "keep" in written:
            check_keep(written["keep"])
        if written.keys() - {"keep"}:
            vtc.resolve(name, **written)  # the values are the class's to check
    return [name for own in read for name, _ in own]


def check_device(name: str | None) -> None:
    """Refuse a GPU where there is none."""
    if name is not None and name.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"--device {name}: no CUDA device is available here; leave it out to run on the CPU")


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
    """What `vtc.load` takes."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: try cpu, cuda, cuda:0 or auto")
    return text


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A type of arguments that are lists, "a,b"; commas within brackets or quotes are part of an entry."""
    return lambda text: [kind(part) for part in split_outside(text, ",") if part]


def existing_folders(*files: str | None) -> None:
    """Make the folders that results are going to be written to."""
    for file in filter(None, files):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
