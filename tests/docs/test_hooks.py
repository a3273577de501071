"""What the site's hooks make of pages: links, notebooks, the navigation."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

site: Any = pytest.importorskip("docs.hooks.site")


class Files:
    """As mkdocs' files: those that the site has."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def get_file_from_path(self, name: str) -> str | None:
        return name if name in self.names else None

    def documentation_pages(self) -> list[Any]:
        return [SimpleNamespace(src_uri=name) for name in self.names]


FILES = Files(
    *("index.md", "cli.md", "extend/index.md", "extend/tower.md", "contributing.md", "notebooks/first.md"),
    *("a.png", "a-dark.png", "b.png"),
)


def page(name: str) -> Any:
    url = name.removesuffix("index.md") if name.endswith("index.md") else name.replace(".md", "/")
    return SimpleNamespace(file=SimpleNamespace(src_uri=name, url=url))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("index.md", "[a](docs/cli.md#x)", "[a](cli.md#x)"),  # the README stands at the root
        ("index.md", "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("cli.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("cli.md", "[a](extend/)", "[a](extend/index.md)"),
        ("cli.md", "[a](notebooks/first.ipynb)", "[a](notebooks/first.md)"),
        ("extend/tower.md", "[a](../cli.md)", "[a](../cli.md)"),
        ("extend/tower.md", "[a](../../vtc/ops.py)", "a"),  # a file of the repository, whose address nobody has given
        ("extend/tower.md", "[a](../nothing.md)", "[a](../nothing.md)"),  # mkdocs complains
        ("cli.md", '<img alt="" src="a.png">', '<img alt="" src="../a.png">'),  # mkdocs leaves HTML as it is
        ("index.md", '<img src="docs/a.png">', '<img src="a.png">'),
        ("extend/tower.md", '<img src="../a.png">', '<img src="../../a.png">'),
        ("cli.md", '<img src="https://example.org/a.png">', '<img src="https://example.org/a.png">'),
        ("cli.md", "![a b](a.png)", "![a b](a.png#only-light)![a b](a-dark.png#only-dark)"),
        ("index.md", "![a](docs/a.png)", "![a](a.png#only-light)![a](a-dark.png#only-dark)"),
        ("extend/tower.md", "![a](../a.png)", "![a](../a.png#only-light)![a](../a-dark.png#only-dark)"),
        ("cli.md", "![b](b.png) [a](a.png)", "![b](b.png) [a](a.png)"),  # there is no other; not shown here
        ("cli.md", "[a](https://example.org) [b](#there)", "[a](https://example.org) [b](#there)"),
    ],
)
def test_links(name, old, new, monkeypatch):
    monkeypatch.setattr(site, "URLS", {})
    assert site.on_page_markdown(old, page(name), None, FILES) == new


def test_charts_are_told_by_their_paper(monkeypatch, tmp_path):
    monkeypatch.setattr(site, "ROOT", tmp_path)
    (tmp_path / "docs" / "bench").mkdir(parents=True)
    within = {}
    for name, ground in (("white", "white"), ("dark", "#171b22"), ("clear", (255, 255, 255, 0))):
        file = tmp_path / "docs" / "bench" / f"{name}.png"
        Image.new("RGBA", (4, 4), ground).save(file)
        within[name] = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()

    def marked(source: str) -> bool:
        html = f'<p><img alt="a" src="{source}"></p>'
        shown = site.on_page_content(html, page("cli.md"), None, FILES)
        assert shown in (html, html.replace("<img ", '<img class="chart" '))
        return shown != html

    assert [marked(f"../bench/{name}.png") for name in within] == [True, False, False]
    assert [marked(source) for source in within.values()] == [True, False, False]
    assert marked("../bench/white.png#only-light")
    assert not marked("../bench/nothing.png")
    assert not marked("https://example.org/white.png")


def test_links_into_the_repository_where_it_has_an_address(monkeypatch):
    monkeypatch.setattr(site, "URLS", {"Source": "https://example.org/o/vtc/"})
    text = site.on_page_markdown("[`ops`](../vtc/ops.py)", page("cli.md"), None, FILES)
    assert text == "[`ops`](https://example.org/o/vtc/blob/HEAD/vtc/ops.py)"


def test_a_folder_in_the_navigation():
    nav = {"All": ["cli.md", {"More": "extend/"}, "notebooks/first.ipynb"]}
    assert site._expanded(nav, FILES) == {
        "All": ["cli.md", {"More": ["extend/index.md", "extend/tower.md"]}, "notebooks/first.md"]
    }


def test_a_notebook_as_a_page():
    cells = [
        {"cell_type": "markdown", "source": ["# One\n", "text"]},
        {
            "cell_type": "code",
            "source": ["x = 1\n", "x"],
            "outputs": [
                {"output_type": "stream", "text": ["said\n"]},
                {"output_type": "execute_result", "data": {"text/plain": ["1"]}},
                {"output_type": "display_data", "data": {"image/png": "AAA\n", "text/plain": ["<Figure>"]}},
                {"output_type": "execute_result", "data": {"image/jpeg": "BBB", "text/plain": ["<PIL.Image>"]}},
            ],
        },
        {"cell_type": "code", "source": [], "outputs": []},
    ]
    text = site.notebook({"cells": cells})
    assert text.split("\n\n") == [
        "# One\ntext",
        "```python\nx = 1\nx\n```",
        "```text\nsaid\n```",
        "```text\n1\n```",
        "![What the code above draws](data:image/png;base64,AAA)",
        "![What the code above draws](data:image/jpeg;base64,BBB)",
        "",
    ]


def test_the_table_of_signals():
    from vtc.signals import SIGNALS

    text = site.on_page_markdown("<!-- the table of signals: x -->", page("api/signals.md"), None, FILES)
    assert len(text.splitlines()) == 2 + len(SIGNALS)
    assert all(f"| `{name}` |" in text for name in SIGNALS)
