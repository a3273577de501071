"""What mkdocs is told besides mkdocs.yml: pages that are made elsewhere, and links that leave the site.

* `index.md` is the README; `contributing.md`, `changelog.md` and the like are the files of the repository's root.
* `docs.generate` makes the pages of methods and families and the leaderboard; a notebook becomes a page.
* A picture beside which NAME-dark.png lies is shown to readers of the light scheme, that one to those of the dark one;
  what is drawn on white paper, such as charts, has the class "chart", of which site.css makes dark paper there.
* Links to files of the repository lead to `[project.urls]`' source; as long as there is none, their text stays alone.
"""

from __future__ import annotations

import base64
import io
import json
import posixpath
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.hooks.readme import is_relative, relink, source_of  # noqa: E402

URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
_IMAGE = re.compile(r"""(<img [^>]*?src=")([^"]+)(")""")
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s#]+)\.png\)")
AT_THE_ROOT = {"README.md": "index.md"} | {
    name: f"{name.removesuffix('.md').lower().replace('_', '-')}.md"
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
}


def on_config(config: Any) -> Any:
    """The addresses of the repository and of the site itself, where they are known."""
    config.repo_url = source_of(URLS)
    config.site_url = URLS.get("Documentation")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not written in docs/."""
    from docs.generate import pages

    added = {new: (ROOT / old).read_text(encoding="utf-8") for old, new in AT_THE_ROOT.items() if (ROOT / old).exists()}
    added["index.md"] = f"---\nhide: [navigation]\n---\n\n{added['index.md']}"
    for name, text in (added | pages()).items():
        if (there := files.get_file_from_path(name)) is not None:
            files.remove(there)
        files.append(File.generated(config, name, content=text))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text = notebook(json.loads(Path(str(file.abs_src_path)).read_text(encoding="utf-8")))
        link = f"[This page as a notebook]({posixpath.basename(file.src_uri)})\n"
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=text + link))
    config.nav = [_expanded(entry, files) for entry in config.nav]
    return files


def _expanded(entry: Any, files: Files) -> Any:
    """An entry of the navigation: a folder as the list of its pages, a notebook as its page."""
    if isinstance(entry, dict):
        return {title: _expanded(value, files) for title, value in entry.items()}
    if isinstance(entry, list):
        return [_expanded(value, files) for value in entry]
    if entry.endswith("/"):
        inside = sorted(f.src_uri for f in files.documentation_pages() if f.src_uri.startswith(entry))
        return sorted(inside, key=lambda name: not name.endswith("/index.md"))
    return entry.replace(".ipynb", ".md")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links from pages to files that are no pages of the site."""
    name = page.file.src_uri
    markdown = re.sub(r"<!-- the table of signals: .*? -->", lambda _: _signals(), markdown)
    root = {new: old for old, new in AT_THE_ROOT.items()}
    there = posixpath.dirname(root.get(name, f"docs/{name}"))  # the folder that the page's links are seen from
    markdown = _IMAGE.sub(lambda found: found[1] + _from_address(found[2], there, page.file.url) + found[3], markdown)
    markdown = relink(markdown, lambda target, image: _from_page(target, there, posixpath.dirname(name), files))
    return _PICTURE.sub(lambda found: _by_scheme(found, posixpath.dirname(name), files), markdown)


def _by_scheme(picture: re.Match[str], here: str, files: Files) -> str:
    """A picture of the docs, and the one for the dark scheme if there is one; mkdocs-material shows one of both."""
    text, name = picture.groups()
    if files.get_file_from_path(posixpath.normpath(posixpath.join(here, f"{name}-dark.png"))) is None:
        return picture[0]
    return f"![{text}]({name}.png#only-light)![{text}]({name}-dark.png#only-dark)"


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Mark the pictures on white paper."""

    def one(found: re.Match[str]) -> str:
        stored = _bytes_of(found[2], page.file.url)
        return found[0].replace("<img ", '<img class="chart" ', 1) if stored and _is_on_white(stored) else found[0]

    return _IMAGE.sub(one, html)


def _bytes_of(source: str, url: str) -> bytes | None:
    """A picture's file, of the docs or within the page; None if it is neither."""
    if source.startswith("data:image/"):
        return base64.b64decode(source.partition(",")[2])
    file = ROOT / "docs" / posixpath.normpath(posixpath.join(url, source.partition("#")[0]))
    return file.read_bytes() if is_relative(source) and file.is_file() else None


def _is_on_white(stored: bytes) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(stored)) as picture:
        return picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def _from_address(target: str, there: str, url: str) -> str:
    """The source of an <img>, which mkdocs leaves as it is: the same file as seen from the page's address."""
    if not is_relative(target):
        return target
    return posixpath.relpath(posixpath.normpath(posixpath.join(there, target)).removeprefix("docs/"), url or ".")


def _signals() -> str:
    """The table of `vtc.signals`, as the module has it."""
    from vtc.signals import SIGNALS

    rows = [(one.name, ", ".join(one.shape), one.place, one.doc.replace("|", r"\|")) for one in SIGNALS.values()]
    lines = [f"| `{name}` | {shape and f'[{shape}]'} | {place} | {doc} |" for name, shape, place, doc in rows]
    return "\n".join(["| signal | shape | measured | is |", "|---|---|---|---|", *lines])


def _from_page(target: str, there: str, here: str, files: Files) -> str | None:
    if not is_relative(target):
        return target
    path, mark, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(there, path))
    inside = AT_THE_ROOT.get(path) or path.removeprefix("docs/")
    if path in AT_THE_ROOT or path.startswith("docs/"):
        for name in (inside.replace(".ipynb", ".md"), posixpath.join(inside, "index.md")):
            if files.get_file_from_path(name) is not None:
                return posixpath.relpath(name, here or ".") + mark + anchor
        if not (ROOT / path).exists():
            return target  # mkdocs says that it is not there
    source = source_of(URLS)
    return f"{source}/blob/HEAD/{path}{mark}{anchor}" if source else None


def notebook(cells: dict[str, Any]) -> str:
    """A notebook as Markdown: its texts, its code, and what the code wrote and drew."""
    lines: list[str] = []
    for cell in cells["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [text, ""]
        elif cell["cell_type"] == "code" and text:
            lines += ["```python", text, "```", ""]
            for output in cell["outputs"]:
                lines += _shown(output)
    return "\n".join(lines) + "\n"


def _shown(output: dict[str, Any]) -> list[str]:
    data = output.get("data", {})
    for kind in [kind for kind in data if kind.startswith("image/")]:
        encoded = "".join(data[kind]).replace("\n", "")
        return [f"![What the code above draws](data:{kind};base64,{encoded})", ""]
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return ["```text", text, "```", ""] if text else []
