"""How many pictures the vision tower takes in a step: as many as without vtc."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from vtc.serving.vllm.settings import PrunedSettings, tower_tokens


@pytest.mark.parametrize(
    ("bound", "kept", "most"), [(2048, 64, 576), (2048, 576, 576), (8192, 1, 16384), (300, 64, 576)]
)
def test_as_many_pictures_as_before(bound, kept, most):
    # vLLM lets one picture through whatever the bound is
    assert max(1, tower_tokens(bound, kept, most) // kept) == max(1, bound // most)


@pytest.mark.parametrize(("refused", "left"), [(False, 227), (True, 2048)])
def test_the_bound_of_an_engine(monkeypatch, refused, left):
    class Info:
        vtc = SimpleNamespace(count=lambda tokens: 64)

        def __init__(self, config: object) -> None:
            if refused:
                raise ValueError("keep=900 is more than the 576 visual tokens that a picture of this model has.")

        def most_tokens(self) -> int:
            return 576

    multimodal = ModuleType("vllm.multimodal")
    multimodal.MULTIMODAL_REGISTRY = SimpleNamespace(get_processing_info=Info)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.multimodal", multimodal)
    config = SimpleNamespace(
        model_config=None,
        scheduler_config=SimpleNamespace(max_num_encoder_input_tokens=2048, max_num_batched_tokens=2048),
    )
    PrunedSettings.verify_and_update_config(config)
    assert config.scheduler_config.max_num_encoder_input_tokens == left
    assert config.scheduler_config.max_num_batched_tokens == 2048
