"""Every code block of the README and of the pages in docs/ runs as written, as a reader would run it in a fresh clone.

The blocks of a page run once, one after another, and its Python blocks share one namespace; commands that say how many
questions, steps or trials they want get fewer (`blocks.MOST`). A block that a test cannot run has
`<!-- not run: reason -->` on the line above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT, RUN, SHOWN, Block, blocks, commands, less, pages, run
from vtc import signals, stages
from vtc.engine import stage
from vtc.methods.base import registry as methods
from vtc.models import decoder, enter_those_that_ship, registry, tower

PAGES = {str(page.relative_to(ROOT)): blocks(page.read_text(encoding="utf-8")) for page in pages()}
TO_RUN = {
    name: todo
    for name, found in PAGES.items()
    if (todo := [block for block in found if block.language in RUN and block.not_run is None])
}


def test_no_block_is_wider_than_a_laptop_shows():
    """site.css has room for this many letters."""
    for page, found in PAGES.items():
        for block in found:
            for line in block.code.splitlines():
                assert len(line) <= 120, f"{page} line {block.line}: {line}"


def test_every_block_runs_or_says_why_not(capsys):
    code = [(page, block) for page, found in PAGES.items() for block in found if block.language in RUN]
    for page, found in PAGES.items():
        for block in found:
            allowed = ", ".join(sorted(RUN | SHOWN))
            assert block.language in RUN | SHOWN, f"{page} line {block.line}: say one of {allowed}"
            assert block.not_run is None or len(block.not_run) > 5, f"{page} line {block.line}: give a reason"
    skipped = [(page, block) for page, block in code if block.not_run is not None]
    with capsys.disabled():
        print(f"\n{len(code) - len(skipped)} blocks of {len(PAGES)} pages run, {len(skipped)} do not:")
        for page, block in skipped:
            print(f"  {page} line {block.line}: {block.not_run}")
    assert {"README.md", "docs/quickstart.md", "docs/extend/stage.md"} <= set(TO_RUN)
    assert len(skipped) < len(code) / 2


class Names:
    """Whatever can be registered: the tables of names, as they are now, with what ships in them."""

    def __init__(self) -> None:
        stage.stages()
        enter_those_that_ship()
        methods.discover()
        self.tables: list[Any] = [stages._TABLE, signals._TABLE, methods._METHODS, registry._ADAPTERS]
        self.tables += [tower._TOWERS, decoder._DECODERS]
        self.held = self._all()

    def _all(self) -> tuple[list[dict[Any, Any]], list[Any]]:
        return [dict(table) for table in self.tables], list(stage._STAGES)

    def _set(self, held: tuple[list[dict[Any, Any]], list[Any]]) -> None:
        for table, old in zip(self.tables, held[0], strict=True):
            table.clear()
            table.update(old)
        stage._STAGES[:] = held[1]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Without what was registered since, and without a trace of what is registered within."""
        now = self._all()
        self._set(self.held)
        try:
            yield
        finally:
            self._set(now)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """A folder that looks like a clone: relative paths work; what a block writes or registers goes with the test."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("runs", "build", "dist", "site"):
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    names = Names()
    with names.alone():
        yield names


@pytest.mark.parametrize("page", TO_RUN)
def test_page(page: str, clone: Names, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in TO_RUN[page]:
        run(block, page, namespace, tmp_path, clone.alone)


def test_the_parser_of_this_test() -> None:
    text = """
# One
```python
x = 1
```
<!-- not run: needs a GPU -->

```bash
make gpu
```
1. In a list:

   ```text
   out
     indented
   ```
## Two
between
```bash
true
```
"""
    assert blocks(text) == [
        Block(3, "python", "x = 1\n", None),
        Block(8, "bash", "make gpu\n", "needs a GPU"),
        Block(13, "text", "out\n  indented\n", None),
        Block(19, "bash", "true\n", None),
    ]


def test_which_shell_blocks_run_in_this_process() -> None:
    assert commands('vtc ask \\\n  --question "a & b"  # say\n\nvtc methods\n') == [
        ["ask", "--question", "a & b"],
        ["methods"],
    ]
    assert commands("cat > a.toml <<END\nkeep = [64]\nEND\nprintf 'a\\n' > b\nvtc eval --config a.toml\n") == [
        "cat > a.toml <<END\nkeep = [64]\nEND\n",
        "printf 'a\\n' > b\n",
        ["eval", "--config", "a.toml"],
    ]
    for code in ("time vtc eval\n", "vtc methods | head\n", "vtc ask > out\n", 'vtc ask --image "$HOME"\n', "make x\n"):
        assert commands(code) is None


def test_how_much_is_done() -> None:
    assert less("vtc eval --limit 100 --steps 5 --keep 64\nlimit = 12\nno limit = 12\n--limit 2") == (
        "vtc eval --limit 4 --steps 2 --keep 64\nlimit = 4\nno limit = 12\n--limit 2"
    )
