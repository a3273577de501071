"""What docs/cli.md shows of commands, as they print it now: `python -m tests.cli.shown` writes it anew."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
_BLOCK = re.compile(r"```console\n\$ vtc (.*)\n(?:.*\n)*?```")


def rendered(page: str) -> str:
    """The page with what each command in a ```console block prints in 80 columns."""
    return _BLOCK.sub(lambda block: f"```console\n$ vtc {block[1]}\n{_printed(block[1])}\n```", page)


def _printed(line: str) -> str:
    command = [sys.executable, "-m", "vtc", *shlex.split(line)]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).rstrip()


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
