"""Every public name says what it is, and stands once on the pages of docs/api."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import vtc
from vtc import ops, signals
from vtc.engine import stage

API = Path(__file__).resolve().parents[2] / "docs" / "api"
LISTED = [name for page in sorted(API.glob("*.md")) for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]


#: where the function of a class method, a property, a cached property is
WRAPPED = ("__func__", "fget", "func")


def defined(module: Any) -> list[str]:
    """Public names that a module without `__all__` defines itself."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return [name for name in own if not name.startswith("_")]


PUBLIC = [
    *(f"vtc.{name}" for name in vtc.__all__ if name != "__version__"),
    *(f"vtc.models.{name}" for name in vtc.models.__all__),
    *(f"vtc.ops.{name}" for name in ops.__all__),
    *(f"vtc.signals.{name}" for name in defined(signals)),
    *(f"vtc.engine.stage.{name}" for name in defined(stage)),
]


def found(name: str) -> Any:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def own_docstring(thing: Any) -> str:
    """The docstring that somebody wrote: dataclasses make one of the fields, and classes inherit none here."""
    text = (vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__) or ""
    return "" if text.startswith(f"{getattr(thing, '__name__', '')}(") else text.strip()


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_what_it_is(name: str) -> None:
    text = own_docstring(found(name))
    assert len(text.split()) >= 3, f"{name} has no docstring"
    assert text.splitlines()[0].rstrip().endswith((".", ":", "?", ")")) or "\n" in text, f"{name}: {text}"


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isclass(found(name))])
def test_so_do_its_methods(name: str) -> None:
    """Those of a class's own that are no overrides; what a base class has described needs no second description."""
    for member, value in vars(found(name)).items():
        called = next((inside for name in WRAPPED if (inside := getattr(value, name, None))), value)
        if member.startswith("_") or not inspect.isfunction(called) or called.__name__ == "<lambda>":
            continue
        assert inspect.getdoc(getattr(found(name), member)), f"{name}.{member} has no docstring"


def test_the_reference_lists_each_once() -> None:
    things = {name: found(name) for name in LISTED}
    assert len(LISTED) == len(set(LISTED))
    for name in PUBLIC:
        same = [listed for listed, thing in things.items() if thing is found(name)]
        assert same, f"{name} is on no page of docs/api"
        if inspect.isclass(found(name)) or inspect.isfunction(found(name)):
            assert len(same) == (2 if found(name) is vtc.list_families else 1), f"{name} is there as {', '.join(same)}"
