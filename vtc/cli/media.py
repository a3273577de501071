"""Pictures and videos that the command line names: files, or addresses, which are fetched first."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import vtc

if TYPE_CHECKING:
    from PIL import Image

    from vtc.media.video import Clip

Read = TypeVar("Read")
MEGABYTES = {"picture": 50, "video": 500}


def pictures(names: Sequence[str]) -> list[Image.Image]:
    """Pictures of files or web addresses; one sentence (OSError, ValueError) if one cannot be had."""
    return [_read(name, "picture", vtc.load_picture) for name in names]


def clips(names: Sequence[str], frames: int | None, fps: float | None, any_size: bool = False) -> list[Clip]:
    """Videos, sampled as `vtc.load_clip` does; errors as for pictures. any_size: without its limits."""
    from vtc.media.limits import ClipLimits, TooLarge

    def read(file: Any) -> Clip:
        try:
            with _quiet():
                return vtc.load_clip(file, frames, fps, limits=None if any_size else ClipLimits())
        except TooLarge as error:
            raise ValueError(f"{error.said}: make it smaller, or give --any-size") from None

    return [_read(name, "video", read) for name in names]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries in C write to stderr about a file that they cannot read."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _read(name: str, what: str, read: Callable[[Any], Read]) -> Read:
    scheme, colon, _ = name.partition("://")
    if not colon:
        return read(name)
    if scheme.lower() not in ("http", "https"):
        raise ValueError(f"{name}: only http:// and https:// are fetched; give a file, or one of these")
    from vtc.cli.fetch import fetch  # it takes a while to import

    suffix = re.search(r"://[^/?#]*/[^?#]*(\.\w{1,8})(?:[?#]|$)", name, re.ASCII)
    with tempfile.TemporaryDirectory(prefix="vtc-") as folder:
        file = Path(folder, what + (suffix[1] if suffix else ""))
        fetch(name, file, MEGABYTES[what] * 10**6)
        try:
            return read(file)
        except (OSError, ValueError) as error:
            raise ValueError(str(error).replace(str(file), name)) from None
