"""Run the notebooks of docs/notebooks/: `python -m tests.notebooks.execute` writes the outputs that they show.

Kept are outputs alone: no counts, no times, no machine's name. A cell tagged "measured" shows numbers of one machine at
one time; the outputs of all others are the same wherever the versions of constraints.txt run.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "notebooks"
SECONDS = 300  # for a cell, on a machine that has other things to do
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def execute(path: Path, turns: int | None = None) -> Any:
    """The notebook after a run in a fresh kernel of this Python; CellExecutionError if a cell fails.

    What is measured is measured in so many `turns`, if they are given, and not as often as the cell says.
    """
    notebook = read(path)
    for cell in notebook.cells:
        if turns is not None and "measured" in cell.metadata.get("tags", []):
            cell.source, times = re.subn(r"(?<=for turn in range\()\d+", str(turns), cell.source)
            assert times == 1, "what is measured begins with `for turn in range(...)`"
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})  # this checkout's vtc
    return cleaned(notebook)


def cleaned(notebook: Any) -> Any:
    """Without what differs from run to run; of a picture in several formats the smallest."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = joined(cell.outputs)
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None
                keep_smallest(output.get("data", {}))
    return notebook


def joined(outputs: Sequence[Any]) -> list[Any]:
    """Without what went to stderr (bars, hints of other packages); what was printed in pieces is one piece."""
    found: list[Any] = []
    for output in outputs:
        printed = output.output_type == "stream"
        if printed and found and found[-1].output_type == "stream":
            found[-1].text += output.text if output.name == "stdout" else ""
        elif not printed or output.name == "stdout":
            found.append(output)
    return found


def keep_smallest(data: dict[str, Any]) -> None:
    pictures = sorted((name for name in data if name.startswith("image/")), key=lambda name: len(data[name]))
    for name in pictures[1:]:
        del data[name]


def said(cell: Any) -> list[str]:
    """What a cell shows in words, pictures by name alone."""
    words = []
    for output in cell.get("outputs", []):
        kinds = output.get("data", {})
        if output.output_type == "stream":
            words.append(output.text)
        elif any(kind.startswith("image/") for kind in kinds):
            words.append("a picture")
        elif kinds:
            words.append(kinds["text/plain"])
    return words


def main(names: Sequence[str]) -> None:
    for path in notebooks():
        if not names or path.name in names or path.stem in names:
            nbformat.write(execute(path), path)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
