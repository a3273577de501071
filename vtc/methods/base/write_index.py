"""Write `vtc/methods/index.json` from the classes: `python -m vtc.methods.base.write_index`."""

from __future__ import annotations

from vtc.methods.base import index
from vtc.methods.base.registry import describe, discover


def current() -> str:
    """What the file should hold."""
    own = [cls for cls in discover().values() if cls.__module__.startswith("vtc.methods.")]
    return index.text_of([describe(cls) for cls in own])


def main() -> None:
    """Write it, and print where it lies."""
    index.FILE.write_text("[]\n", encoding="utf-8")  # one of before a change to MethodInfo could not be read
    index.FILE.write_text(current(), encoding="utf-8")
    print(index.FILE)


if __name__ == "__main__":
    main()
