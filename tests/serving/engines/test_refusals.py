"""What is refused when an engine starts: in one sentence, before anything is loaded."""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
from typing import Any

import pytest

from tests.serving.engines.served import ENVIRONMENT
from vtc.models.tiny import find
from vtc.serving.vllm.contract import spec_of
from vtc.serving.vllm.families import FAMILIES
from vtc.serving.vllm.refuse import check_engine

pytestmark = pytest.mark.vllm
MODELS = {"llava": "tiny-llava", "qwen2_5_vl": "tiny-qwen"}
PLAIN = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048}


def settings(family: str, vtc: object, **options: Any) -> dict[str, Any]:
    asked = {"architectures": [FAMILIES[family].architecture]} | ({} if vtc is None else {"vtc": vtc})
    return {"model": str(find(MODELS[family])), "hf_overrides": asked, **PLAIN, **options}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    os.environ.update(ENVIRONMENT)
    monkeypatch.delenv("VTC_VLLM", raising=False)


@pytest.mark.parametrize(
    ("family", "vtc", "said"),
    [
        ("llava", None, "was given no method"),
        ("llava", {"method": "divprun", "keep": 64}, "there is no method 'divprun'. Did you mean 'divprune'?"),
        ("llava", {"method": "divprune", "keep": 0}, "keep=0 is not"),
        ("llava", {"method": "divprune", "keep": 577}, "keep=577 is more than the 576 visual tokens"),
        ("llava", {"method": "divprune", "blocs": 2}, "divprune has no option 'blocs'"),
        ("llava", {"method": "divprune", "positions": "original"}, 'positions="original" cannot be had for llava'),
        ("llava", {"method": "sparsevlm"}, "sparsevlm acts between the language model's layers"),
        ("llava", {"method": "cdpruner"}, "cdpruner reads the question"),
        ("llava", {"method": "divprune + fastv"}, "are several methods"),
        ("llava", {"method": "vidcom2"}, "vidcom2 acts on videos"),
        ("llava", ["divprune"], "expected {"),
        ("qwen2_5_vl", {"method": "divprune", "positions": "compact"}, 'positions="compact" cannot be had'),
        ("qwen2_5_vl", {"method": "evs"}, "how many tokens evs keeps is for the picture to say"),
        ("qwen2_5_vl", {"method": "divprune", "keep": 100_000}, "keep=100000 is more than the 1024 visual tokens"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_engine_starts(family, vtc, said):
    from vllm import LLM

    with pytest.raises((ValueError, TypeError)) as told:
        LLM(**settings(family, vtc))
    assert said in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("family", "vtc", "options", "said"),
    [
        ("llava", "vtc-cls", {"tensor_parallel_size": 2}, "--tensor-parallel-size 1"),
        ("qwen2_5_vl", "vtc-cls", {"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode data"),
        ("llava", "divprune", {"enable_mm_embeds": True}, "--enable-mm-embeds"),
        ("qwen2_5_vl", "divprune", {"video_pruning_rate": 0.5}, "--video-pruning-rate"),
        ("qwen2_5_vl", "divprune", {"pipeline_parallel_size": 2}, "--pipeline-parallel-size above 1"),
        ("qwen2_5_vl", "divprune", {"compilation_config": {"compile_mm_encoder": True}}, "compile_mm_encoder"),
        ("qwen2_5_vl", "divprune", {"compilation_config": {"cudagraph_mm_encoder": True}}, "cudagraph_mm_encoder"),
    ],
)
def test_settings_of_the_engine_that_do_not_go_with_pruning(family, vtc, options, said):
    """Of vLLM's own configuration, made by vLLM; an engine of several processes would say it in another one."""
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(**settings(family, {"method": vtc, "keep": 32}, **options)).create_engine_config()
    spec = spec_of(config.model_config.hf_config)
    with pytest.raises(ValueError, match=said):
        check_engine(spec, config)


def test_a_setting_is_refused_when_the_engine_starts():
    from vllm import LLM

    with pytest.raises(ValueError, match="--video-pruning-rate is vLLM's own pruning"):
        LLM(**settings("qwen2_5_vl", {"method": "divprune", "keep": 32}, video_pruning_rate=0.5))


def test_a_cls_token_among_the_patches_is_refused():
    from vllm import LLM

    given = settings("llava", {"method": "divprune", "keep": 32})
    given["hf_overrides"] |= {"vision_feature_select_strategy": "full"}
    with pytest.raises(ValueError, match="passes the CLS token on as if it were a patch"):
        LLM(**given)


def test_tensor_parallelism_goes_with_methods_that_read_no_attention():
    from vllm.engine.arg_utils import EngineArgs

    made = EngineArgs(**settings("llava", {"method": "divprune", "keep": 32}, tensor_parallel_size=2))
    config = made.create_engine_config()
    check_engine(spec_of(config.model_config.hf_config), config)
