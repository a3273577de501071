"""What vLLM calls in each of its processes: it names architectures, imports nothing heavy, and never raises."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from vtc.serving.vllm import register
from vtc.serving.vllm.families import FAMILIES


class Registry:
    """What of vLLM's registry the plug-in touches."""

    def __init__(self) -> None:
        self.models: dict[str, SimpleNamespace] = {}
        self.settings: dict[str, type] = {}

    def register_model(self, architecture: str, place: str) -> None:
        module, name = place.split(":")
        self.models[architecture] = SimpleNamespace(module_name=module, class_name=name)


@pytest.fixture
def registry(monkeypatch) -> Registry:
    module = ModuleType("vllm")
    module.ModelRegistry = Registry()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    names = ["vllm.model_executor", "vllm.model_executor.models", "vllm.model_executor.models.config"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].VerifyAndUpdateConfig = object  # type: ignore[attr-defined]
    sys.modules[names[-1]].MODELS_CONFIG_MAP = module.ModelRegistry.settings  # type: ignore[attr-defined]
    return module.ModelRegistry  # type: ignore[attr-defined]


def test_every_family_is_entered_once(registry, caplog):
    register()
    first = dict(registry.models)
    register()
    assert registry.models == first
    assert set(first) == {family.architecture for family in FAMILIES.values()}
    assert first["VtcLlavaForConditionalGeneration"].module_name == "vtc.serving.vllm.llava"
    assert set(registry.settings) == set(first)
    assert not caplog.records


@pytest.mark.parametrize("by_class", [False, True])
def test_a_name_of_another_plugin_stays_its_own(registry, caplog, by_class):
    taken = SimpleNamespace(module_name="other.plugin", class_name="Mine")
    if by_class:
        taken = SimpleNamespace(model_cls=type("Mine", (), {"__module__": "other.plugin"}))
    registry.models["VtcLlavaForConditionalGeneration"] = taken
    with caplog.at_level(logging.WARNING):
        register()
    assert registry.models["VtcLlavaForConditionalGeneration"] is taken
    assert "VtcLlavaForConditionalGeneration" not in registry.settings
    assert [record.getMessage() for record in caplog.records] == [
        "VtcLlavaForConditionalGeneration stands for other.plugin:Mine of another plug-in, and vtc leaves it alone: "
        "choose by VLLM_PLUGINS which is loaded."
    ]
    assert len(registry.models) == len(FAMILIES)


@pytest.mark.parametrize("module", [None, ModuleType("vllm")])
def test_without_vllm_or_with_another_it_warns(monkeypatch, caplog, module):
    monkeypatch.setitem(sys.modules, "vllm", module)
    with caplog.at_level(logging.WARNING):
        register()
    assert "vtc's plug-in could not register its architectures" in caplog.text


def test_registering_imports_nothing_heavy():
    code = """
import json, sys, types
vllm = types.ModuleType("vllm")
vllm.ModelRegistry = types.SimpleNamespace(models={}, register_model=lambda *row: None)
sys.modules["vllm"] = vllm
for part in ("model_executor", "model_executor.models", "model_executor.models.config"):
    sys.modules["vllm." + part] = types.ModuleType("vllm." + part)
sys.modules["vllm.model_executor.models.config"].VerifyAndUpdateConfig = object
settings = sys.modules["vllm.model_executor.models.config"].MODELS_CONFIG_MAP = {}
from vtc.serving.vllm import register
register()
assert settings
print(json.dumps(list(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not {name for name in loaded if name.split(".")[0] in ("torch", "numpy", "transformers")}
    assert not {name for name in loaded if name.startswith("vtc.methods.") or name == "vtc.api"}
