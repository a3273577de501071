"""Files that ask for more than they seem to: MP4 boxes written by hand."""

from __future__ import annotations

import struct
from pathlib import Path


def box(name: str, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), name.encode()) + body


def full(name: str, *content: bytes) -> bytes:
    """A box whose content begins with version and flags, which are 0."""
    return box(name, bytes(4), *content)


def words(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def entry(width: int, height: int) -> bytes:
    """What kind of samples these are: Motion JPEG of a size."""
    return box(
        "jpeg", bytes(6), b"\x00\x01", bytes(16), struct.pack(">HH", width, height), words(0x480000, 0x480000, 0),
        b"\x00\x01", bytes(32), struct.pack(">Hh", 24, -1),
    )  # fmt: skip


def movie(file: Path, table: bytes, size: tuple[int, int] = (64, 48), more: bytes = b"") -> Path:
    """An MP4 of one video track with the sample table `table`, and further boxes of the top level."""
    matrix = words(0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    head = full("mvhd", words(0, 0, 1000, 1000, 0x10000), bytes(12), matrix, bytes(24), words(2))
    track = full("tkhd", words(0, 0, 1, 0, 1000), bytes(16), matrix, words(size[0] << 16, size[1] << 16))
    handler = full("hdlr", bytes(4), b"vide", bytes(12), b"\0")
    media = full("mdhd", words(0, 0, 1000, 1000, 0))
    place = box("dinf", full("dref", words(1), box("url ", words(1))))
    samples = box("stbl", full("stsd", words(1), entry(*size)), table)
    inner = box("mdia", media, handler, box("minf", full("vmhd", bytes(8)), place, samples))
    file.write_bytes(
        box("ftyp", b"isom", words(512), b"isom")
        + box("moov", head, box("trak", track, inner), box("mvex", full("trex", words(1, 1, 0, 0, 0))))
        + more
        + box("mdat", bytes(1000))
    )
    return file


def equal_samples(count: int) -> bytes:
    """A table of `count` samples of a byte each, all in one chunk."""
    return (
        full("stts", words(1, count, 1)) + full("stsc", words(1, 1, count, 1)) + full("stsz", words(1, count))
        + full("stco", words(1, 600))
    )  # fmt: skip


def fragments(each: int, number: int) -> bytes:
    """Fragments that say that they have `each` samples, and nothing about any of them."""
    run = box("traf", full("tfhd", words(1)), full("trun", words(each)))
    return box("moof", full("mfhd", words(1)), run) * number
