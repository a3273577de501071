"""A real browser in front of a real `vtc demo`: `make test-browser` installs both and runs these tests.

Whatever a test does, it fails if the page asks anything of another machine or if one of its scripts breaks.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="`make test-browser` installs playwright")
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 90_000  # ms that an answer may take, on a busy machine


def axe() -> Path:
    """The script of axe-core, in the environment."""
    script = Path(sys.prefix) / "axe-core" / "axe.min.js"
    if not script.is_file():
        pytest.skip("there is no axe-core: `make test-browser` fetches it")
    return script


@contextmanager
def demo(*arguments: str) -> Iterator[str]:
    """Address of `vtc demo`, which must stop cleanly at Ctrl-C."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vtc", "demo", "--device", "cpu", "--port", str(port), *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored by what runs in the background
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said.startswith(f"vtc demo: http://127.0.0.1:{port}/"), said + process.communicate()[1]
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def pictures() -> Iterator[str]:
    """The demo as it opens: on the shipped model."""
    with demo() as address:
        yield address


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo on a model of random weights that reads clips."""
    from tests.small_qwen import save

    with demo("--model", str(save(tmp_path_factory.mktemp("models") / "small-qwen"))) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium: `make test-browser` installs it")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])  # root has no sandbox
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visitor]]:
    """Call it with an address (and a viewport) to come as a new visitor."""
    visitors: list[Visitor] = []

    def come(
        address: str, width: int = 1366, height: int = 900, beside: Visitor | None = None, **options: Any
    ) -> Visitor:
        visitors.append(Visitor(browser, address, width, height, options, beside))
        return visitors[-1]

    yield come
    for visitor in reversed(visitors):  # tabs before windows
        visitor.leave()


class Visitor:
    """One browser window of its own, without cookies of others; or a tab beside another one, with its cookies."""

    def __init__(
        self,
        browser: Any,
        address: str,
        width: int,
        height: int,
        options: dict[str, Any],
        beside: Visitor | None = None,
    ) -> None:
        size = {"width": width, "height": height}
        self.context = beside.context if beside else browser.new_context(viewport=size, **options)
        self.beside = beside
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.abroad: list[str] = []
        self.broken: list[str] = []
        own = (address, "data:", "blob:")
        self.page.on("request", lambda r: None if r.url.startswith(own) else self.abroad.append(r.url))
        self.page.on("pageerror", lambda error: self.broken.append(str(error)))
        self.page.goto(address)
        self.settled()

    def leave(self) -> None:
        failed = self.page.locator("[data-testid=status-tracker] .error").count()  # an event raised something
        self.page.close()
        if not self.beside:
            self.context.close()
        assert not failed
        assert not self.abroad
        assert not self.broken

    def settled(self) -> None:
        """Wait until all answers are there."""
        self.page.wait_for_timeout(250)
        self.page.wait_for_function(
            "document.querySelector('article.card') && !document.querySelector('article[aria-busy=true]')"
        )

    def card(self, method: str) -> Any:
        return self.page.locator(f'article[data-method="{method}"]')

    def cards(self) -> list[str]:
        """Methods whose cards are shown, in order; "full" for all tokens."""
        return self.page.locator("article.card").evaluate_all("all => all.map(card => card.dataset.method)")

    def tick(self, *methods: str) -> None:
        """Choose these methods and no others."""
        self.page.locator("details:not([open]) > summary").evaluate_all("all => all.forEach(s => s.click())")
        for method in set(self.chosen()) ^ set(methods):
            self.page.locator(f'.method input[value="{method}"]').set_checked(method in methods)

    def choose(self, *methods: str) -> None:
        """Choose these methods and no others, and wait for their answers."""
        self.tick(*methods)

        def there() -> bool:
            states = "all => all.map(card => card.dataset.state)"
            finished = set(self.page.locator("article.card").evaluate_all(states)) <= {"done", "failed"}
            return finished and sorted(self.cards()) == sorted(["full", *self.chosen()])

        self.until(there, f"cards of {methods}")
        self.page.wait_for_timeout(400)
        self.until(there, f"cards of {methods}")  # whatever was asked on the way is over, too

    def chosen(self) -> list[str]:
        return self.page.locator(".method input:checked").evaluate_all("all => all.map(box => box.value)")

    def keep(self, percent: int) -> None:
        self.page.locator(".ticks span", has_text=re.compile(f"^{percent}$")).click()

    def ask(self, question: str) -> None:
        self.page.get_by_label("Question", exact=True).fill(question)
        self.page.get_by_role("button", name="Ask", exact=True).click()

    def verdict(self) -> str:
        return self.page.locator("#verdict").inner_text()

    def refused(self, text: str) -> None:
        """Wait until a sentence says why there is no answer, and nothing older stands beside it."""
        self.page.locator(".notice.error:visible").get_by_text(text).wait_for()
        self.until(lambda: self.cards() == [] and self.verdict() == "", f"nothing but {text!r}")

    def barriers(self) -> list[str]:
        """What axe-core finds serious or critical."""
        self.page.evaluate(axe().read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(it => it.violations)")
        return [
            f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]

    def said(self, method: str, text: str) -> None:
        """Wait until a card says `text`."""
        self.until(lambda: text in self.card(method).inner_text(), f"{text!r} on the card of {method}")

    def until(self, true: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE / 1000
        while time.monotonic() < end:
            if true():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"waited in vain for {what}; cards: {self.cards()}; page: {self.page.inner_text('body')}")

    def slider(self, name: str) -> Any:
        return self.page.get_by_role("slider", name=name)

    def upload(self, file: Path | dict[str, Any]) -> None:
        self.page.set_input_files("input[type=file]", file)
