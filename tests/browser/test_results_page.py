"""The page of results in a real browser: the one of `vtc compare`, and the leaderboard of the documentation."""

from __future__ import annotations

import re
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from docs.generate import leaderboard, results

pytestmark = pytest.mark.browser


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing of what it serves."""

    def log_message(self, *said: Any) -> None:
        pass


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("site") / "leaderboard.html"
    file.write_text(leaderboard.html(), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(params=[(1366, "light"), (1366, "dark"), (390, "light"), (390, "dark")], ids=str)
def page(browser, file, request):
    """The leaderboard as it opens; a script that breaks, or anything asked of elsewhere, fails the test."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None)
    page.goto(file)
    yield page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    page.close()
    assert wrong == []


def column(page: Any, title: str) -> list[str]:
    titles = [found.strip() for found in page.locator("thead th").all_inner_texts()]
    at = titles.index(title)
    return [row.locator("th, td").nth(at).inner_text().strip() for row in page.locator("tbody tr:not(.more)").all()]


def test_sorting_by_mouse_and_key(page):
    before = column(page, "method")
    page.click("thead button:has-text('accuracy')")
    found = [float(cell.split()[0]) for cell in column(page, "accuracy")]
    assert found == sorted(found, reverse=True)
    assert page.locator("[aria-sort=descending]").count() == 1
    page.keyboard.press("Enter")  # the button that was clicked has the focus still
    found = [float(cell.split()[0]) for cell in column(page, "accuracy")]
    assert found == sorted(found)
    page.keyboard.press("Enter")
    assert column(page, "method") == before
    page.click("thead button:has-text('vs random')")
    cells = column(page, "vs random")
    assert "" not in cells[: cells.index("")]  # what has no number stands last
    assert set(cells[cells.index("") :]) == {""}


def test_filters(page):
    group = results.groups()["inside-average"]
    page.select_option("#which select", label=group.title)
    assert group.title in page.inner_text("h2")
    page.fill("input", "prompt ATTENDS")  # of the summary
    assert {name.split("(")[0] for name in column(page, "method")} == {"full", "fastv", "pyramiddrop"}
    page.fill("input", "")
    page.click("#stages button:has-text('layer')")
    assert not any(name.startswith(("fastv", "todre")) for name in column(page, "method"))
    assert any(name.startswith("divprune") for name in column(page, "method"))
    page.click("#stages button:has-text('layer')")
    page.select_option("#budget select", "192")
    assert set(column(page, "keep")) == {"", "192"}
    page.fill("input", "no such thing")
    assert column(page, "method") == ["full"]
    assert "1 of" in page.inner_text("[role=status]")
    assert "There is no method with “no such thing” in its name, options or summary, at 192 tokens." in page.inner_text(
        "#keys"
    )
    page.click("#keys button:has-text('Show all')")
    assert len(column(page, "method")) == len(group.rows)
    assert page.evaluate("document.activeElement.type") == "search"
    page.select_option("#budget select", "192")
    page.fill("input", "dart")
    page.reload()  # the address keeps what was chosen
    assert {name.split("(")[0] for name in column(page, "method")} == {"full", "dart"}


def test_scores_by_task_and_another_cost(page):
    page.select_option("#columns select", "1")
    assert "reading" in " ".join(page.locator("thead th").all_inner_texts())
    page.select_option("#task select", "reading")
    page.select_option("#cost select", "average")
    assert "visual tokens" in page.locator(".chart > svg").get_attribute("aria-label")


def test_a_row_opens_to_its_command(page):
    row = next(row for row in results.groups()["pictures"].rows if row.label == "divprune" and row.keep == 0.1)
    page.fill("input", "divprune")
    page.select_option("#budget select", "0.1")
    opener = page.locator("tbody th button", has_text=re.compile(r"^\W*divprune\W*$"))  # its arrow turns
    opener.press("Enter")
    assert opener.get_attribute("aria-expanded") == "true"
    assert " ".join(page.inner_text(".more code").split()) == row.command
    assert page.locator(".more a").get_attribute("href") == "methods/divprune/"
    opener.press("Enter")
    assert page.locator(".more").count() == 0


def test_a_point_tells_its_numbers_to_mouse_and_key(page):
    point = page.locator(".point").nth(4)
    point.focus()
    name, value = point.get_attribute("aria-label").split(":")[:2]
    assert name.split()[0] in page.inner_text(".tip")
    assert value.split()[0] in page.inner_text(".tip")
    assert page.locator("tbody tr.named").count() == 1
    page.locator("input").focus()
    assert page.locator(".tip").count() == 0
    count = page.locator(".point").count()
    page.locator("#keys button").first.click()
    assert page.locator(".point").count() < count


def test_nobody_is_shut_out(page):
    """axe-core finds nothing serious, also where a row is open and a point tells its numbers."""
    script = Path(sys.prefix) / "axe-core" / "axe.min.js"
    if not script.is_file():
        pytest.skip("there is no axe-core: `make test-browser` fetches it")
    page.evaluate(script.read_text(encoding="utf-8"))
    page.locator("tbody th button").nth(3).click()
    page.locator(".point").nth(3).focus()
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(it => it.violations)")
    assert [
        f"{rule['id']}: {node['html'][:160]} {node['failureSummary']}" for rule in found for node in rule["nodes"]
    ] == []


@pytest.mark.parametrize("width", [1366, 390])
def test_the_frame_in_the_documentation_is_as_high_as_what_it_holds(browser, tmp_path, width):
    """Whatever is chosen or opened in it; nothing in it is hidden or scrolls."""
    (tmp_path / "leaderboard").mkdir()
    (tmp_path / "leaderboard" / "index.html").write_text(
        '<meta charset="utf-8"><body data-md-color-scheme="slate"><h1 id="leaderboard">As the site names it</h1>'
        + leaderboard.pages()["leaderboard.md"],
        encoding="utf-8",
    )
    (tmp_path / "leaderboard.html").write_text(leaderboard.html(), encoding="utf-8")
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.goto(f"http://127.0.0.1:{server.server_port}/leaderboard/")
        inside = page.frame_locator("#board")
        page.locator("#board").scroll_into_view_if_needed()

        def fits() -> None:
            page.wait_for_function("""() => {
                const frame = document.getElementById("board"), root = frame.contentDocument.documentElement;
                return root.scrollHeight <= frame.clientHeight && frame.clientHeight < root.scrollHeight + 40;
            }""")

        inside.locator("tbody th button").first.wait_for()
        fits()
        assert inside.locator("html").get_attribute("data-theme") == "dark"
        assert not inside.locator("h1").is_visible()  # the page around it says that
        before = page.locator("#board").bounding_box()["height"]
        inside.locator("input").fill("divprune")
        page.wait_for_function(f"document.getElementById('board').clientHeight < {before} - 100")
        fits()
        inside.locator("tbody th button").last.click()
        inside.locator(".more").wait_for()
        fits()
        page.close()
        server.shutdown()
