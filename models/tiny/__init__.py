"""The small models that ship with the package, and everything that made them: of vision and language; a classifier."""

import json
import re
from pathlib import Path

from vtc.hints import did_you_mean

_HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """Names of the vision-language models that ship with the package."""
    return [name for name in _shipped() if not is_classifier(_HERE / name)]


def classifiers() -> list[str]:
    """Names of the classifiers that ship with the package."""
    return [name for name in _shipped() if is_classifier(_HERE / name)]


def _shipped() -> list[str]:
    return sorted(p.parent.name for p in _HERE.glob("*/config.json"))


def is_classifier(folder: Path) -> bool:
    """Whether a folder holds a model of timm's, by its config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and isinstance(config.get("architecture"), str) and "model_type" not in config


def tells_classes(name_or_path: str | Path) -> bool:
    """Whether a model is a bare classifier, as far as can be told without fetching it."""
    return is_classifier(Path(source(name_or_path)).expanduser())


def source(name_or_path: str | Path) -> str:
    """What transformers loads by this name: the folder of a shipped checkpoint, or the path or Hub id as it is."""
    return str(path(str(name_or_path)) if str(name_or_path) in _shipped() else name_or_path)


def find(name_or_path: str | Path) -> str:
    """`source`, once it is sure that it can be one: a folder that holds a model, or a Hub id (owner/name).

    Raises:
        FileNotFoundError: with one sentence, and the shipped name that may have been meant.
    """
    place = source(name_or_path)
    local = Path(place).expanduser()
    if place and local.is_dir():
        if not any((local / card).is_file() for card in ("config.json", "adapter_config.json")):
            raise FileNotFoundError(f"the folder {place!r} holds no model: there is no config.json in it.")
        return place
    every = _shipped()
    shipped = f"shipped models: {', '.join(every)}."
    if local.is_absolute() or place.startswith((".", "~")) or place.count("/") > 1:
        raise FileNotFoundError(f"there is no model folder {place!r}; {shipped}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        hint = did_you_mean(place, every) or f" Give a folder, a Hub id (owner/name), or one of the {shipped}"
        raise FileNotFoundError(f"there is no model {place!r}.{hint}")
    return place


def reads_videos(name_or_path: str | Path) -> bool | None:
    """Whether the processor in a model's folder takes videos; None where that is not known, as on the Hub."""
    folder = Path(source(name_or_path)).expanduser()
    try:
        own = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if "image_processor" not in own:  # one of before transformers 5, which says nothing of it
        return None
    return "video_processor" in own


def path(name: str = "tiny-llava") -> Path:
    """Folder of a shipped checkpoint; it loads through AutoModelForImageTextToText and AutoProcessor."""
    folder = _HERE / name
    if not (folder / "config.json").is_file():
        raise ValueError(f"no shipped model is called {name!r}; there are: {', '.join(_shipped()) or 'none'}")
    return folder
