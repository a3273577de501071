"""Runs say which code made them, and a table of several says so."""

import json
import subprocess
from dataclasses import replace
from typing import Any

import pytest

import vtc
from tests.eval.runs import few, synthetic
from vtc.cli.main import main
from vtc.eval import origin, runner
from vtc.eval.settings import Settings


def how(version, commit=None) -> dict[str, Any]:
    return {"versions": {"vtc": version, "commit": commit}}


def git(folder, *words):
    options = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-C", str(folder)]
    return subprocess.run(["git", *options, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def afresh():
    origin.origin.cache_clear()
    yield
    origin.origin.cache_clear()


def test_the_commit_of_a_checkout(tmp_path, monkeypatch, afresh):
    file = tmp_path / "vtc" / "__init__.py"
    file.parent.mkdir()
    file.write_text("")
    monkeypatch.setattr(vtc, "__file__", str(file))
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "--short=10", "HEAD")
    assert origin.origin() == {"vtc": vtc.__version__, "commit": commit}
    origin.origin.cache_clear()
    file.write_text("1")
    assert origin.origin()["commit"] == f"{commit}-dirty"


def test_installed_within_another_project(tmp_path, monkeypatch, afresh):
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "theirs")
    file = tmp_path / "env" / "vtc" / "__init__.py"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(vtc, "__file__", str(file))
    assert origin.origin() == {"vtc": vtc.__version__, "commit": None}


def test_rows_of_different_code_are_told(tmp_path, capsys):
    for method, keep, made in (("full", None, how("1")), ("random", 64, how("1")), ("pool", 64, how("2", "abc"))):
        synthetic(tmp_path, method, keep, 0.7, how=made)
    assert main(["compare", str(tmp_path)]) == 0
    assert "vtc 1 made full, random@64; vtc 2 (commit abc) made pool@64" in " ".join(capsys.readouterr().err.split())


def test_rows_of_one_code_or_of_an_unknown_one_are_not(tmp_path, capsys):
    synthetic(tmp_path, "full", None, 0.7, how=how("1"))
    synthetic(tmp_path, "random", 64, 0.7, how=how("1"))
    synthetic(tmp_path, "pool", 64, 0.7)  # as older folders are
    assert main(["compare", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def test_many_rows_are_counted():
    found = origin.warning([str(i) for i in range(7)], [{"how": how("1")}] * 6 + [{"how": how("2")}])
    assert found is not None
    assert "vtc 1 made 0, 1, 2, 3 and 2 more; vtc 2 made 6" in found


def test_going_on_with_other_code_is_told(tmp_path):
    base = Settings(
        data=str(few(tmp_path, 2)), methods=("pool",), keep=(16,), timing=0, max_new_tokens=2, device="cpu",
        out=str(tmp_path / "out"),
    )  # fmt: skip
    tiny = vtc.load("tiny-llava", device="cpu")
    outcome = runner.evaluate(base, load=lambda *args, **options: tiny)
    assert outcome.notes == []
    config = outcome.runs[0] / "config.json"
    made = json.loads(config.read_text())
    assert made["how"]["versions"]["vtc"] == vtc.__version__
    made["how"]["versions"]["vtc"] = "0.0.9"
    config.write_text(json.dumps(made))
    outcome = runner.evaluate(replace(base, keep=(16, 8)), load=lambda *args, **options: tiny)
    (note,) = outcome.notes
    assert note.startswith("tiny-llava/full was begun by vtc 0.0.9")
    assert f"and this is vtc {vtc.__version__}" in note
