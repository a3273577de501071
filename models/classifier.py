"""Bare classifiers: a timm model's folder, as `timm.create_model("local-dir:...", pretrained=True)` reads it.

Such a folder has config.json with `architecture`, `model_args` and `pretrained_cfg`, and model.safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Preparation:
    """Turns pictures into a classifier's input.

    Attributes:
        size: pixels (height, width) that it is fed. mean, std: of the channels, in [0, 1]. names: of its classes.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...]

    def __call__(self, pictures: Sequence[Image.Image], size: tuple[int, int] | None = None) -> Tensor:
        """[N, 3, height, width], float32; of `size` if given. Resized bilinearly, each side for itself."""
        height, width = size or self.size
        content = bytearray(b"".join(_bytes(picture, height, width) for picture in pictures))
        pixels = torch.frombuffer(content, dtype=torch.uint8).view(-1, height, width, 3).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def load(folder: str | Path, device: str | torch.device, dtype: torch.dtype) -> tuple[Any, Preparation]:
    """The model, in evaluation mode, and what prepares pictures for it.

    Raises:
        ImportError: timm is not installed. ValueError: the folder says too little, such as no names of its classes.
    """
    try:
        import timm
    except ImportError:
        raise ImportError(f"{folder} is a model of timm's, which is missing: pip install 'vtc-vlm[encoders]'") from None
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    known = model.pretrained_cfg
    names = known.get("label_names")
    if not names or len(names) != model.num_classes:
        raise ValueError(
            f"{folder}/config.json names {len(names or ())} classes, and the model has {model.num_classes}: put a list "
            "label_names into its pretrained_cfg"
        )
    size = tuple(known["input_size"][1:])
    return model.to(device, dtype).eval(), Preparation(size, tuple(known["mean"]), tuple(known["std"]), tuple(names))


def _bytes(picture: Image.Image, height: int, width: int) -> bytes:
    resized = picture.convert("RGB")
    if resized.size != (width, height):
        resized = resized.resize((width, height), Image.Resampling.BILINEAR)
    return resized.tobytes()
