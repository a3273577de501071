"""Types of command-line arguments, and checks that commands share. Nothing here imports torch."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
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
        known_name(name, known, "method")
        check_options(name, [*options, *written], ["keep", *known[name].options])
        if "keep" in written:
            check_keep(written["keep"])
        if written.keys() - {"keep"}:
            vtc.resolve(name, **written)  # the values are the class's to check
    return [name for own in read for name, _ in own]


def check_general(names: Sequence[str], where: str) -> None:
    """Refuse methods that models of one kind alone can run, `where` such models are not."""
    for info in vtc.list_methods():
        if info.name in names and info.only:
            raise ValueError(
                f"{info.name} is for models of {' and '.join(info.only)} alone, which {where} does not run"
            )


def known_name(name: str, known: Collection[str], what: str) -> str:
    """`name`, if it is among `known`; else ValueError with the one that may have been meant, or with all of them."""
    if name not in known:
        hint = did_you_mean(name, known) or f" There are: {', '.join(known)}."
        raise ValueError(f"there is no {what} {name!r}.{hint}")
    return name


def check_device(name: str | None) -> None:
    """Refuse an accelerator that is not here."""
    kind, _, number = (name or "cpu").partition(":")
    if kind not in ("cuda", "mps", "xpu"):
        return
    import torch

    there = int(torch.backends.mps.is_available()) if kind == "mps" else getattr(torch, kind).device_count()
    if not there:
        title = kind.upper()
        raise ValueError(f"--device {name}: no {title} device is available here; leave it out to run on the CPU")
    if int(number or 0) >= there:
        raise ValueError(f"--device {name}: there is no such device; the last one here is {kind}:{there - 1}")


def check_file(option: str, name: str | None, endings: Collection[str] = ()) -> None:
    """Refuse to write a file where that will not do: before the work whose result it is for. Leaves nothing behind.

    Args:
        option: as the user writes it, "--save". name: None = it was not given.
        endings: of which the name must have one, ".png"; () = any.
    """
    if name is None:
        return
    file = Path(name)
    if name:
        _try(option, name, file.exists)  # a name that is too long, or a folder that may not be looked into
    if not name or file.is_dir():
        raise ValueError(f"{option} {name!r} is {'a folder' if name else 'empty'}: give the name of a file")
    if endings and file.suffix.lower() not in endings:
        *most, last = endings
        raise ValueError(f"{option} {name}: end the name in {', '.join(most)} or {last}")
    if file.exists():
        _try(option, name, lambda: file.open("ab").close())
    else:
        check_folder(option, str(file.parent), name)


def check_folder(option: str, name: str | None, whole: str | None = None) -> None:
    """Refuse to write into a folder where that will not do, whether it is there yet or not. Leaves nothing behind.

    Args:
        option, name: as for `check_file`. whole: what the user wrote, if it is not `name`.
    """
    if name is None:
        return
    if not name:
        raise ValueError(f"{option} '' is empty: give the name of a folder")
    import tempfile

    place, shown = Path(name), whole or name
    _try(option, shown, place.exists)
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{option} {shown!r} cannot be written: {str(place)!r} is a file, not a folder")
    _try(option, shown, lambda: tempfile.TemporaryFile(dir=place).close())


def _try(option: str, name: str, look: Callable[[], object]) -> None:
    try:
        look()
    except OSError as error:
        raise ValueError(f"{option} {name!r} cannot be written: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def keep(text: str) -> int | float:
    """'64' is a count, '0.1' a fraction."""
    try:
        return read_keep(text)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    return _whole(text, 1)


def whole(text: str) -> int:
    """A seed, or how many of something that may be none."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
    return int(text)


def positive(text: str) -> float:
    """A rate: frames per second, or of learning."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def device(text: str) -> str:
    """What `vtc.load` takes."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: try cpu, cuda, cuda:0 or auto")
    return text


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A type of arguments that are lists, "a,b"; commas within brackets or quotes are part of an entry."""

    def read(text: str) -> list[Any]:
        parts = [part for part in split_outside(text, ",") if part]
        if not parts:
            raise argparse.ArgumentTypeError(f"{text!r} is an empty list: give one entry or more, as in a,b")
        return [kind(part) for part in parts]

    return read


def existing_folders(*files: str | None) -> None:
    """Make the folders that results are going to be written to."""
    for file in filter(None, files):
        Path(file).parent.mkdir(parents=True, exist_ok=True)


class Once(argparse.Action):
    """Stores a value, as argparse does by itself, but refuses a second one: argparse would forget the first."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        given = vars(namespace).setdefault("given_once", set())
        if option is not None and self.dest in given:
            raise argparse.ArgumentError(self, "given twice, where one is wanted")
        given.add(self.dest)
        setattr(namespace, self.dest, values)
