"""Plug-in of lmms-eval: vtc-wrapped models under names of their own, for the standard benchmarks.

lmms-eval finds it through the entry-point group `lmms_eval.models` and reads one manifest per name. Each name stands
for a chat model (whole conversations, generation only: what lmms-eval takes by default) and a simple model (one prompt
and its pictures, likelihoods, too: `--force_simple`).
"""

from __future__ import annotations

from typing import Any

FAMILIES: dict[str, tuple[str, ...]] = {  # name in lmms-eval: `config.model_type` of the checkpoints it runs
    "vtc_llava": ("llava",),
    "vtc_llava_next": ("llava_next", "llava_next_video"),
    "vtc_llava_onevision": ("llava_onevision",),
    "vtc_qwen2_vl": ("qwen2_vl",),
    "vtc_qwen2_5_vl": ("qwen2_5_vl",),
    "vtc_qwen3_vl": ("qwen3_vl",),
    "vtc_internvl": ("internvl",),
    "vtc_hf": (  # whatever else the default family carries
        *("aria", "aya_vision", "cohere2_vision", "cosmos3_edge", "cosmos3_omni", "deepseek_ocr2", "deepseek_vl"),
        *("deepseek_vl_hybrid", "emu3", "ernie4_5_vl_moe", "exaone4_5", "fast_vlm", "gemma3", "gemma3n", "gemma4"),
        *("glm46v", "glm4v", "glm4v_moe", "glm_ocr", "glmga", "got_ocr2", "granite4_vision", "granite_docling"),
        *("hunyuan_vl", "hyperclovax_vision_v2", "idefics2", "idefics3", "janus", "kimi_k25", "lfm2_vl", "lighton_ocr"),
        *("minicpmv4_6", "mistral3", "mllama", "molmo2", "nemotron_h_omni", "ovis2", "paddleocr_vl", "paligemma"),
        *("perception_lm", "pp_chart2table", "qianfan_ocr", "qwen2_5_omni_thinker", "qwen3_5", "qwen3_5_moe"),
        *("qwen3_omni_moe_thinker", "qwen3_vl_moe", "smolvlm", "step3p7", "video_llama_3", "video_llava", "vipllava"),
    ),
}


INSTALL = "this is a plug-in of lmms-eval ({}): pip install 'vtc-vlm[lmms]'"


def manifests() -> list[Any]:
    """What the entry point gives to lmms-eval: a ModelManifest for every name of FAMILIES; ImportError without it."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise ImportError(INSTALL.format(error)) from error
    here = "vtc.eval.lmms.model."
    return [
        ModelManifest(name, simple_class_path=f"{here}{name}_simple", chat_class_path=f"{here}{name}")
        for name in FAMILIES
    ]
