"""The fenced blocks of README, CONTRIBUTING and the pages of docs/, and how one is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
RUN = {"python", "bash"}
SHOWN = {"text", "json", "console"}  # output and contents of files; tests/cli/shown.py prints what "console" shows
NOT_RUN = re.compile(r"<!--\s*not run:(.*?)-->")


@dataclass(frozen=True)
class Block:
    """One fenced block: `line` is that of its fence; `not_run` the reason that stands above it."""

    line: int
    language: str
    code: str
    not_run: str | None


def pages() -> list[Path]:
    """README and its like, and what is written in docs/; not what `docs.generate` writes there, which git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    found = [ROOT / name for name in listed if name and ("/" not in name or name.startswith("docs/"))]
    return sorted(page for page in found if page.exists())


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a Markdown text; the fence may be indented, as in a list."""
    found: list[Block] = []
    above, start, lines = "", None, text.splitlines()
    for number, line in enumerate(lines, 1):
        if start is not None:
            if line.strip() == "```":
                opening = lines[start - 1]
                indent = len(opening) - len(opening.lstrip())
                code = "".join(f"{inside[indent:]}\n" for inside in lines[start : number - 1])
                reason = NOT_RUN.fullmatch(above.strip())
                language = opening.strip()[3:].strip()
                found.append(Block(start, language, code, reason and reason.group(1).strip()))
                start, above = None, ""
        elif line.lstrip().startswith("```"):
            start = number
        elif line.strip():
            above = line
    assert start is None, f"the block in line {start} never ends"
    return found


def commands(code: str) -> list[list[str]] | None:
    """A shell block of nothing but plain `vtc` commands as lists of arguments; None for any other.

    Those run in this process, which spares each of them the import of PyTorch; not with a plug-in, whose names the
    page's Python may have taken already.
    """
    found = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    found = [words for words in found if words]
    quoted = re.compile(r"\"[^\"$`]*\"|'[^']*'")
    plain = "--plugin" not in code and not re.search(r"[|&;<>$`]", quoted.sub("", code))
    return [words[1:] for words in found] if plain and all(words[0] == "vtc" for words in found) else None


def run(block: Block, page: str, namespace: dict[str, Any], folder: Path) -> None:
    """Run a block in the current folder, which is `folder`; AssertionError with its output if a command fails."""
    if block.language == "python":
        if name := re.match(r"# (\w+\.py)\n", block.code):  # "save this as ..."
            (folder / name.group(1)).write_text(block.code)
        padded = "\n" * block.line + block.code  # so that a traceback shows the page's line numbers
        exec(compile(padded, page, "exec", dont_inherit=True), namespace)  # not with this file's __future__
    elif (lines := commands(block.code)) is not None:
        for line in lines:
            try:
                status = main(line)
            except SystemExit as end:  # --version, --help
                status = end.code
            assert status in (0, None), f"{page} line {block.line}: status {status} of vtc {shlex.join(line)}"
    else:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["sh", "-eu", "-c", block.code],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{page} line {block.line}:\n{done.stdout}\n{done.stderr}"
