"""Prints what each method adds to a prefill on a GPU, counted without one: `python -m tests.engine.count_table`.

The tiny LLaVA, 36 visual tokens a row; its reference kernels, of which some loop where a Triton kernel does not.
"""

from __future__ import annotations

import contextlib
import warnings

import vtc
from tests.engine.test_device_cost import FOUR, ours, prefill
from tests.sweep import CACHE, INPUT, LAYER, only_videos


def main() -> None:
    warnings.filterwarnings("ignore")
    ones = vtc.Random(keep=1.0)
    print("| method | waits | launches, 1 row | launches, 4 rows |\n|---|---|---|---|")
    with contextlib.redirect_stderr(None):
        for name, made in {"random, keep=1.0": lambda: ones, **INPUT, **LAYER, **CACHE}.items():
            if name.split(",")[0] != "random" and only_videos(name):
                continue
            one, four = (prefill("llava", made(), rows) for rows in ([[1]], FOUR))
            added = [sum(n for line, n in counted.launches.items() if line != "other") for counted in (one, four)]
            print(f"| {name} | {sum(ours(one).values())} | {added[0]} | {added[1]} |")


if __name__ == "__main__":
    main()
