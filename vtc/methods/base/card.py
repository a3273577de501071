"""The card beside the weights of a trained method: what they are, and which model they belong to. Needs no torch."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

TENSORS, CARD, FORMAT = "module.safetensors", "module.json", 1


def tensors_of(weights: str | Path) -> Path:
    """The safetensors file that `weights`, itself or the folder around it, means."""
    path = Path(weights).expanduser()
    return path if path.suffix == ".safetensors" else path / TENSORS


def read_card(weights: str | Path, method: str) -> dict[str, Any]:
    """What the JSON beside the weights says; FileNotFoundError or ValueError with one sentence if it will not do."""
    file = tensors_of(weights)
    beside = file.with_suffix(".json")
    for path in (file, beside):
        if not path.is_file():
            raise FileNotFoundError(f"there are no weights in {weights}: {path} is missing; vtc.train writes it.")
    return _card(beside, beside.stat().st_mtime_ns, method)


@lru_cache(maxsize=32)
def _card(path: Path, written: int, method: str) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        known = {name: card[name] for name in ("format", "method", "model_type", "width", "options")}
        if not isinstance(known["options"], dict):
            raise TypeError("its options are no table")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe the weights of a method ({error!r}): train them anew.") from None
    if known["format"] != FORMAT or known["method"] != method:
        raise ValueError(
            f"{path} describes weights of {known['method']} in format {known['format']}; expected {method} in format "
            f"{FORMAT}."
        )
    return card
