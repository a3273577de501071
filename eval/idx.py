"""Pictures and labels in the IDX files of MNIST and its successors, gzipped: <split>-images-idx3-ubyte.gz and the like.

An IDX file is four bytes (0, 0, type of the elements, number of axes), the length of each axis as a big-endian int32,
then the elements, the last axis fastest (Y. LeCun's description of MNIST). Here elements are unsigned bytes (type 8).
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_BYTES = 8  # the type of an unsigned byte


def files(folder: Path, split: str) -> tuple[Path, Path]:
    """Where the pictures and the labels of a split ("train" or "t10k") lie."""
    return folder / f"{split}-images-idx3-ubyte.gz", folder / f"{split}-labels-idx1-ubyte.gz"


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The pictures [N, height, width] and their labels [N], as bytes.

    Raises:
        FileNotFoundError: one of the files is not there. ValueError: one is damaged, or they do not belong together.
    """
    pictures, labels = (_array(file, axes) for file, axes in zip(files(folder, split), (3, 1), strict=True))
    if len(pictures) != len(labels):
        raise ValueError(f"{folder} has {len(pictures)} pictures and {len(labels)} labels of {split}: expected as many")
    return pictures, labels


def write(folder: Path, split: str, pictures: np.ndarray, labels: np.ndarray) -> None:
    """The same the other way; files of the same content are the same bytes."""
    for file, array in zip(files(folder, split), (pictures, labels), strict=True):
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, _BYTES, array.ndim, *array.shape)
        file.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def _array(file: Path, axes: int) -> np.ndarray:
    import numpy as np

    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{file} is not whole, or not gzipped ({error}): fetch it again") from None
    start = 4 + 4 * axes
    kind = tuple(content[:4])
    if kind != (0, 0, _BYTES, axes) or len(content) < start:
        raise ValueError(f"{file} is no IDX file of bytes with {axes} axes: it begins with {kind}")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{file} has {len(content) - start} elements, and says {math.prod(shape)}: fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
