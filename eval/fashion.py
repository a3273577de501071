"""Fashion-MNIST (Xiao et al., 2017; MIT licence) as questions: what garment is it, of ten?

Each picture of the test split is asked about twice. Task `picture`: the 28-px picture as it is. Task `canvas`: the same
at a random place of a black picture of 56 px, where it covers a quarter. Models that enlarge what they are shown lose
little when the first is made smaller (there is no more in it than 28 px tell), but a good deal of the second.
"""

from __future__ import annotations

import io
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.eval import idx
from vtc.eval.questions import Media, Question

if TYPE_CHECKING:
    import numpy as np

NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
TASKS = ("picture", "canvas")
CANVAS = 56  # pixels
MODEL = "tiny-vit"  # the shipped one that knows these classes
_SPLIT = "t10k"
_ASKED = "What is it?"


def is_fashion(path: Path) -> bool:
    """Whether a folder holds the test split, as https://github.com/zalandoresearch/fashion-mnist or Debian has it."""
    return all(file.is_file() for file in idx.files(path, _SPLIT))


def questions(folder: Path) -> list[Question]:
    """Each picture as it is, then on the canvas.

    Raises:
        ValueError: a file is damaged, or has labels other than these ten.
    """
    pictures, labels = idx.read(folder, _SPLIT)
    if len(labels) and labels.max() >= len(NAMES):
        raise ValueError(f"{folder} has the label {labels.max()}: expected 0 to {len(NAMES) - 1}, Fashion-MNIST's")
    makers = {"picture": _png, "canvas": _png_on_canvas}
    return [
        Question(
            id=f"{task}-{number}",
            media=Media("image", f"{task}-{number}", read=partial(makers[task], number, picture), of=str(number)),
            question=_ASKED,
            answers=(NAMES[label],),
            task=task,
            choices=NAMES,
        )
        for number, (picture, label) in enumerate(zip(pictures, labels, strict=True))
        for task in TASKS
    ]


def place(number: int, side: int) -> tuple[int, int]:
    """Row and column of a picture's corner on the canvas: any, and always the same for the picture of this number."""
    draw = random.Random(number)
    return draw.randint(0, CANVAS - side), draw.randint(0, CANVAS - side)


def _png_on_canvas(number: int, picture: np.ndarray) -> bytes:
    import numpy as np

    top, left = place(number, max(picture.shape))
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return _png(number, canvas)


def _png(number: int, picture: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()
