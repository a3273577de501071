"""docs/cli.md names every command, option and exit status, and shows what commands really print."""

from __future__ import annotations

import re

import pytest

from tests.cli import shown
from vtc.cli.main import main
from vtc.cli.mistakes import STATUS

PAGE = shown.PAGE.read_text(encoding="utf-8")
ELSEWHERE = {"eval", "compare"}  # whose options have a page of their own


def helped(line: list[str], capsys) -> str:
    with pytest.raises(SystemExit):
        main([*line, "--help"])
    return capsys.readouterr().out


def commands(line: list[str], capsys) -> list[str]:
    return re.findall(r"^    ([a-z][a-z-]*)(?:\s|$)", helped(line, capsys), re.MULTILINE)


def test_what_is_shown_is_what_is_printed():
    assert PAGE.count("```console") > 4
    assert shown.rendered(PAGE) == PAGE, "write it anew: python -m tests.cli.shown"


def test_every_command_and_option_is_named(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = commands([], capsys)
    assert len(names) > 8
    sections = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")}
    for name in names:
        section = next(part for title, part in sections.items() if f"`vtc {name}`" in title)
        lines = [[name, kind] for kind in commands([name], capsys)] if name == "bench" else [[name]]
        for line in lines:
            assert f"vtc {' '.join(line)}" in section
            options = re.findall(r"--[a-z][a-z-]+", helped(line, capsys).partition("options:")[2])
            missing = {option for option in options if f"`{option}" not in section} - {"--help"}
            assert name in ELSEWHERE or not missing, (line, missing)


def test_statuses():
    for status, meaning in STATUS.items():
        assert f"| {status} | {meaning} |" in PAGE


def test_links_lead_somewhere():
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (
            target[1:] in headings
            if target.startswith("#")
            else (shown.PAGE.parent / target.partition("#")[0]).exists()
        )
