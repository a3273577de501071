"""The fenced blocks of README, CONTRIBUTING and the pages of docs/, and how one is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
RUN = {"python", "bash"}
SHOWN = {"text", "json", "console"}  # output and contents of files; tests/cli/shown.py prints what "console" shows
#: how much is done here where a command says how much: what is shown works the same with little
MOST = {"limit": 4, "steps": 2, "trials": 2}
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


#: shell lines that write a file
_WRITES = re.compile(r"cat > \S+ <<(\w+)\n.*?\n\1\n|printf '[^']*' > \S+\n", re.DOTALL)
_QUOTED = re.compile(r"\"[^\"$`]*\"|'[^']*'")


def commands(code: str) -> list[list[str] | str] | None:
    """A shell block of plain `vtc` commands, and of lines that write files, in their order: the arguments of a command,
    the text of what writes a file. None for any other block.

    The commands run in this process, which spares each of them the import of PyTorch.
    """
    found: list[list[str] | str] = []
    rest = code.replace("\\\n", " ")
    while rest:
        if writes := _WRITES.match(rest):
            found.append(writes[0])
            rest = rest[writes.end() :]
            continue
        line, _, rest = rest.partition("\n")
        words = shlex.split(line, comments=True)
        if words and (words[0] != "vtc" or re.search(r"[|&;<>$`]", _QUOTED.sub("", line))):
            return None
        found += [words[1:]] if words else []
    return found


def less(code: str) -> str:
    """The block with at most `MOST` questions, steps or trials where a command, or a file of settings, has more."""
    said = re.compile(rf"(--|^)({'|'.join(MOST)})( | = )(\d+)", re.MULTILINE)
    return said.sub(lambda found: f"{''.join(found.groups()[:3])}{min(int(found[4]), MOST[found[2]])}", code)


def run(
    block: Block,
    page: str,
    namespace: dict[str, Any],
    folder: Path,
    alone: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Run a block in the current folder, which is `folder`; AssertionError with its output if a command fails.

    A command with a plug-in runs within `alone()`, since the page's Python may have taken its names already.
    """
    if block.language == "python":
        if name := re.match(r"# (\w+\.py)\n", block.code):  # "save this as ..."
            (folder / name.group(1)).write_text(block.code)
        padded = "\n" * block.line + block.code  # so that a traceback shows the page's line numbers
        exec(compile(padded, page, "exec", dont_inherit=True), namespace)  # not with this file's __future__
        return
    code = less(block.code)
    for step in commands(code) or [code]:
        if isinstance(step, str):
            status, said = _in_shell(step)
        else:
            with alone() if "--plugin" in step else nullcontext():
                status, said = _in_process(step)
        assert status in (0, None), f"{page} line {block.line}: status {status} of {step}\n{said}"


def _in_process(words: list[str]) -> tuple[object, str]:
    try:
        return main(words), ""
    except SystemExit as end:  # --version, --help
        return end.code, ""


def _in_shell(code: str) -> tuple[object, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-eu", "-c", code],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, f"{done.stdout}\n{done.stderr}"
