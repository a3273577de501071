"""Workflows call make and nothing else, with targets that exist and the Pythons that pyproject.toml promises."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".github"
WORKFLOWS = {path.name: path for path in sorted((FOLDER / "workflows").iterdir())}
FORMS = {path.name: path for path in sorted((FOLDER / "ISSUE_TEMPLATE").iterdir())}
TARGETS = set(re.findall(r"^([a-z][\w -]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
TARGETS = {target for line in TARGETS for target in line.split()}
#: what other files of this repository bring along, and where they are read
PROMISED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ACTIONS = re.compile(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(job, step) of all jobs."""
    return [(job, step) for job in workflow["jobs"].values() for step in job["steps"]]


def commands(job: dict[str, Any], step: dict[str, Any]) -> list[str]:
    """What a step runs, once for each value of the matrix that it names."""
    run = step.get("run", "")
    values = [(f"${{{{ matrix.{key} }}}}", value) for key, many in matrix(job).items() for value in many]
    found = [run.replace(name, value) for name, value in values if name in run]
    return found or [run] * bool(run)


def matrix(job: dict[str, Any]) -> dict[str, list[str]]:
    return job.get("strategy", {}).get("matrix", {})


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_calls_make_and_nothing_else(name):
    ran = [command for job, step in steps(read(WORKFLOWS[name])) for command in commands(job, step)]
    assert ran
    for command in ran:
        make, *words = command.split()
        assert make == "make"
        assert "${{" not in command, "what comes from outside goes through the environment"
        assert {word for word in words if "=" not in word} <= TARGETS


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_as_little_as_it_can(name):
    workflow = read(WORKFLOWS[name])
    assert workflow["permissions"] == {"contents": "read"}
    assert "group" in workflow["concurrency"]
    for job, step in steps(workflow):
        assert job["timeout-minutes"] <= 60
        assert "uses" not in step or ACTIONS.fullmatch(step["uses"]), step
    text = WORKFLOWS[name].read_text(encoding="utf-8")
    assert not re.search(r"secrets\.|password|api-token|pull_request_target", text)


def test_publishing_waits_for_tests_and_needs_no_token():
    jobs = read(WORKFLOWS["publish.yml"])["jobs"]
    assert jobs["publish"]["needs"] == ["test", "build"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["environment"] == {"name": "pypi"}


def test_the_pythons_are_those_that_are_promised():
    ci = read(WORKFLOWS["ci.yml"])["jobs"]
    told = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROMISED["classifiers"]), re.MULTILINE)
    assert matrix(ci["test"])["python"] == told
    assert PROMISED["requires-python"] == f">={told[0]}"


def test_all_kinds_of_tests_run_in_ci():
    every = {command for job, step in steps(read(WORKFLOWS["ci.yml"])) for command in commands(job, step)}
    ran = {word for command in every for word in command.split() if word.startswith("test")}
    nightly = {"test-main"}
    whole = {"test-all", "test-versions", "test-python"}  # made of the others, or of the matrix
    assert ran == {target for target in TARGETS if target.startswith("test")} - nightly - whole


def test_every_target_that_a_text_names_exists():
    texts = [ROOT / "CONTRIBUTING.md", FOLDER / "pull_request_template.md", *FORMS.values()]
    named = [re.findall(r"`make ([\w -]+)|^make ([\w-]+)", path.read_text(), re.MULTILINE) for path in texts]
    found = {word for pairs in named for pair in pairs for word in "".join(pair).split() if not word.isupper()}
    assert {"test", "check-method"} <= found
    assert found <= TARGETS


@pytest.mark.parametrize("name", [name for name in FORMS if name != "config.yml"])
def test_an_issue_form(name):
    form = read(FORMS[name])
    assert {"name", "description", "labels", "body"} == set(form)
    asked = [item for item in form["body"] if item["type"] != "markdown"]
    names = [item["id"] for item in asked]
    assert len(set(names)) == len(names)
    assert all(item["attributes"]["label"] for item in asked)


def test_hooks_are_of_the_versions_that_tests_run():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    hooks = {repo["repo"].rpartition("/")[2]: repo for repo in read(ROOT / ".pre-commit-config.yaml")["repos"]}
    assert hooks["ruff-pre-commit"]["rev"] == f"v{pinned['ruff']}"
    entries = [hook["entry"] for hook in hooks["local"]["hooks"]]
    assert entries == [".venv/bin/python -m vtc.methods.base.write_index", ".venv/bin/pyright"]
