"""What a new part of vtc still lacks, line by line: `python -m tests.checklist method NAME` (or `make check-method`).

The files are read, not run, so the list can be asked at any time; that they are right is what the tests say.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from tests.checklist.family import family
from tests.checklist.kernel import kernel
from tests.checklist.method import method
from tests.checklist.parts import decoder, stage, tower
from tests.checklist.tree import Line, Tree

LISTS: dict[str, Callable[[Tree, str], list[Line]]] = {
    "method": method,
    "family": family,
    "kernel": kernel,
    "tower": tower,
    "decoder": decoder,
    "stage": stage,
}


def shown(lines: Sequence[Line]) -> str:
    """A list as text, what is missing marked."""
    rows = [f"  missing  {line.what}: {line.missing}" if line.missing else f"  ok       {line.what}" for line in lines]
    there = sum(not line.missing for line in lines)
    return "\n".join([*rows, f"{there} of {len(lines)} are there."])


def main(words: Sequence[str] | None = None, tree: Tree | None = None) -> int:
    """Print a checklist; the exit status is 1 if anything is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.checklist", description="What a new part of vtc still lacks."
    )
    parser.add_argument("kind", choices=LISTS)
    parser.add_argument("name", help="as users write it: divprune, llava, kmeans, clip_vision_model, llama, cache")
    asked = parser.parse_args(words)
    try:
        lines = LISTS[asked.kind](tree or Tree(), asked.name)
    except SyntaxError as error:
        parser.error(f"{error.filename}, line {error.lineno}, is not Python yet: {error.msg}")
    print(f"{asked.kind} {asked.name}\n{shown(lines)}")
    return int(any(line.missing for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
