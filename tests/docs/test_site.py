"""The built site (`make docs`): nothing comes from elsewhere, every page is whole, every public name has its place."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tests.docs.test_reference import PUBLIC, found
from vtc.methods.base import index

pytestmark = pytest.mark.site
SITE = Path(__file__).resolve().parents[2] / "runs" / "site"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


class Page(HTMLParser):
    """What a page fetches, what it links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if (target := given.get(LOADED.get(tag, ""))) and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(target)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.anchors |= {given[name] for name in ("id", "name") if name in given}


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    assert (SITE / "index.html").exists(), "build it first: make docs"
    return {file: Page(file.read_text(encoding="utf-8")) for file in SITE.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(pages):
    assert len(pages) > 30
    for file, page in pages.items():
        for target in page.loaded:
            assert not re.match(r"(https?:)?//", target), f"{file} loads {target}"
    for file in SITE.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", file.read_text(encoding="utf-8")), file
    icons = ("http://www.w3.org/", "https://www.w3.org/")  # namespaces, which nobody fetches
    for file in pages:
        text = file.read_text(encoding="utf-8")
        assert "fonts.googleapis" not in text
        assert not [one for one in re.findall(r"url\(['\"]?(https?://[^)]*)", text) if not one.startswith(icons)]


def test_every_link_within_leads_somewhere(pages):
    for file, page in pages.items():
        for link in [*page.links, *page.loaded]:
            target, anchor = urldefrag(link)
            if re.match(r"[a-z]+:|//|/", target) or file.name == "404.html":
                continue
            there = (file.parent / unquote(target)).resolve() if target else file
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{file.relative_to(SITE)} links to {link}"
            if anchor and there.suffix == ".html" and there.name != "leaderboard.html":
                assert unquote(anchor) in pages[there].anchors, f"{file.relative_to(SITE)} links to {link}"


def test_every_public_name_is_in_the_reference(pages):
    anchors = set().union(*(page.anchors for file, page in pages.items() if "api" in file.parts))
    for name in PUBLIC:
        module, own = getattr(found(name), "__module__", ""), getattr(found(name), "__qualname__", "")
        assert anchors & {name, f"{module}.{own}", f"vtc.{own}"}, name


def test_every_method_has_a_page(pages):
    for name in index.shipped():
        text = (SITE / "methods" / name / "index.html").read_text(encoding="utf-8")
        assert f"<code>{name}" in text or f">{name}<" in text


def test_every_page_has_one_title(pages):
    for file in pages:
        if file.name == "index.html":
            text = file.read_text(encoding="utf-8")
            assert len(re.findall(r"<h1[ >]", text)) == 1, file
