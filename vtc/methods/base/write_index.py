"""Write `vtc/methods/index.json` from the classes: `python -m vtc.methods.base.write_index`."""

from __future__ import annotations

from vtc.methods.base.index import FILE, text_of
from vtc.methods.base.registry import describe, discover


def current() -> str:
    """What the file should hold."""
    own = [cls for cls in discover().values() if cls.__module__.startswith("vtc.methods.")]
    return text_of([describe(cls) for cls in own])


if __name__ == "__main__":
    FILE.write_text(current(), encoding="utf-8")
    print(FILE)
