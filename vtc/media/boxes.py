"""How many samples an MP4 file speaks of, told from its boxes alone (ISO/IEC 14496-12).

A table of samples of equal size is one number, and FFmpeg makes room for each sample of it as soon as it opens the
file: 24 bytes for every one of up to four billion. So this is looked at first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

_INNER = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
_STARTS = {b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"styp", b"sidx", b"pnot"}
_PACKED = b"cmov"  # a zipped table: what is in it cannot be told before it is unzipped


def samples(file: Path, most: int) -> int:
    """The largest number of samples that a table of an MP4 file speaks of; 0 of a file of another kind.

    Counted are stsz and stz2 (samples of a track), stts and ctts (times, in runs), and trun (samples of a fragment,
    summed over all fragments). Counting ends above `most`. A zipped table (cmov) counts as more than `most`, and so
    do more than `8 * most + 1000` boxes.

    Example: a file whose only table is an stsz of 12 bytes, "all samples have 1 byte, there are 100 million": 10**8.
    """
    with file.open("rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(4)
        if stream.read(4) not in _STARTS:
            return 0
        largest, in_fragments = 0, 0
        for number, (name, start, stop) in enumerate(_boxes(stream, 0, end)):
            if name == _PACKED or number > 8 * most + 1000:
                return most + 1
            count = _count(stream, name, start, stop)
            if name == b"trun":
                in_fragments += count
            largest = max(largest, count, in_fragments)
            if largest > most:
                break
    return largest


def _boxes(stream: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte of its content, end) of every box, those inside others after them."""
    open_ends = [end]
    while True:
        while open_ends and start + 8 > open_ends[-1]:
            start = open_ends.pop()
        if not open_ends:
            return
        stream.seek(start)
        head = stream.read(16)
        size, name, content = int.from_bytes(head[:4]), head[4:8], start + 8
        if size == 1:  # its size follows, in 64 bits
            size, content = int.from_bytes(head[8:16]), start + 16
        stop = min(start + size, open_ends[-1]) if size else open_ends[-1]
        if stop < content:  # broken: nothing after it can be told apart
            start = open_ends.pop()
            continue
        yield name, content, stop
        start = stop
        if name in _INNER:
            open_ends.append(stop)
            start = content


def _count(stream: BinaryIO, name: bytes, start: int, stop: int) -> int:
    """Samples that one table speaks of; after 4 bytes of version and flags, its fields have 4 bytes each."""
    if name not in (b"stsz", b"stz2", b"trun", b"stts", b"ctts"):
        return 0
    stream.seek(start + 4)
    if name in (b"stsz", b"stz2"):
        stream.seek(4, 1)  # the size of all samples
    number = int.from_bytes(stream.read(4))
    if name in (b"stsz", b"stz2", b"trun"):
        return number
    runs = np.frombuffer(stream.read(min(8 * number, max(0, stop - stream.tell()) // 8 * 8)), dtype=">u4")
    return int(runs[::2].sum(dtype=np.uint64))  # of (samples, time)
