"""A checkout as a checklist sees it: files that are read and never imported, so that half-finished work will do."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.methods.claims import claims

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Line:
    """One line of a checklist: what has to be there and, unless it is, what is missing and how to mend it."""

    what: str
    missing: str = ""


def assigned(body: Iterable[ast.stmt], name: str) -> ast.expr | None:
    """What statements assign to `name`, alone or in a row of names; None if they do not."""
    for part in body:
        targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
        value: ast.expr | None = getattr(part, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and target.id == name:
                return value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                for one, own in zip(target.elts, value.elts, strict=True):
                    if isinstance(one, ast.Name) and one.id == name:
                        return own
    return None


@dataclass(frozen=True)
class Found:
    """A class, and the file it is in (relative to the root)."""

    path: str
    node: ast.ClassDef

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def bases(self) -> list[str]:
        """Names of what it derives from, without their modules."""
        return [ast.unparse(base).rpartition(".")[2] for base in self.node.bases]

    def value(self, name: str) -> Any:
        """What the class body assigns to `name`, if that is a plain value; None if not."""
        value = assigned(self.node.body, name)
        try:
            return None if value is None else ast.literal_eval(value)
        except ValueError:
            return None

    @property
    def options(self) -> list[str]:
        """Names of the dataclass fields that the class itself brings."""
        return [
            statement.target.id
            for statement in self.node.body
            if isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and "ClassVar" not in ast.unparse(statement.annotation)
        ]

    def defines(self, name: str) -> bool:
        return any(isinstance(part, ast.FunctionDef) and part.name == name for part in self.node.body)


def _words(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.alias):
        return node.name.split(".")
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def _module(tree: Tree, path: str) -> ast.Module:
    return ast.parse(tree.text(path), filename=path)


def _all_words(tree: Tree, path: str) -> set[str]:
    return {word for node in ast.walk(tree.parsed(path)) for word in _words(node)}


def _top_classes(tree: Tree, path: str) -> list[Found]:
    return [Found(path, node) for node in tree.parsed(path).body if isinstance(node, ast.ClassDef)]


def _calls(tree: Tree, path: str) -> list[tuple[str, str, list[ast.expr]]]:
    calls = [node for node in ast.walk(tree.parsed(path)) if isinstance(node, ast.Call) and node.args]
    return [(ast.unparse(call.func), ast.unparse(call.args[0]), call.args[1:]) for call in calls]


def _first_cells(tree: Tree, path: str) -> set[str]:
    return set(re.findall(r"^\| *`([^`\n]+)` *\|", tree.text(path), re.MULTILINE))


def _claims(tree: Tree, path: str) -> list[tuple[str, list[str]]]:
    return claims(tree.parsed(path)) if "@defines(" in tree.text(path) else []


class Tree:
    """A checkout at `root`; files that are not there are empty. What was worked out of a file is kept."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._texts: dict[str, str] = {}
        self._kept: dict[tuple[str, Callable[..., Any]], Any] = {}
        self._files: dict[str, list[str]] = {}

    def changed(self, texts: Mapping[str, str]) -> Tree:
        """The same checkout with other texts in some of its files."""
        other = Tree(self.root)
        other._texts = self._texts | dict(texts)
        other._kept = {key: value for key, value in self._kept.items() if key[0] not in texts}
        other._files = self._files
        return other

    def kept(self, path: str, work: Callable[[Tree, str], Any]) -> Any:
        """What `work` makes of this checkout's file."""
        if (path, work) not in self._kept:
            self._kept[path, work] = work(self, path)
        return self._kept[path, work]

    def text(self, path: str) -> str:
        if path not in self._texts:
            file = self.root / path
            self._texts[path] = file.read_text(encoding="utf-8") if file.is_file() else ""
        return self._texts[path]

    def files(self, pattern: str) -> list[str]:
        """Paths that match, relative to the root, in order."""
        if pattern not in self._files:
            found = [file for file in self.root.glob(pattern) if file.is_file()]
            self._files[pattern] = sorted(str(file.relative_to(self.root)) for file in found)
        return self._files[pattern]

    def parsed(self, path: str) -> ast.Module:
        return self.kept(path, _module)

    def classes(self, pattern: str) -> Iterator[Found]:
        """All classes at the top of the files that match."""
        for path in self.files(pattern):
            yield from self.kept(path, _top_classes)

    def function(self, path: str, name: str) -> ast.FunctionDef | None:
        """A function at the top of a file."""
        found = [part for part in self.parsed(path).body if isinstance(part, ast.FunctionDef) and part.name == name]
        return found[0] if found else None

    def words(self, path: str) -> set[str]:
        """Names and strings that a Python file uses: its identifiers, attributes, imports and constants."""
        return self.kept(path, _all_words)

    def calls(self, path: str) -> list[tuple[str, str, list[ast.expr]]]:
        """(function, first argument, the other positional ones) of each call in a Python file, two of them as code."""
        return self.kept(path, _calls)

    def naming(self, pattern: str, *words: str) -> list[str]:
        """The Python files that use one of these names or strings."""
        return [path for path in self.files(pattern) if self.words(path) & set(words)]

    def listed(self, path: str, name: str) -> set[str]:
        """The strings in what a file assigns to `name`: members of a list, keys and values of a table."""
        value = assigned(self.parsed(path).body, name)
        constants = [] if value is None else [node for node in ast.walk(value) if isinstance(node, ast.Constant)]
        return {node.value for node in constants if isinstance(node.value, str)}

    def entered(self, name: str) -> bool:
        """Whether a class stands in models/registry.py, or in a tuple of models/ that is entered there as a whole."""
        words = self.words("models/registry.py")
        if name in words:
            return True
        bodies = [self.parsed(path).body for path in self.files("models/*.py")]
        tables = [
            node.value
            for body in bodies
            for node in body
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.value, ast.Tuple)
            and ast.unparse(node.target) in words
        ]
        return any(name == ast.unparse(one) for table in tables for one in table.elts)

    @cached_property
    def index(self) -> dict[str, dict[str, Any]]:
        """vtc/methods/index.json by name."""
        return {entry["name"]: entry for entry in json.loads(self.text("vtc/methods/index.json") or "[]")}

    def row(self, pattern: str, name: str) -> str | None:
        """The first Markdown file with a table row whose first cell is `name`, in code."""
        return next((path for path in self.files(pattern) if name in self.kept(path, _first_cells)), None)

    def defined(self) -> list[tuple[str, list[str]]]:
        """What the tests in tests/methods state: (method, options) of each definition."""
        return [claim for path in self.files("tests/methods/test_*.py") for claim in self.kept(path, _claims)]

    def shown(self, name: str) -> Line:
        """Whether the listings in docs/cli.md, which commands print, have it."""
        there = re.search(rf"^{re.escape(name)}  ", self.text("docs/cli.md"), re.MULTILINE)
        return Line("docs/cli.md", "" if there else "write its listings anew: python -m tests.cli.shown")

    def changelog(self, name: str) -> Line:
        """Whether CHANGELOG.md names it, in code."""
        there = f"`{name}`" in self.text("CHANGELOG.md")
        return Line("CHANGELOG.md", "" if there else f"name `{name}` under Unreleased, in what was added")
