"""The cost model, against counted matrix products and the bytes of real caches."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import vtc
from tests.families import PAD, TEXT
from tests.listed import LISTED
from tests.listed_sliding import gemma4
from vtc.cost import DecoderCost
from vtc.engine.versions import caches_latents


def language_model(kind, dtype=torch.float32, **changes):
    config = AutoConfig.for_model(kind, **{**TEXT, "pad_token_id": PAD, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()


def prefill(model, tokens):
    with torch.no_grad():
        return model(torch.ones(1, tokens, dtype=torch.long), use_cache=True, logits_to_keep=1)


CASES = [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 4}),
    ("qwen2", {"num_key_value_heads": 1}),
    ("qwen3", {"head_dim": 16}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_flops_are_those_counted(kind, changes, tokens):
    model = language_model(kind, **changes)
    with FlopCounterMode(display=False) as counter:
        prefill(model, tokens)
    by_module = counter.get_flop_counts()
    rotary = sum(sum(f.values()) for name, f in by_module.items() if name.endswith("rotary_emb"))
    cost = DecoderCost.of(model.config)
    # eager attention computes both halves of the square; the cost model counts the causal one
    square = cost.layers * 2 * tokens * tokens * cost.heads * cost.head_dim
    assert counter.get_total_flops() - rotary == cost.prefill_flops(tokens) + square


@pytest.mark.parametrize("family", [x for x in ("qwen3_vl_moe", "glm4v_moe", "aria", "ernie4_5_vl_moe") if x in LISTED])
def test_flops_of_experts_are_those_counted(family):
    """Of the experts that a token goes to, of the one that all share, of dense layers before, and of the router."""
    whole = LISTED[family].config()
    whole.text_config._experts_implementation = "eager"
    model = AutoModelForImageTextToText.from_config(whole, attn_implementation="eager").eval()
    lm, tokens = model.model.language_model, 33
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        lm(inputs_embeds=torch.randn(1, tokens, lm.config.hidden_size), use_cache=False)
    by_module = counter.get_flop_counts()
    rotary = sum(sum(f.values()) for name, f in by_module.items() if name.endswith("rotary_emb"))
    cost = DecoderCost.of(lm.config)
    square = cost.layers * 2 * tokens * tokens * cost.heads * cost.head_dim
    ours = cost.prefill_flops(tokens) - cost.head_flops() + square
    assert abs(counter.get_total_flops() - rotary - ours) <= cost.layers  # rounded, layer by layer


NARROW = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
#: language models that attend within windows in some layers
WINDOWED = {
    "gemma3": {},
    "gemma3n": {},
    "gemma4": {},
    "gemma4, keys read again, twice as wide": {"hidden_size_per_layer_input": 6, "num_kv_shared_layers": 2},
    "gemma4, experts": {**EXPERTS, "attention_k_eq_v": True},
    "cohere2_vision": {},
    "paligemma": {"model_type": "gemma2", "sliding_window": 14, "num_hidden_layers": 4},
}


def windowed(case):
    """The language model of a tiny one."""
    family, changes = case.partition(",")[0], WINDOWED[case]
    whole = (
        LISTED[family].config()
        if family != "gemma4"
        else gemma4(**{"use_double_wide_mlp": True, **NARROW, **changes}).config()
    )
    if changes and family == "paligemma":
        whole = AutoConfig.for_model(
            "paligemma", vision_config=whole.vision_config.to_dict(), text_config={**TEXT, "head_dim": 8, **changes}
        )
    whole.get_text_config()._experts_implementation = "eager"
    model = AutoModelForImageTextToText.from_config(whole, attn_implementation="eager").eval()
    return model.model.language_model


@pytest.mark.parametrize("case", [case for case in WINDOWED if case.partition(",")[0] in LISTED])
def test_flops_of_layers_with_a_window_are_those_counted(case):
    """Eager attention multiplies all queries with all keys, whatever their window hides; what that leaves of these
    pairs is counted in tests/engine/test_windows.py."""
    lm, tokens = windowed(case), 40
    config = lm.config
    each, more = getattr(config, "hidden_size_per_layer_input", 0), {}
    if each and "gemma4" in case:
        more["per_layer_inputs"] = torch.randn(1, tokens, config.num_hidden_layers, each)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        lm(inputs_embeds=torch.randn(1, tokens, config.hidden_size), use_cache=False, **more)
    by_module = counter.get_flop_counts()
    rotary = sum(sum(f.values()) for name, f in by_module.items() if name.endswith("rotary_emb"))
    cost = DecoderCost.of(config)
    assert {layer.window for layer in cost.each} >= {14}
    assert counter.get_total_flops() - rotary == sum(layer.flops(tokens, tokens**2) for layer in cost.each)
    within = sum(layer.flops(tokens) for layer in cost.each)
    whole = sum(layer.flops(tokens, tokens**2 / 2) for layer in cost.each)
    assert within < whole


@pytest.mark.parametrize("family", [x for x in ("granite4_vision", "step3p7", "molmo2") if x in LISTED])
def test_flops_of_layers_that_differ(family):
    """Step's layers with a window have more heads; each head has a gate, and all experts one beside them."""
    whole = LISTED[family].config()
    model = AutoModelForImageTextToText.from_config(whole, attn_implementation="eager").eval()
    lm, tokens = model.model.language_model, 33
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        lm(inputs_embeds=torch.randn(1, tokens, lm.config.hidden_size), use_cache=False)
    rotary = sum(sum(f.values()) for name, f in counter.get_flop_counts().items() if ".rotary_emb" in name)
    ours = sum(layer.flops(tokens, tokens**2) for layer in DecoderCost.of(lm.config).each)  # eager: the whole square
    assert counter.get_total_flops() - rotary == ours


