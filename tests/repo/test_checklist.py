"""The checklists of CONTRIBUTING: what ships has everything on them, and a part that is taken away is missed."""

from __future__ import annotations

import json

import pytest

from tests.checklist.__main__ import LISTS, main
from tests.checklist.tree import Tree
from vtc.methods.base import index
from vtc.models.families import SHIPPED

TREE = Tree()
OPS = sorted({path.split("/")[1] for path in TREE.files("kernels/*/reference.py")})
STAGES = [cls.value("name") for cls in TREE.classes("vtc/engine/stages/*.py") if "Stage" in cls.bases]


def types(pattern: str) -> list[str]:
    return [name for cls in TREE.classes(pattern) for name in cls.value("model_types") or ()]


SHIPS = {
    "method": [*index.shipped()],
    "family": [*SHIPPED],
    "kernel": OPS,
    "tower": types("models/tower*.py"),
    "decoder": types("models/text_models.py"),
    "stage": sorted({name for name in STAGES if name}),
}


def missing(kind: str, name: str, tree: Tree = TREE) -> dict[str, str]:
    return {line.what: line.missing for line in LISTS[kind](tree, name) if line.missing}


@pytest.mark.parametrize("kind", LISTS)
def test_what_ships_has_everything(kind):
    assert SHIPS[kind]
    assert {name: lines for name in SHIPS[kind] if (lines := missing(kind, name))} == {}


def test_a_file_that_is_half_written(capsys):
    with pytest.raises(SystemExit) as left:
        main(["kernel", "kmeans"], TREE.changed({"vtc/ops.py": "def kmeans(:\n"}))
    assert left.value.code == 2
    assert "vtc/ops.py, line 1, is not Python yet: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", LISTS)
