"""The pictures of the demo in docs/: `python -m tests.browser.shots`, where `make test-browser` has run before."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser.conftest import ROOT, Visitor, demo, sync_api

PHONE: dict[str, Any] = dict(width=390, height=844, has_touch=True, is_mobile=True, device_scale_factor=2)


def main() -> None:
    """Ask what shape is red, and take the page as it then stands: on a laptop, light; on a phone, dark."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with demo() as address, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        desk = _asked(Visitor(browser, address, 1366, 768, {}))
        desk.page.locator("#layer").press("ArrowLeft")
        desk.said("pyramiddrop", "layer 3 of 4")
        _write(desk, ROOT / "docs" / "demo.png")
        options = {key: value for key, value in PHONE.items() if key not in ("width", "height")}
        phone = _asked(Visitor(browser, address, 390, 844, {**options, "color_scheme": "dark"}))
        _write(phone, ROOT / "docs" / "demo-phone.png")
        browser.close()


def _asked(visitor: Visitor) -> Visitor:
    visitor.page.get_by_role("button", name="What shape is red?").click()
    visitor.said("full", "heart")
    visitor.settled()
    visitor.page.wait_for_timeout(1000)  # until the page has gone to the answer
    visitor.page.evaluate("scrollTo(0, 0)")
    return visitor


def _write(visitor: Visitor, file: Path) -> None:
    """As a PNG of 256 colours."""
    visitor.page.evaluate("document.activeElement.blur()")
    picture = Image.open(io.BytesIO(visitor.page.screenshot())).convert("RGB")
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, optimize=True)
    visitor.leave()
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
