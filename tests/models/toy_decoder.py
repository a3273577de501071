"""A language model that the package does not know: a Llama whose attention rotates part of each head, interleaved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, eager_attention_forward

from vtc.models.decoder import Decoder


class ToyConfig(LlamaConfig):
    model_type = "toy_text"


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, d]: pairs of neighbours of the first half of each head."""
    half = x.shape[-1] // 2
    cos, sin = (table[:, None, :, : half // 2] for table in (cos, sin))
    one, two = x[..., 0:half:2], x[..., 1:half:2]
    pairs = torch.stack([one * cos - two * sin, two * cos + one * sin], dim=-1)
    return torch.cat([pairs.flatten(-2), x[..., half:]], dim=-1)


class ToyAttention(nn.Module):
    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.head_dim, self.heads, self.groups = config.head_dim, config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups = self.heads // self.groups
        self.to_q = nn.Linear(config.hidden_size, self.heads * self.head_dim)
        self.to_k = nn.Linear(config.hidden_size, self.groups * self.head_dim)
        self.to_v = nn.Linear(config.hidden_size, self.groups * self.head_dim)
        self.out = nn.Linear(self.heads * self.head_dim, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, position_embeddings: Any, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        q, k, v = (to(hidden_states).view(shape).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        q, k = turned(q, *position_embeddings), turned(k, *position_embeddings)
        cache = kwargs.pop("cache", None)
        cache = kwargs.pop("past_key_values", None) if cache is None else cache
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, weights = attend(self, q, k, v, attention_mask, scaling=0.25)
        return self.out(out.flatten(-2)), weights


class ToyModel(LlamaModel):
    config_class = ToyConfig
    _can_record_outputs = {"hidden_states": LlamaDecoderLayer, "attentions": ToyAttention}  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.layers):
            layer.self_attn = ToyAttention(config, number)  # type: ignore[assignment]
        self.post_init()


class ToyDecoder(Decoder):
    """The truth about it."""

    model_types = ("toy_text",)

    def projected(self, attention: Any, which: str, x: Tensor) -> Tensor:
        to = attention.to_q if which == "q" else attention.to_k
        return to(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    def rotated(self, attention: Any, x: Tensor, tables: Any) -> Tensor:
        return turned(x, *tables)

    def scaling(self, attention: Any) -> float:
        return 0.25


AutoConfig.register("toy_text", ToyConfig, exist_ok=True)
AutoModel.register(ToyConfig, ToyModel, exist_ok=True)