def test_active_experts_of_published_models():
    """Qwen3-VL-30B-A3B: 8 of 128 experts of 768; GLM-4.5V: one dense layer, then 8 and a shared one of 1408."""
    qwen = AutoConfig.for_model("qwen3_vl_moe_text", num_hidden_layers=48, num_experts=128, num_experts_per_tok=8)
    qwen.moe_intermediate_size = 768
    assert (DecoderCost.of(qwen).mlp, DecoderCost.of(qwen).router) == (8 * 768, 128)
    glm = AutoConfig.for_model("glm4v_moe_text")
    assert DecoderCost.of(glm).mlp == pytest.approx((10944 + 45 * 9 * 1408) / 46)
    assert DecoderCost.of(glm).router == pytest.approx(45 * 128 / 46)


LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}


@pytest.mark.parametrize("rank", [None, 16], ids=["whole queries", "queries of low rank"])
@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3"])
def test_latent_attention(kind, rank):
    """DeepSeek's: FLOPs as torch counts them, bytes as the cache holds them."""
    changes: dict[str, Any] = {"q_lora_rank": rank, **LATENT}
    model, tokens = language_model(kind, **changes), 33
    model.config._experts_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        cache = prefill(model, tokens).past_key_values
    by_module = counter.get_flop_counts()
    rotary = sum(sum(f.values()) for name, f in by_module.items() if name.endswith("rotary_emb"))
    cost = DecoderCost.of(model.config, 4, caches_latents())
    square = sum(layer.pair for layer in cost.each) * tokens * tokens
    assert counter.get_total_flops() - rotary == cost.prefill_flops(tokens) + square
    assert cost.kv_bytes(tokens) == vtc.cache_bytes(cache).rows


def test_latents_of_a_published_model():
    """DeepSeek-V2 caches 512 + 64 numbers per token and layer (arXiv 2405.04434, table 1: 4.5 heads of 128)."""
    config = AutoConfig.for_model("deepseek_v2", **{**LATENT, "kv_lora_rank": 512, "qk_rope_head_dim": 64})
    assert DecoderCost.of(config).each[0].cached == 576 == 4.5 * 128


@pytest.mark.parametrize(("kind", "changes"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_bytes_are_those_of_the_cache(kind, changes, dtype):
    model = language_model(kind, dtype, **changes)
    cache = prefill(model, 13).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert DecoderCost.of(model.config, dtype.itemsize).kv_bytes(13) == held
