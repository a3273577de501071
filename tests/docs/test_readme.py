"""The README: short, complete, and with links that lead somewhere, here and on a package index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.hooks.readme import absolute, relink
from vtc.methods.base import index
from vtc.models.families import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS: list[str] = []
relink(TEXT, lambda target, image: TARGETS.append(target))


def section(title: str) -> str:
    return re.split(rf"^## {title}$", TEXT, flags=re.M)[1].split("\n## ")[0]


def test_it_is_short_and_its_first_screen_says_what_why_and_how_fast():
    assert len(TEXT.encode()) <= 12_000
    first = TEXT[: TEXT.index("\n## ")]
    for word in ("visual tokens", "prefill time", "times as fast", "![", "random"):
        assert word in first


def cells_of_methods() -> list[str]:
    """The second column of the table of methods."""
    return re.findall(r"^\|.*\|(.*)\|$", section("Methods"), re.M)


def test_it_names_every_method_once():
    names = re.findall(r"`([a-z0-9-]+)`", "".join(cells_of_methods()))
    assert sorted(names) == sorted(index.shipped())


def test_papers_are_those_of_the_methods():
    rows = dict(re.findall(r"\[`([a-z0-9-]+)`\]\(https://arxiv.org/abs/([0-9.]+)\)", "".join(cells_of_methods())))
    assert rows == {name: info.paper.arxiv for name, info in index.shipped().items() if info.paper is not None}


def test_it_names_every_family_that_has_an_adapter_of_its_own():
    """Those that the default family carries stand in `vtc families` and on its page."""
    said = " ".join(section("Methods").split())
    written = [family for family in SHIPPED.values() if not family.listed]
    assert all(family.title.removesuffix("-Video") in said for family in written)


def test_the_results_are_those_of_the_results_page():
    """Its table is a part of that of docs/results.md, number for number."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").split("\n### All numbers\n")[0]
    rows = {row.split("|")[1].strip(): row for row in page.splitlines() if row.startswith("| `")}
    ours = [row for row in section("Results").splitlines() if row.startswith("| `") and "keep" not in row]
    assert [row.split("|")[1].strip() for row in ours][:2] == ["`random`", "`downsample`"]
    for row in ours:
        name, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        there = next(text for key, text in rows.items() if key.removesuffix(" †") == name)
        assert [cell.strip() for cell in there.strip("|").split("|")][2:] == cells


@pytest.mark.parametrize("target", sorted(set(TARGETS)))
def test_links_lead_somewhere(target):
    path, _, anchor = target.partition("#")
    if "://" in path:
        return
    assert not path or (ROOT / path).exists()
    if anchor:
        page = (ROOT / (path or "README.md")).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", page, re.M)
        assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


LINKS = """[a](docs/cli.md) [b](docs/speed.md#on-a-gpu) [c](docs/extend/index.md) [d](#here) [e](https://x.org/)
[f](tests/engine/) ![g](docs/a.png) [![h](docs/b.png)](docs/demo.md)

```python
x["y"](docs)  # [z](docs/cli.md)
```
"""


def test_links_without_addresses_stay():
    assert absolute(LINKS, {}) == LINKS
    assert absolute(LINKS, {"Changelog": "https://example.org/changes"}) == LINKS


def test_links_become_absolute():
    site, source = "https://docs.example.org/vtc/", "https://example.org/o/vtc"
    text = absolute(LINKS, {"Documentation": site, "Source": source})
    code = LINKS[LINKS.index("\n```") :]
    assert text == (
        f"[a]({site}cli/) [b]({site}speed/#on-a-gpu) [c]({site}extend/) [d](#here) [e](https://x.org/)\n"
        f"[f]({source}/blob/HEAD/tests/engine/) ![g]({source}/raw/HEAD/docs/a.png) "
        f"[![h]({source}/raw/HEAD/docs/b.png)]({site}demo/)\n{code}"
    )
    text = absolute(LINKS, {"Repository": f"{source}/"})
    assert f"[b]({source}/blob/HEAD/docs/speed.md#on-a-gpu)" in text
    assert site not in text


def test_the_whole_readme_becomes_absolute():
    text = absolute(TEXT, {"Source": "https://example.org/o/vtc", "Documentation": "https://docs.example.org"})
    found: list[str] = []
    relink(text, lambda target, image: found.append(target))
    assert len(found) == len(TARGETS)
    assert all(target.startswith(("https://", "#")) for target in found)
