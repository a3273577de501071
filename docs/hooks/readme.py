"""Relative links that work elsewhere: on a package index, which shows the README, and on the site.

`[project.urls]` of pyproject.toml says where the repository (`Source` or `Repository`) and the documentation
(`Documentation`) are. As long as it says nothing, links stay as they are.

pyproject.toml names `EggInfo`, so that every build (wheel, sdist, editable) describes itself with such links. This file
imports nothing of vtc's: a build has setuptools and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from setuptools.command.egg_info import egg_info

#: [text](target) and ![text](target), where text may hold another such link: an image that is one
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^( *```.*?^ *```[^\n]*$)", re.MULTILINE | re.DOTALL)


def relink(text: str, target: Callable[[str, bool], str | None]) -> str:
    """Markdown with the target of every link outside of code replaced.

    Args:
        target: of (target, whether it is an image) the new target, or None to leave the link's text without a link.
    """

    def one(found: re.Match[str]) -> str:
        image, inner, old = found.groups()
        new = target(old, bool(image))
        inner = _LINK.sub(one, inner)
        return inner if new is None else f"{image}[{inner}]({new})"

    parts = _FENCE.split(text)
    return "".join(part if number % 2 else _LINK.sub(one, part) for number, part in enumerate(parts))


def is_relative(target: str) -> bool:
    """Whether a link leads to a file beside the one that it stands in."""
    return not re.match(r"[a-z][a-z0-9+.-]*:|//|#|/", target)


def source_of(urls: Mapping[str, str]) -> str | None:
    """Where the repository is, without a slash at the end; None if nobody says."""
    known = {re.sub(r"[^a-z]", "", name.lower()): url.rstrip("/") for name, url in urls.items()}
    return known.get("source") or known.get("sourcecode") or known.get("repository")


def absolute(readme: str, urls: Mapping[str, str]) -> str:
    """The README with absolute links, as far as `urls` ([project.urls]) says where things are."""
    source = source_of(urls)
    site = next((url.rstrip("/") for name, url in urls.items() if name.lower() in ("documentation", "docs")), None)

    def target(old: str, image: bool) -> str:
        page = re.fullmatch(r"docs/(.*?)(?:index)?\.md(#.*)?", old)
        if not is_relative(old):
            return old
        if page and site:
            return f"{site}/{page[1].rstrip('/')}/{page[2] or ''}".replace("//#", "/#")
        return f"{source}/{'raw' if image else 'blob'}/HEAD/{old}" if source else old

    return relink(readme, target)


class EggInfo(egg_info):
    """What setuptools writes about the package, with absolute links in its description."""

    def run(self) -> None:
        metadata = self.distribution.metadata
        urls = dict(getattr(metadata, "project_urls", None) or {})
        if metadata.long_description:
            metadata.long_description = absolute(metadata.long_description, urls)
        super().run()
