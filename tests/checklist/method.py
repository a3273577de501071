"""What a method that ships has besides its code."""

from __future__ import annotations

import ast

from tests.checklist.tree import Found, Line, Tree, assigned

REWRITE = "run `python -m vtc.methods.base.write_index` and commit vtc/methods/index.json"


def method(tree: Tree, name: str) -> list[Line]:
    """The checklist of the method that is registered as `name`."""
    found = next((cls for cls in tree.classes("vtc/methods/*.py") if cls.value("name") == name), None)
    if found is None:
        return [Line("class", f"no class in vtc/methods/*.py has name = {name!r}")]
    return [
        Line(f"class {found.node.name} in {found.path}"),
        _decorated(found),
        _first_line(found),
        _source(found),
        _index(tree, name, found),
        _options(tree, name),
        _exported(tree, found),
        _defined(tree, name, found),
        _signals(tree, found),
        _oracle(tree, name, found),
        _fidelity(tree, name),
        _documented(tree, name),
        tree.shown(name),
        tree.changelog(name),
    ]


def _decorated(found: Found) -> Line:
    right = any(
        isinstance(mark, ast.Call)
        and ast.unparse(mark.func).endswith("dataclass")
        and {"frozen", "kw_only"} <= {word.arg for word in mark.keywords}
        for mark in found.node.decorator_list
    )
    return Line("decorator", "" if right else f"decorate {found.node.name} with @dataclass(frozen=True, kw_only=True)")


def _first_line(found: Found) -> Line:
    first = found.doc.split("\n")[0]
    if 0 < len(first) <= 45 and first.endswith("."):
        return Line("docstring: first line")
    return Line("docstring: first line", f"a sentence of at most 45 letters with a full stop; it has {len(first)}")


def _source(found: Found) -> Line:
    """A method of a paper says which, and where in it; one of nobody's has no `paper`, and may say nothing."""
    what = "docstring: paper and section"
    paper = assigned(found.node.body, "paper")
    if not isinstance(paper, ast.Call):
        return Line(f"{what} (it has no paper)")
    arxiv = ast.literal_eval(paper.args[-1])
    missing = [] if arxiv in found.doc else [f"arXiv {arxiv}, as in its `paper`"]
    if not any(word in found.doc.lower() for word in ("section", "algorithm", "equation", "figure", "appendix")):
        missing.append("the section, algorithm or equation that it follows")
    return Line(what, f"say {' and '.join(missing)} in a paragraph that begins with Source:" if missing else "")


def _index(tree: Tree, name: str, found: Found) -> Line:
    entry = tree.index.get(name)
    if entry is None:
        return Line("index", f"{name} is not in it: {REWRITE}")
    stale = [option for option in found.options if option not in {"keep", *entry["defaults"]}]
    if stale or entry["class_name"] != found.node.name or entry["summary"] != found.doc.split("\n")[0]:
        return Line("index", f"it is older than the class: {REWRITE}")
    return Line("index")


def _options(tree: Tree, name: str) -> Line:
    if name not in tree.index:
        return Line("docstring: options", "seen once it is in the index")
    helped = tree.index[name]["help"]
    silent = [option for option, said in helped.items() if not said]
    return Line("docstring: options", f"describe under Args: {', '.join(silent)}" if silent else "")


def _exported(tree: Tree, found: Found) -> Line:
    cls, path = found.node.name, "vtc/__init__.py"
    places = {
        "__all__": cls in tree.listed(path, "__all__"),
        "_HOME": cls in tree.listed(path, "_HOME"),
        "the imports for type checkers": any(
            cls in {alias.name for alias in node.names}
            for node in ast.walk(tree.parsed(path))
            if isinstance(node, ast.ImportFrom)
        ),
    }
    missing = [place for place, there in places.items() if not there]
    return Line("exported by vtc", f"add {cls} to {', '.join(missing)} in {path}" if missing else "")


def _defined(tree: Tree, name: str, found: Found) -> Line:
    """By tests that state what the method is; options of base classes are defined once for all methods."""
    shared = {option for base in tree.classes("vtc/methods/base/*.py") for option in base.options}
    own = {*tree.index.get(name, {}).get("defaults", {}), *found.options} - shared - {"keep"}
    said = tree.defined()
    covered = {option for claimed, options in said if claimed == name for option in options}
    if name not in {claimed for claimed, _ in said}:
        return Line("definition", f"no test in tests/methods has @defines({name!r}, ...): state the paper in loops")
    missing = sorted(own - covered)
    return Line("definition", f"no @defines({name!r}, ...) names: {', '.join(missing)}" if missing else "")


def _signals(tree: Tree, found: Found) -> Line:
    """Everything it reads is in the picture that tests/methods/test_all.py shows to every method."""
    shown = tree.words("tests/methods/test_all.py") | {"grid"}
    unseen = [signal for signal in found.value("needs") or () if signal not in shown]
    where = "picture() of tests/methods/test_all.py"
    return Line("signals in the matrix of methods", f"add to {where}: {', '.join(unseen)}" if unseen else "")


def _oracle(tree: Tree, name: str, found: Found) -> Line:
    """A wrapped model is proved equal to the one that cannot see the dropped tokens."""
    proved = tree.naming("tests/engine/test_oracle*.py", name, found.node.name)
    proved += tree.naming("tests/engine/test_pixels*.py", name, found.node.name)
    proved += tree.naming("tests/engine/test_encoder*.py", name, found.node.name)
    proved += tree.naming("tests/engine/test_denoising.py", name, found.node.name)
    return Line("oracle matrix", "" if proved else "add it to the methods of a tests/engine/test_oracle*.py")


def _fidelity(tree: Tree, name: str) -> Line:
    there = tree.row("docs/fidelity.md", name)
    return Line("docs/fidelity.md", "" if there else f"add a row that begins with | `{name}` |")


def _documented(tree: Tree, name: str) -> Line:
    elsewhere = [path for path in ("README.md", *tree.files("docs/**/*.md")) if path != "docs/fidelity.md"]
    there = any(tree.row(path, name) for path in elsewhere)
    return Line("a row in a table of methods", "" if there else f"add | `{name}` | ... | in README.md or docs/")
