"""How many pictures the vision tower takes in a step: as many as without vtc."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

from vtc.serving.vllm.contract import read_spec
from vtc.serving.vllm.families import FAMILIES


def spec(keep: int | float):
    return read_spec({"method": "divprune", "keep": keep}, FAMILIES["llava"])


@pytest.mark.parametrize(
    ("bound", "keep", "most"),
    [(2048, 64, 576), (2048, 1.0, 576), (8192, 1, 16384), (300, 64, 576), (2048, 0.25, 1000)],
)
def test_as_many_pictures_as_before(bound, keep, most):
    # vLLM lets one picture through whatever the bound is
    kept = spec(keep).count(most)
    assert max(1, spec(keep).tower_tokens(bound, most) // kept) == max(1, bound // most)


@pytest.mark.parametrize(("refused", "left"), [(False, 227), (True, 2048)])
def test_the_bound_of_an_engine(monkeypatch, refused, left):
    class Info:
        vtc = spec(64)

        def __init__(self, config: object) -> None:
            if refused:
                raise ValueError("keep=900 is more than the 576 visual tokens that a picture of this model has.")

        def most_tokens(self) -> int:
            return 576

    names = ["vllm", "vllm.model_executor", "vllm.model_executor.models", "vllm.model_executor.models.config"]
    for name in [*names, "vllm.multimodal"]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].VerifyAndUpdateConfig = object  # type: ignore[attr-defined]
    sys.modules["vllm.multimodal"].MULTIMODAL_REGISTRY = SimpleNamespace(  # type: ignore[attr-defined]
        get_processing_info=Info
    )
    monkeypatch.delitem(sys.modules, "vtc.serving.vllm.settings", raising=False)
    settings = importlib.import_module("vtc.serving.vllm.settings")
    monkeypatch.delitem(sys.modules, "vtc.serving.vllm.settings")  # the next test makes its own
    scheduler = SimpleNamespace(max_num_encoder_input_tokens=2048, encoder_cache_size=2048, max_num_batched_tokens=2048)
    config = SimpleNamespace(model_config=None, scheduler_config=scheduler)
    settings.PrunedSettings.verify_and_update_config(config)
    assert scheduler.max_num_encoder_input_tokens == scheduler.encoder_cache_size == left
    assert scheduler.max_num_batched_tokens == 2048
