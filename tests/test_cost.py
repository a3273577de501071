"""The cost model, against counted matrix products and the bytes of real caches."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from tests.families import PAD, TEXT
from vtc.cost import DecoderCost


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


@pytest.mark.parametrize(("kind", "changes"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_bytes_are_those_of_the_cache(kind, changes, dtype):
    model = language_model(kind, dtype, **changes)
    cache = prefill(model, 13).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert DecoderCost.of(model.config, dtype.itemsize).kv_bytes(13) == held