def test_what_is_not_there(kind, capsys):
    assert main([kind, "nowhere"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{kind} nowhere"
    assert "  missing  " in said[1]
    assert said[2:] == ["0 of 1 are there."]


def test_a_list_that_is_complete(capsys):
    assert main(["method", "divprune"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "  ok       class DivPrune in vtc/methods/divprune.py"
    assert said[-1] == f"{len(said) - 2} of {len(said) - 2} are there."


def test_a_kind_that_is_none(capsys):
    with pytest.raises(SystemExit) as left:
        main(["metod", "divprune"])
    assert left.value.code == 2
    assert "invalid choice: 'metod'" in capsys.readouterr().err


def without(path: str, part: str) -> Tree:
    """The checkout with a part taken out of a file: whole lines, or words that others stand in for."""
    assert part in TREE.text(path), (path, part)
    instead = "" if part.endswith("\n") else "other(self" if part.endswith("(self") else "other"
    return TREE.changed({path: TREE.text(path).replace(part, instead)})


INDEX = "vtc/methods/index.json"
METHOD = "vtc/methods/divprune.py"
SOURCE = next(line for line in TREE.text(METHOD).splitlines(keepends=True) if "Source: arXiv" in line)
REMOVED = {  # what is taken away -> which line misses it, and a word of what it says
    ("method", "divprune", METHOD, "@dataclass(frozen=True, kw_only=True)\n"): ("decorator", "@dataclass"),
    ("method", "divprune", METHOD, SOURCE): (
        "docstring: paper and section",
        "arXiv 2503.02175, as in its `paper` and the section",
    ),
    ("method", "divprune", "vtc/__init__.py", '    "DivPrune",\n'): ("exported by vtc", "DivPrune to __all__ in"),
    ("method", "divprune", "vtc/__init__.py", '    "DivPrune": "vtc.methods.divprune",\n'): (
        "exported by vtc",
        "_HOME",
    ),
    ("method", "divprune", "vtc/__init__.py", "    from vtc.methods.divprune import DivPrune\n"): (
        "exported by vtc",
        "the imports for type checkers",
    ),
    ("method", "divprune", "tests/methods/test_divprune.py", '@defines("divprune", "order")'): (
        "definition",
        "@defines('divprune', ...)",
    ),
    ("method", "vtc-cls", "tests/methods/test_all.py", "cls_attention"): (
        "signals in the matrix of methods",
        "cls_attention",
    ),
    ("method", "divprune", "docs/fidelity.md", "| `divprune` |"): ("docs/fidelity.md", "a row that begins"),
    ("method", "divprune", "docs/cli.md", "divprune  "): ("docs/cli.md", "python -m tests.cli.shown"),
    ("method", "divprune", "CHANGELOG.md", "`divprune`"): ("CHANGELOG.md", "name `divprune` under Unreleased"),
    ("family", "llava", "models/registry.py", "LlavaAdapter"): ("registered", "import LlavaAdapter"),
    ("family", "llava", "models/llava.py", "layout(self"): ("layout()", "define layout() in LlavaAdapter"),
    ("family", "qwen2_vl", "models/families.py", '        "qwen2_vl",\n'): ("vtc families", "a FamilyInfo"),
    ("family", "qwen3_vl", "tests/families.py", ', _clips("qwen3_vl"), typed=True'): ("tiny videos", "its videos"),
    ("family", "qwen3_vl", "eval/lmms/__init__.py", '("qwen3_vl",)'): ("lmms-eval", "FAMILIES"),
    ("family", "qwen3_vl", "docs/cli.md", "qwen3_vl  "): ("docs/cli.md", "python -m tests.cli.shown"),
    ("kernel", "kmeans", "vtc/ops.py", '    "kmeans",\n'): ("vtc.ops", "__all__"),
    ("kernel", "kmeans", "tests/kernels/test_kmeans.py", "kmeans"): ("definition", "loops over single elements"),
    ("kernel", "kmeans", "tests/kernels/test_gpu.py", "kmeans"): ("tested on a GPU", "call ops.kmeans"),
    ("kernel", "kmeans", "eval/bench/suites.py", '    "kmeans",\n'): ("vtc bench ops", "OPS"),
    ("kernel", "transition", "tests/kernels/compile_kernels.py", "transition"): (
        "compiled for A100 and H100",
        "kernels()",
    ),
    ("kernel", "kmeans", "kernels/kmeans/triton.py", "iterations: int, "): (
        "Triton kernel in kernels/kmeans/triton.py",
        "the reference ['features'",
    ),
    ("tower", "clip_vision_model", "models/registry.py", "    CLIPTower,\n"): ("registered", "CLIPTower"),
    ("decoder", "olmo2", "models/text_models.py", "@register_decoder\n"): ("registered", "Olmo2Decoder"),
    ("stage", "pixels", "vtc/stages.py", '"pixels", 5'): ("named without torch", "'pixels'"),
}


@pytest.mark.parametrize("removed", REMOVED, ids=lambda removed: f"{removed[1]}-{removed[2]}-{removed[3].strip()[:20]}")
def test_a_part_that_is_taken_away_is_missed(removed):
    kind, name, path, part = removed
    what, said = REMOVED[removed]
    found = missing(kind, name, without(path, part))
    assert set(found) == {what}
    assert said in found[what]


def test_a_first_line_that_is_too_long():
    longer = TREE.text(METHOD).replace(
        "whose closest pair is farthest", "whose closest pair is the farthest of them all"
    )
    assert (
        "at most 45 letters" in missing("method", "divprune", TREE.changed({METHOD: longer}))["docstring: first line"]
    )


@pytest.mark.parametrize("method", ["divprune", "pitome"])
def test_an_index_that_is_older_than_the_class(method):
    entries = json.loads(TREE.text(INDEX))
    for stale in ("summary", "class_name"):
        other = [entry | {stale: "Other"} if entry["name"] == method else entry for entry in entries]
        found = missing("method", method, TREE.changed({INDEX: json.dumps(other)}))
        assert "older than the class" in found["index"]
    rest = [entry for entry in entries if entry["name"] != method]
    assert f"{method} is not in it" in missing("method", method, TREE.changed({INDEX: json.dumps(rest)}))["index"]


def test_an_option_that_nothing_describes_or_defines():
    entries = json.loads(TREE.text(INDEX))
    for entry in entries:
        if entry["name"] == "divprune":
            entry["defaults"]["breadth"], entry["help"]["breadth"] = 1, ""
    found = missing("method", "divprune", TREE.changed({INDEX: json.dumps(entries)}))
    assert found == {
        "docstring: options": "describe under Args: breadth",
        "definition": "no @defines('divprune', ...) names: breadth",
    }


def test_a_row_that_stands_nowhere_but_in_fidelity():
    pages = {path: TREE.text(path).replace("| `fastv` |", "| |") for path in ("README.md", *TREE.files("docs/**/*.md"))}
    pages["docs/fidelity.md"] = TREE.text("docs/fidelity.md")
    assert set(missing("method", "fastv", TREE.changed(pages))) == {"a row in a table of methods"}


def test_a_method_that_no_oracle_proves():
    paths = [*TREE.files("tests/engine/test_oracle*.py"), "tests/engine/test_pixels.py"]
    tree = TREE.changed(
        {path: TREE.text(path).replace("Scissorhands", "H2O").replace("scissorhands", "h2o") for path in paths}
    )
    assert set(missing("method", "scissorhands", tree)) == {"oracle matrix"}
