"""What a vision tower, a language model and a stage have: three short lists."""

from __future__ import annotations

import ast

from tests.checklist.tree import Found, Line, Tree


def tower(tree: Tree, name: str) -> list[Line]:
    """The checklist of the vision tower whose own `config.model_type` is `name`."""
    found = _of_type(tree, "models/tower*.py", name)
    if found is None:
        return [Line("tower", f"no class in models/tower*.py has {name!r} in its model_types")]
    entered = tree.entered(found.node.name)
    return [
        Line(f"tower {found.node.name} in {found.path}"),
        Line("registered", "" if entered else f"import {found.node.name} in models/registry.py, and enter it"),
        _used(tree, name),
        _alone(tree, name, found),
        tree.changelog(name),
    ]


def decoder(tree: Tree, name: str) -> list[Line]:
    """The checklist of the language model whose own `config.model_type` is `name`."""
    found = _of_type(tree, "models/text_models.py", name)
    if found is None:
        return [Line("decoder", f"no class in models/text_models.py has {name!r} in its model_types")]
    entered = "register_decoder" in [ast.unparse(mark) for mark in found.node.decorator_list]
    return [
        Line(f"decoder {found.node.name} in {found.path}"),
        Line("registered", "" if entered else f"register_decoder {found.node.name} in {found.path}"),
        _named(tree, "tests/models/test_decoders.py", name, found, "what it reads against the model's own attention"),
        tree.changelog(name),
    ]


def stage(tree: Tree, name: str) -> list[Line]:
    """The checklist of the stage `name`."""
    stages = [cls for cls in tree.classes("vtc/engine/stages/*.py") if "Stage" in cls.bases]
    found = next((cls for cls in stages if cls.value("name") == name), None)
    if found is None:
        return [Line("stage", f"no class in vtc/engine/stages/*.py has name = {name!r}")]
    told = name in tree.words("vtc/stages.py")
    proved = tree.naming("tests/engine/test_*.py", name, found.node.name)
    return [
        Line(f"stage {found.node.name} in {found.path}"),
        Line(
            "docstring of its file", "" if ast.get_docstring(tree.parsed(found.path)) else "say where its methods act"
        ),
        Line("named without torch", "" if told else f"add StageName({name!r}, ...) to vtc/stages.py"),
        Line("proof", "" if proved else "a test in tests/engine that holds it against the uncompressed model"),
        tree.changelog(name),
    ]


def _of_type(tree: Tree, pattern: str, name: str) -> Found | None:
    return next((cls for cls in tree.classes(pattern) if name in (cls.value("model_types") or ())), None)


def _used(tree: Tree, name: str) -> Line:
    path, alone = "tests/families.py", "tests/engine/towers.py"
    there = name in tree.words(path) or name.removesuffix("_vision") in tree.listed(path, "FAMILIES")
    there = there or any(name in tree.words(one) for one in (alone, "tests/models/test_listed.py"))
    there = there or bool(tree.naming("tests/engine/test_encoder*.py", name))
    said = f"a tiny model with this tower in {path}, or the tower alone in {alone}: all matrices run over it"
    return Line("a tiny model", "" if there else said)


def _alone(tree: Tree, name: str, found: Found) -> Line:
    """Towers of no family are tested alone, by what merges or leaves inside them."""
    if name in tree.words("tests/engine/towers.py") or tree.naming("tests/engine/test_encoder*.py", name):
        return Line("tested")
    if name in tree.words("tests/models/test_listed.py"):
        return Line("tested")
    return _named(
        tree, "tests/models/test_tower*.py", name, found, "its signals against the tower's own eager attention"
    )


def _named(tree: Tree, pattern: str, name: str, found: Found, what: str) -> Line:
    there = tree.naming(pattern, name, found.node.name)
    return Line("tested", "" if there else f"a test in {pattern} that holds {what}")
