"""The tables of docs/serve.md, from what `python -m vtc.serving.bench` wrote:

    python -m docs.generate.serve runs/serve/results.json

keeps it as docs/bench/serve-cpu.json and writes its tables between the marks on the page.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from vtc.serving.bench import pages

PAGE = Path(__file__).resolve().parents[1] / "serve.md"
KEPT = PAGE.parent / "bench" / "serve-cpu.json"
START, END = "<!-- measured -->", "<!-- /measured -->"


def tables() -> str:
    """What stands between the marks: both marks, and the tables if there is anything measured."""
    found = pages(json.loads(KEPT.read_text(encoding="utf-8"))) if KEPT.is_file() else ""
    return f"{START}\n\n{found}\n{END}" if found else f"{START}\n{END}"


def write(page: str) -> str:
    """`page` with the tables of the kept results."""
    before, _, rest = page.partition(START)
    return before + tables() + rest.partition(END)[2]


def main(arguments: list[str]) -> int:
    """Keep the results of a file, or those that are kept already, and write the page; 2 if it is called otherwise."""
    if len(arguments) > 1 or not all(Path(file).is_file() for file in arguments):
        print("python -m docs.generate.serve [results.json]: give one file that is there", file=sys.stderr)
        return 2
    for file in arguments:
        shutil.copyfile(file, KEPT)
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
