"""What a family of models that ships has besides its adapter."""

from __future__ import annotations

import ast

from tests.checklist.tree import Found, Line, Tree, assigned


def family(tree: Tree, name: str) -> list[Line]:
    """The checklist of the family whose checkpoints have `config.model_type` `name`."""
    adapters = {cls.node.name: cls for cls in tree.classes("models/*.py")}
    found = next((cls for cls in adapters.values() if name in (cls.value("model_types") or ())), None)
    if found is None:
        return [Line("adapter", f"no class in models/*.py has {name!r} in its model_types")]
    return [
        Line(f"adapter {found.node.name} in {found.path}"),
        _layout(found, adapters),
        _registered(tree, found),
        *_told(tree, name),
        _layouts_tested(tree, name, found, adapters),
        _listed(tree, name),
        _lmms(tree, name),
        tree.shown(name),
        tree.changelog(name),
    ]


def _parents(found: Found, adapters: dict[str, Found]) -> list[Found]:
    """The class and those of models/ that it derives from."""
    near = [adapters[base] for base in found.bases if base in adapters]
    return [found, *(far for base in near for far in _parents(base, adapters))]


def _layout(found: Found, adapters: dict[str, Found]) -> Line:
    own = [cls for cls in _parents(found, adapters) if cls.path != "models/family.py"]
    there = any(cls.defines("layout") for cls in own)
    return Line("layout()", "" if there else f"define layout() in {found.node.name}: where a picture's tokens lie")


def _registered(tree: Tree, found: Found) -> Line:
    there = tree.entered(found.node.name)
    return Line("registered", "" if there else f"import {found.node.name} in models/registry.py, and enter it")


def _carried(tree: Tree, found: Found) -> bool:
    """Whether it is among the families that are entered together."""
    return tree.entered(found.node.name) and found.node.name not in tree.words("models/registry.py")


def _told(tree: Tree, name: str) -> list[Line]:
    """In words for `vtc families`, and with a tiny model, that reads the modalities which the words promise."""
    carried = _call(tree, "models/families.py", "_carried", name)
    told = carried or _call(tree, "models/families.py", "FamilyInfo", name)
    if carried:  # that it reads what is said, tests/cli/test_listing.py holds against the tiny models themselves
        there = any(name in tree.listed(path, "_MADE") for path in tree.files("tests/listed*.py"))
        return [Line("vtc families"), Line("tiny model", "" if there else f"add {name!r} to _MADE in tests/listed.py")]
    key = next((key for key in _tiny(tree) if key == name or key.startswith(f"{name}_")), None)
    lines = [
        Line("vtc families", "" if told else f"add a FamilyInfo of {name!r} to models/families.py"),
        Line("tiny model", "" if key else f"add {name!r} to FAMILIES in tests/families.py: all matrices run over it"),
    ]
    if told and key and any("_BOTH" in ast.unparse(argument) or "video" in ast.unparse(argument) for argument in told):
        there = len(_tiny(tree)[key].args) > 2 or tree.naming("tests/models/test_*video*.py", key)
        lines.append(Line("tiny videos", "" if there else f"give {key!r} of tests/families.py its videos, too"))
    return lines


def _call(tree: Tree, path: str, function: str, first: str) -> list[ast.expr]:
    """The next two arguments of the call of `function` whose first one is the string `first`, [] if there is none."""
    return next((rest[:2] for called, one, rest in tree.calls(path) if (called, one) == (function, repr(first))), [])


def _tiny(tree: Tree) -> dict[str, ast.Call]:
    """The calls of Family in tests/families.py, by key."""
    table = assigned(tree.parsed("tests/families.py").body, "FAMILIES")
    if not isinstance(table, ast.Dict):
        return {}
    pairs = zip(table.keys, table.values, strict=True)
    return {str(ast.literal_eval(key)): made for key, made in pairs if key is not None and isinstance(made, ast.Call)}


def _layouts_tested(tree: Tree, name: str, found: Found, adapters: dict[str, Found]) -> Line:
    owners = [cls.node.name for cls in _parents(found, adapters) if cls.defines("layout")]
    there = tree.naming("tests/models/*.py", found.node.name, *owners[:1]) or (
        _carried(tree, found) and name in tree.words("tests/models/test_listed.py")
    )
    said = f"a test in tests/models that holds {found.node.name}.layout against transformers' own packing"
    return Line("layout tested", "" if there else said)


def _listed(tree: Tree, name: str) -> Line:
    there = any(f"`{name}`" in tree.text(path) for path in ("README.md", *tree.files("docs/**/*.md")))
    return Line("a word in the list of models", "" if there else f"name `{name}` in README.md or docs/")


def _lmms(tree: Tree, name: str) -> Line:
    there = name in tree.listed("eval/lmms/__init__.py", "FAMILIES")
    return Line("lmms-eval", "" if there else f"enter {name!r} in FAMILIES of eval/lmms/__init__.py")
