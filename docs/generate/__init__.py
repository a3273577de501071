"""Pages of the documentation that are made from what they describe: methods, families, committed results.

    python -m docs.generate            # into docs/, where git ignores them
    python -m docs.generate FOLDER

`pages()` is for what builds the site. The pictures of "How it works" are drawn once, into the repository, by
`python -m docs.generate.pictures`.
"""

from __future__ import annotations


def pages() -> dict[str, str]:
    """Path below docs/ -> text of every generated page."""
    from docs.generate import families, leaderboard, methods

    return methods.pages() | families.pages() | leaderboard.pages()
