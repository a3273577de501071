"""Every code block of the README runs as written, section by section, as a reader would run it in a fresh clone.

Python blocks of a section share one namespace. Shell blocks run with the environment's commands on the path. A block
that a test cannot run has `<!-- not run: reason -->` on the line above it.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vtc.methods.base import registry

ROOT = Path(__file__).resolve().parents[1]
RUN = {"python", "bash"}
SHOWN = {"text", "json"}  # output and file contents, not code
NOT_RUN = re.compile(r"<!--\s*not run:(.*?)-->")


@dataclass
class Block:
    section: str
    line: int
    language: str
    code: str
    not_run: str | None


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a Markdown text, with the heading (of level 1 or 2) they stand under."""
    found, section, above, fence = [], "top", "", None
    for number, line in enumerate(text.splitlines(), 1):
        if fence is not None:
            if line.strip() == "```":
                found.append(fence)
                fence = None
                above = ""
            else:
                fence.code += line + "\n"
        elif line.lstrip().startswith("```"):
            reason = NOT_RUN.fullmatch(above.strip())
            fence = Block(section, number, line.strip()[3:].strip(), "", reason and reason.group(1).strip())
        else:
            if heading := re.match(r"##? +(.*)", line):
                section = heading.group(1)
            above = line if line.strip() else above
    assert fence is None, f"the block in line {fence.line} never ends"
    return found


BLOCKS = blocks((ROOT / "README.md").read_text(encoding="utf-8")) if (ROOT / "README.md").exists() else []
CODE = [block for block in BLOCKS if block.language in RUN]
SECTIONS = list(dict.fromkeys(block.section for block in CODE if block.not_run is None))


def test_every_block_runs_or_says_why_not():
    assert CODE, "the README has no code"
    for block in BLOCKS:
        assert block.language in RUN | SHOWN, (
            f"line {block.line}: say python, bash, text or json, not {block.language!r}"
        )
        assert block.not_run is None or len(block.not_run) > 5, f"line {block.line}: 'not run' needs a reason"
    skipped = [block for block in CODE if block.not_run is not None]
    print(f"{len(CODE) - len(skipped)} blocks run, {len(skipped)} not:")
    for block in skipped:
        print(f"  line {block.line}: {block.not_run}")
    assert len(skipped) < len(CODE) / 2


@pytest.mark.parametrize("section", SECTIONS)
def test_section(section, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry.discover()))  # what is registered here goes with the test
    for entry in ROOT.iterdir():  # relative paths work as in a clone, and what a block writes stays out of the clone
        if not entry.name.startswith(".") and entry.name not in ("runs", "build", "dist"):
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in CODE:
        if block.section != section or block.not_run is not None:
            continue
        if block.language == "python":
            if name := re.match(r"# (\w+\.py)\n", block.code):  # "save this as ..."
                (tmp_path / name.group(1)).write_text(block.code)
            padded = "\n" * block.line + block.code  # so that a traceback shows the README's line numbers
            exec(compile(padded, "README.md", "exec"), namespace)
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
            assert done.returncode == 0, f"README.md line {block.line}:\n{done.stdout}\n{done.stderr}"


def test_the_parser_of_this_test():
    text = """
# One
```python
x = 1
```
<!-- not run: needs a GPU -->

```bash
make gpu
```
### still one
```text
out
```
## Two
between
```bash
true
```
"""
    found = [(b.section, b.line, b.language, b.code, b.not_run) for b in blocks(text)]
    assert found == [
        ("One", 3, "python", "x = 1\n", None),
        ("One", 8, "bash", "make gpu\n", "needs a GPU"),
        ("One", 12, "text", "out\n", None),
        ("Two", 17, "bash", "true\n", None),
    ]
