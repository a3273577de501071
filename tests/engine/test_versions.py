"""Versions of torch and transformers: what is promised, warned about and refused."""

from __future__ import annotations

import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest

import vtc
from tests.families import batch, model_of
from vtc.engine import versions

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def _a_new_process() -> Any:
    """Every test is told what a new process would be told."""
    versions._check.cache_clear()
    yield
    versions._check.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    """Both packages say what they say in `installed`, or that they are of the oldest tested version."""
    model_of("llava")  # transformers puts another module object into sys.modules when it first loads a model
    for package, tested in versions.TESTED.items():
        monkeypatch.setattr(f"{package}.__version__", installed.get(package, tested.first))


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.mark.parametrize("package", versions.TESTED)
def test_what_is_promised_is_what_is_tested(package: str) -> None:
    tested = versions.TESTED[package]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"{package}>={tested.first}" in project["dependencies"]
    assert re.fullmatch(re.escape(tested.first) + r"(\.0)?", pins("constraints-oldest.txt")[package])
    assert re.fullmatch(re.escape(tested.last) + r"(\.\d+)*", pins("constraints.txt")[package])


@pytest.mark.parametrize(
    "installed",
    [
        {"transformers": "5.20.2"},
        {"transformers": "5.22.0"},
        {"transformers": "5.24.7"},
        {"torch": "2.11.0+cu130"},
        {"torch": "2.11.0a0+git1"},
        {"torch": "2.15.1"},
    ],
)
def test_tested_versions_are_silent(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    pretend(monkeypatch, **installed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.check_versions()


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("transformers", "5.17.0"),
        ("transformers", "5.20.1"),
        ("transformers", "5.25.0.dev0"),
        ("transformers", "6.0.0"),
        ("torch", "2.10.0"),
        ("torch", "2.16.0"),
    ],
)
def test_other_versions_warn_once(monkeypatch: pytest.MonkeyPatch, package: str, version: str) -> None:
    pretend(monkeypatch, **{package: version})
    tested = versions.TESTED[package]
    model, inputs = model_of("llava"), batch("llava", [[0]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for keep in (4, 3):
            vtc.wrap(model, "random", keep=keep)
            model(**inputs)
            assert vtc.report(model).tokens_out == keep
            vtc.unwrap(model)
    (said,) = [str(one.message) for one in caught if "vtc is tested with" in str(one.message)]
    assert f"{package} {tested.first} to {tested.last}, and {version} is installed" in said
    assert said.endswith(".")
    assert said.count(". ") == 0
    assert [one.filename for one in caught if str(one.message) == said] == [__file__]  # the caller's own line


def test_both_outside_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, torch="2.99.0", transformers="5.99.0")
    with pytest.warns(UserWarning, match=r"torch .*2\.99\.0 .*transformers .*5\.99\.0") as caught:
        versions.check_versions()
    assert len(caught) == 1


def test_versions_known_to_break_it_are_refused_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, transformers="5.5.4")
    model = model_of("llava")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r'transformers 5\.5\.4.* pip install "transformers>=') as caught:
            vtc.wrap(model, "divprune", keep=4)
        assert str(caught.value).count(". ") == 0
    with pytest.raises(ValueError, match="not wrapped"):
        vtc.report(model)
