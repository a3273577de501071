"""Pictures and videos that the command line names: files, or addresses, which are fetched first."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import vtc

if TYPE_CHECKING:
    from PIL import Image

    from vtc.media.video import Clip

Read = TypeVar("Read")
SECONDS = 60  # to fetch one file
MEGABYTES = {"picture": 50, "video": 500}
_WAIT = 15  # s without a byte
_PIECE = 1 << 16


def pictures(names: Sequence[str]) -> list[Image.Image]:
    """Pictures of files or web addresses; one sentence (OSError, ValueError) if one cannot be had."""
    return [_read(name, "picture", vtc.load_picture) for name in names]


def clips(names: Sequence[str], frames: int | None, fps: float | None) -> list[Clip]:
    """Videos, sampled as `vtc.load_clip` does; errors as for pictures."""

    def read(file: Any) -> Clip:
        with _quiet():
            return vtc.load_clip(file, frames, fps)

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
    with tempfile.TemporaryDirectory(prefix="vtc-") as folder:
        file = Path(folder, what).with_suffix(Path(urlsplit(name).path).suffix)
        fetch(name, file, MEGABYTES[what] * 10**6)
        try:
            return read(file)
        except (OSError, ValueError) as error:
            raise ValueError(str(error).replace(str(file), name)) from None


def fetch(address: str, file: Path, most: int) -> None:
    """Write what lies at a web address into a file.

    Args:
        most: bytes that are accepted.

    Raises:
        OSError: it cannot be had, or not within SECONDS. ValueError: it is larger than `most`, or no address.
    """
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    until = time.monotonic() + SECONDS
    try:
        with urlopen(Request(address, headers={"User-Agent": "vtc"}), timeout=_WAIT) as answer, file.open("wb") as out:
            size = int(answer.headers.get("Content-Length") or 0)
            while size <= most and (piece := answer.read(_PIECE)):
                out.write(piece)
                size = max(size, out.tell())
                if time.monotonic() > until:
                    raise TimeoutError(f"it takes longer than {SECONDS} seconds")
    except (OSError, HTTPException) as error:
        reason = error.reason if type(error) is URLError else error
        raise OSError(f"{address} cannot be fetched: {reason}") from None
    if size > most:
        raise ValueError(f"{address} is larger than {most / 10**6:g} MB: fetch a smaller one, or give a file")
