"""tiny-llava: the small vision-language model that ships with the package, and everything that made it."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """Names of the checkpoints that ship with the package."""
    return sorted(p.parent.name for p in _HERE.glob("*/config.json"))


def path(name: str = "tiny-llava") -> Path:
    """Folder of a shipped checkpoint; it loads through AutoModelForImageTextToText and AutoProcessor."""
    folder = _HERE / name
    if not (folder / "config.json").is_file():
        raise ValueError(f"no shipped model is called {name!r}; there are: {', '.join(names()) or 'none'}")
    return folder
