"""What importing vtc imports, and that every public name is there all the same."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

import vtc

# What no import of vtc's may bring along: a compiler, other people's models, windows, plots.
HEAVY = (
    "torch._dynamo", "torch._inductor", "torchvision", "transformers.masking_utils", "transformers.modeling_utils",
    "rich", "matplotlib", "gradio", "datasets", "pandas", "scipy",
)  # fmt: skip


def loaded_after(code: str) -> set[str]:
    """Names of the modules that a fresh Python holds once it has run `code`."""
    show = "\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + show], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_imports_nothing_but_itself():
    loaded = loaded_after("import vtc; dir(vtc)")
    assert {name for name in loaded if name.split(".")[0] == "vtc"} == {"vtc"}
    assert not loaded & {"torch", "numpy", "transformers", "PIL", "importlib.metadata", *HEAVY}


def test_what_a_user_calls_first_imports_no_compiler_and_no_models():
    loaded = loaded_after("import vtc; [getattr(vtc, name) for name in vtc.__all__]")
    assert {"torch", "vtc.api", "vtc.training.loop", "vtc.methods.fastv"} <= loaded
    assert not loaded & {*HEAVY}


def test_methods_are_listed_and_refused_without_torch():
    code = "import vtc\nvtc.list_methods()\ntry:\n    vtc.methods.base.registry.find('fastvv')\nexcept ValueError: pass"
    assert "torch" not in loaded_after("import vtc.methods.base.registry\n" + code)


def test_a_name_imports_the_module_of_its_method_alone():
    loaded = loaded_after("import vtc; assert type(vtc.resolve('fastv')) is vtc.FastV")
    assert "vtc.methods.fastv" in loaded
    assert not loaded & {"vtc.methods.divprune", "vtc.methods.todre", "vtc.methods.vqtoken", "vtc.api"}


def test_any_module_may_be_the_first():
    """Those of families, towers and language models enter each other by turns."""
    code = """
import importlib, pkgutil, sys
import vtc.models
for one in pkgutil.iter_modules(vtc.models.__path__, "vtc.models."):
    if one.ispkg:
        continue
    for name in [name for name in sys.modules if name.split(".")[0] == "vtc"]:
        del sys.modules[name]
    importlib.import_module(one.name)
"""
    assert "vtc.models.unsupported" in loaded_after(code)  # the last of them


def test_what_ships_is_named_and_files_are_read_without_torch():
    code = "from vtc.models import tiny; assert tiny.names(); import vtc; vtc.read_samples; vtc.load_clip; vtc.overlay"
    assert "torch" not in loaded_after(code)


def test_every_public_name_is_there():
    for name in vtc.__all__:
        assert getattr(vtc, name) is not None
    assert set(vtc.__all__) <= set(dir(vtc))
    assert {"list_methods", "list_families", "resolve", "Encoded", "Adapter", "square_layout"} <= set(vtc.__all__)
    assert "methods" not in vtc.__all__


def test_type_checkers_are_told_of_the_same_names_and_places():
    assert vtc.__file__ is not None
    tree = ast.parse(Path(vtc.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != "vtc"
        for alias in node.names
    }
    assert {*told, "__version__"} == set(vtc.__all__)
    for name, (module, own) in told.items():
        assert module is not None
        assert getattr(vtc, name) is getattr(importlib.import_module(module), own)
    assert Path(vtc.__file__).with_name("py.typed").is_file()


def test_packages_are_not_hidden_by_functions():
    code = """
import types, vtc
for name in ("methods", "engine", "models", "ops", "draw", "media", "training", "api"):
    assert isinstance(getattr(vtc, name), types.ModuleType), name
from vtc import methods, ops
import vtc.methods.fastv as f
assert f.FastV is vtc.FastV and methods.fastv is f and vtc.ops is ops
"""
    loaded_after(code)
    assert isinstance(vtc.methods, types.ModuleType)
    assert vtc.supported is vtc.list_families
    assert "llava" in vtc.list_families()


@pytest.mark.parametrize("name", ["wrp", "_wrap", "__wrapped__"])
def test_a_name_that_is_none(name):
    with pytest.raises(AttributeError, match=f"module 'vtc' has no attribute '{name}'"):
        getattr(vtc, name)


def test_importing_a_name_that_is_none():
    with pytest.raises(ImportError, match="wrp"):
        exec("from vtc import wrp")


def test_the_version_stands_in_one_place():
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "vtc.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", vtc.__version__)


@pytest.mark.parametrize(
    "first",
    ["vtc.models.tower", *(pytest.param(f"vtc.{x}", marks=pytest.mark.full) for x in ("models.tiny", "engine.engine"))],
)
def test_families_and_towers_are_known_whatever_is_imported_first(first):
    code = f"import {first}, vtc.models\nassert 'llava' in vtc.models.list_families()\n"
    code += "from vtc.models.tower import known_towers\n"
    code += "assert {'clip_vision_model', 'qwen2_5_vl_vision'} <= {*known_towers()}, known_towers()"
    loaded_after(code)


#: what is asked first of a module that has the facts, before anything has asked for an adapter
FIRST = {
    "tower_for": """
from vtc.models.tower import tower_for
try:
    tower_for(torch.nn.Linear(2, 2))
except ValueError as error:
    assert "it knows clip_vision_model, cosmos3_edge_vision, dinov2" in str(error), error
else:
    raise AssertionError
""",
    "a tower of a user's own": """
from vtc.models.tower import Tower, known_towers, register_tower, tower_for
@register_tower
class Mine(Tower):
    model_types = ("clip_vision_model",)
tower = torch.nn.Linear(2, 2)
tower.config = types.SimpleNamespace(model_type="clip_vision_model")
assert "siglip_vision_model" in known_towers() and type(tower_for(tower)) is Mine
""",
    "known_towers": "from vtc.models.tower import known_towers\nassert 'clip_vision_model' in known_towers()",
    "decoder_for": """
from vtc.models.decoder import Decoder, decoder_for
lm = torch.nn.Linear(2, 2)
lm.config = types.SimpleNamespace(model_type="llama")
assert type(decoder_for(lm)) is not Decoder
""",
    "a decoder of a user's own": """
from vtc.models.decoder import Decoder, decoder_for, register_decoder
@register_decoder
class Mine(Decoder):
    model_types = ("llama",)
lm = torch.nn.Linear(2, 2)
lm.config = types.SimpleNamespace(model_type="llama")
import vtc.models.registry
assert type(decoder_for(lm)) is Mine
""",
    "text_models": "import vtc.models.text_models",
}


@pytest.mark.parametrize("asked", [x if x == "tower_for" else pytest.param(x, marks=pytest.mark.full) for x in FIRST])
def test_what_ships_is_known_to_whoever_asks_first(asked):
    loaded_after(f"import types, torch\n{FIRST[asked]}")


def test_a_family_of_a_users_own_comes_before_one_that_ships(monkeypatch):
    from vtc.models import registry

    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))

    @vtc.register_adapter
    class Mine(vtc.Adapter):
        model_types = ("llava", "mine")

    assert {"llava", "mine", "qwen2_vl"} <= set(vtc.list_families())
    assert isinstance(registry._ADAPTERS["llava"], Mine)
