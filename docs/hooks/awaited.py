"""Pages, pictures and their maker that other branches bring: as long as they are missing, the site is built without."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

AWAITED = ("methods/index.md", "families.md", "leaderboard.md", "demo.md", "sharing.md")
DOCS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DOCS.parent))


def on_config(config: Any) -> Any:
    if importlib.util.find_spec("docs.generate") is None:
        stub: Any = types.ModuleType("docs.generate")
        stub.pages = dict
        sys.modules["docs.generate"] = stub
    return config


@event_priority(-100)
def on_files(files: Any, config: Any) -> Any:
    def there(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {title: value for title, old in entry.items() if (value := there(old))}
        if isinstance(entry, list):
            return [value for old in entry if (value := there(old))]
        return entry if files.get_file_from_path(entry) else None

    config.nav = there(config.nav)
    return files


@event_priority(100)
def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    pictures = re.findall(r"!\[[^\]]*\]\((pictures/[^)]+)\)", markdown)
    for picture in pictures:
        if not (DOCS / picture).exists():
            markdown = re.sub(rf"!\[[^\]]*\]\({re.escape(picture)}\)\n*", "", markdown)
    for link in re.findall(r"\[[^\]]*\]\([^)]+\)", markdown):
        text, target = re.fullmatch(r"\[(.*)\]\((.*)\)", link, re.DOTALL).groups()
        name = target.removeprefix("../").removeprefix("docs/")
        if name in AWAITED and files.get_file_from_path(name) is None:
            markdown = markdown.replace(link, text)
    return markdown
