"""How commands load a model: refused before torch is imported, where that can be, and without bars in a log file."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import vtc
from vtc.cli import arguments
from vtc.models import tiny


def check(name: str, device: str | None = None, classifiers: bool = False) -> None:
    """Refuse a model or a device that cannot be had, as far as can be told without loading it.

    Args:
        classifiers: whether a bare classifier will do.

    Raises:
        FileNotFoundError, ValueError: with one sentence.
    """
    tiny.find(name)
    if not classifiers and tiny.tells_classes(name):
        raise ValueError(
            f"{name} tells classes of pictures and answers no questions: give it to `vtc eval --data fashion-mnist`, "
            f"and another model here, such as {tiny.names()[0]}"
        )
    arguments.check_device(device)


def load(name: str, device: str | None = None, dtype: str | None = None, classifiers: bool = False) -> tuple[Any, Any]:
    """`vtc.load`; its bars are not shown where nobody looks on.

    Args:
        classifiers: whether a bare classifier will do.

    Raises:
        FileNotFoundError, ValueError: as `check`. OSError: the Hub is out of reach. Whatever `vtc.load` raises.
    """
    check(name, device, classifiers)
    _check_network(tiny.source(name))
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    from safetensors import SafetensorError

    try:
        return vtc.load(name, device=device, dtype=dtype)
    except SafetensorError as error:
        reason = f"its weights are damaged ({error}); fetch them again"
        raise ValueError(f"cannot load {name!r}: {reason}") from error
    except ValueError as error:  # of a file of its, or of its kind, of which transformers names all others
        other = "Unrecognized configuration class" in str(error)
        reason = "transformers knows it as no model of text and pictures" if other else error
        raise ValueError(f"cannot load {name!r}: {reason}") from error


def config_of(name: str) -> dict[str, Any]:
    """What a model's config.json holds, without transformers; of a model of the Hub that file alone is fetched.

    Raises:
        FileNotFoundError, ValueError, OSError: with one sentence.
    """
    place = tiny.find(name)
    file = Path(place).expanduser() / "config.json"
    if Path(place).expanduser().is_dir():
        if not file.is_file():
            raise FileNotFoundError(f"the folder {place!r} holds an adapter, without the model that it is for")
    else:
        _check_network(place)
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(place, "config.json"))
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot load {name!r}: its config.json is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"cannot load {name!r}: its config.json is not that of a model")
    return config


def _check_network(place: str) -> None:
    """Say at once that the Hub is out of reach, which its client tries for minutes to find out."""
    from urllib.request import getproxies

    from huggingface_hub import constants, try_to_load_from_cache

    if Path(place).expanduser().is_dir() or constants.HF_HUB_OFFLINE or getproxies():
        return
    if isinstance(try_to_load_from_cache(place, "config.json"), str):
        return
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        said = f"cannot load {place!r}: it is not on this machine, and {host} is not reached ({reason})"
        raise OSError(said) from None
