"""The definitions that a module of tests claims, read from its source without running it."""

from __future__ import annotations

import ast

UNRUN = {"full", "skip", "skipif", "xfail"}


def claims(source: str | ast.Module) -> list[tuple[str, list[str]]]:
    """The arguments of each `@defines` on a test that runs in `make test`; AssertionError where one cannot be read."""
    found = []
    for test in (ast.parse(source) if isinstance(source, str) else source).body:
        if not isinstance(test, ast.FunctionDef) or not test.name.startswith("test_"):
            continue
        attributes = {
            node.attr for mark in test.decorator_list for node in ast.walk(mark) if isinstance(node, ast.Attribute)
        }
        for mark in test.decorator_list:
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "defines":
                assert not UNRUN & attributes, f"{test.name} does not run in every test run, so it defines nothing."
                name, *options = [ast.literal_eval(argument) for argument in mark.args]
                found.append((name, options))
    return found
