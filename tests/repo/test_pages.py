"""What stands at the root of the repository: a changelog in its form, a citation, links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import vtc
from tests.repo.test_checklist import SHIPS

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md", ".github/pull_request_template.md"]
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_changelog_has_its_form():
    headings = re.findall(r"^## (.+)$", TEXT["CHANGELOG.md"], re.MULTILINE)
    assert headings[:2] == ["What is public", "[Unreleased]"]
    for version in headings[2:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", version)
    assert set(re.findall(r"^### (.+)$", TEXT["CHANGELOG.md"], re.MULTILINE)) <= KINDS


def test_the_changelog_names_all_that_ships():
    code = set(re.findall(r"`([^`]+)`", TEXT["CHANGELOG.md"]))
    assert {name for names in SHIPS.values() for name in names} <= code
    assert set(vtc.ops.__all__) <= code


def test_the_changelog_names_only_what_is_there():
    for name in set(re.findall(r"`vtc\.([a-z_]+)`", TEXT["CHANGELOG.md"])):
        assert hasattr(vtc, name), name


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert citation["version"] == vtc.__version__
    assert citation["authors"] == [{"name": "vtc contributors"}]


@pytest.mark.parametrize("name", PAGES)
def test_links_to_files_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT[name]):
        assert target.startswith("https://") or ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_paths_that_are_named_exist(name):
    """All but those of somebody's own new parts."""
    for path in re.findall(r"`((?:tests|vtc|models|kernels|eval|docs|\.venv|\.github)/[\w./-]+)`", TEXT[name]):
        assert "my_" in path or path.startswith(".venv") or (ROOT / path).exists(), path


@pytest.mark.parametrize("name", PAGES)
def test_nobody_is_invented(name):
    assert not re.search(r"[\w.]+@[\w-]+\.\w+", TEXT[name])
