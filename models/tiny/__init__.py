"""The small vision-language models that ship with the package, and everything that made them."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """Names of the checkpoints that ship with the package."""
    return sorted(p.parent.name for p in _HERE.glob("*/config.json"))


def source(name_or_path: str | Path) -> str:
    """What transformers loads by this name: the folder of a shipped checkpoint, or the path or Hub id as it is."""
    return str(path(str(name_or_path)) if str(name_or_path) in names() else name_or_path)


def find(name_or_path: str | Path) -> str:
    """`source`, once it is sure that a local folder is there; FileNotFoundError if not."""
    place = source(name_or_path)
    local = Path(place).expanduser()
    if (local.is_absolute() or place.startswith((".", "~"))) and not local.is_dir():
        raise FileNotFoundError(f"there is no model folder {place!r}; shipped models: {', '.join(names())}.")
    return place


def path(name: str = "tiny-llava") -> Path:
    """Folder of a shipped checkpoint; it loads through AutoModelForImageTextToText and AutoProcessor."""
    folder = _HERE / name
    if not (folder / "config.json").is_file():
        raise ValueError(f"no shipped model is called {name!r}; there are: {', '.join(names()) or 'none'}")
    return folder
