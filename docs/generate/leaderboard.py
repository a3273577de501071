"""The leaderboard: all committed results as one page to look around in, and the page of the site that holds it."""

from __future__ import annotations

from docs.generate import results
from docs.generate.markdown import block, code, table
from vtc.eval import page

_INTRO = (
    "All committed results of the models that ship. Every point is one run; the wide line is the frontier: nothing "
    "measured is both cheaper and better. Point at a run, or reach it with the Tab key, for its numbers; every column "
    "of the table sorts, and every row opens to the command that makes it."
)


def pages() -> dict[str, str]:
    """leaderboard.html, complete in itself, and leaderboard.md around it."""
    return {"leaderboard.html": html(), "leaderboard.md": _around()}


def html() -> str:
    groups = results.groups()
    by = {group.title: results.TABLES[name][1] for name, group in groups.items()}
    return page.html(list(groups.values()), "Leaderboard", _INTRO, by, lambda name: f"methods/{name}/")


def _around() -> str:
    rows = [
        (
            group.title,
            str(len(group.rows)),
            str(group.questions),
            code(results.TABLES[name][1]),
            code(f"{name}.json"),
        )
        for name, group in results.groups().items()
    ]
    return "\n".join(
        [
            *("# Leaderboard", ""),
            *("Every committed run of every method, to sort, filter and search:", ""),
            *('<p><a href="../leaderboard.html">The leaderboard as a page of its own</a></p>', ""),
            '<iframe src="../leaderboard.html" title="Leaderboard" loading="lazy" id="board"',
            '  style="width:100%;height:85vh;min-height:600px;border:1px solid #8884;border-radius:8px"></iframe>',
            *(_FITTED, ""),
            *("## Where it comes from", ""),
            *table(("results", "runs", "questions", "runs are made by", "kept in docs/results/"), rows),
            "",
            "A row of the leaderboard opens to the command of that row alone. The files hold what",
            "`vtc compare RUNS --json FILE` writes, and are read again by the same command, so that tables and",
            "pictures need no runs:",
            *("", *block("bash", *_commands())),
        ]
    )


def _commands() -> list[str]:
    first = next(iter(results.groups()))
    return [
        f"vtc compare docs/results/{first}.json --wide",
        "vtc compare docs/results/*.json --html runs/leaderboard.html --markdown runs/all.md",
    ]


# The frame takes the theme that the site's own switch has chosen, and is as high as what it holds.
_FITTED = """<script>
(() => {
  const frame = document.getElementById("board"), body = document.body;
  const tell = () => {
    const chosen = body.dataset.mdColorScheme, inner = frame.contentDocument;
    if (chosen && inner) inner.documentElement.dataset.theme = chosen === "slate" ? "dark" : "light";
  };
  const fit = () => {
    const inner = frame.contentDocument?.body;
    if (inner) frame.style.height = `${Math.ceil(inner.getBoundingClientRect().height) + 2}px`;
  };
  frame.addEventListener("load", () => {
    tell();
    fit();
    if (frame.contentDocument) new ResizeObserver(fit).observe(frame.contentDocument.body);
  });
  new MutationObserver(tell).observe(body, { attributeFilter: ["data-md-color-scheme"] });
})();
</script>"""
