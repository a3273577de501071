"""The language models whose facts tests hold against their own eager attention, and what each has of its own.

Whatever is registered here is believed at `wrap`; a type may only stand here if tests/models/test_decoders.py has it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from vtc.models.decoder import Decoder, Tables, own_function, register_decoder


@register_decoder
class UsualDecoder(Decoder):
    """Nothing of its own: separate projections, norms over one head or all of them, its module's own rotation."""

    model_types = (
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "qwen3_vl_text",
        "gemma",
        "cohere",
        "glm",
        "glm4",
        "granite",
        "helium",
        "ernie4_5",
    )


@register_decoder
class Olmo2Decoder(Decoder):
    model_types = ("olmo2",)

    def normed(self, layer: Any, hidden: Tensor) -> Tensor:
        return hidden  # it normalises what comes out


@register_decoder
class Exaone4Decoder(Decoder):
    """Norms behind attention and feed-forward part; where some layers have a window, the others do not rotate."""

    model_types = ("exaone4",)

    def normed(self, layer: Any, hidden: Tensor) -> Tensor:
        return hidden

    def rotated(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        turns = attention.sliding_window is None or attention.is_sliding
        return super().rotated(attention, x, tables) if turns else x


@register_decoder
class Gemma2Decoder(Decoder):
    model_types = ("gemma2",)

    def why_not(self, lm: Any) -> str | None:
        capped = lm.config.attn_logit_softcapping is not None
        return super().why_not(lm) or ("caps the logits of its attention" if capped else None)


@register_decoder
class Gemma3Decoder(Decoder):
    model_types = ("gemma3_text",)

    def tables_of(self, config: Any, layer: int) -> Hashable:
        return config.layer_types[layer]

    def position_embeddings(self, rotary: Any, hidden: Tensor, positions: Tensor, layer: int) -> Any:
        return rotary(hidden, position_ids=positions, layer_type=rotary.config.layer_types[layer])


class SharingDecoder(Gemma3Decoder):
    """A rotation that takes one tensor; the last layers have no keys of their own."""

    def rotated(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        cos, sin = (table.to(x.device) for table in tables)
        return own_function(attention, "apply_rotary_pos_emb")(x, cos, sin)


@register_decoder
class Gemma4Decoder(SharingDecoder):
    model_types = ("gemma4_text",)


@register_decoder
class Gemma3nDecoder(SharingDecoder):
    """Each layer hands on several states of a token (AltUp), of which it attends with one."""

    model_types = ("gemma3n_text",)
    stacked = True

    def normed(self, layer: Any, hidden: Tensor) -> Tensor:
        return layer.input_layernorm(layer.altup.predict(hidden)[layer.config.altup_active_idx])


@register_decoder
class Cohere2Decoder(Decoder):
    model_types = ("cohere2",)

    def rotated(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        return x if attention.sliding_window is None else super().rotated(attention, x, tables)


@register_decoder
class SmolLM3Decoder(Decoder):
    model_types = ("smollm3",)

    def rotated(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        return super().rotated(attention, x, tables) if attention.use_rope else x


@register_decoder
class StableLmDecoder(Decoder):
    model_types = ("stablelm",)

    def projected(self, attention: Any, which: str, x: Tensor) -> Tensor:
        heads = super().projected(attention, which, x)
        return getattr(attention, f"{which}_layernorm")(heads) if attention.qk_layernorm else heads


@register_decoder
class Phi3Decoder(Decoder):
    """Queries, keys and values of one projection."""

    model_types = ("phi3",)

    def projected(self, attention: Any, which: str, x: Tensor) -> Tensor:
        heads = attention.qkv_proj(x).unflatten(-1, (-1, attention.head_dim))  # [B, T, H + 2 G, d]
        before = attention.config.num_attention_heads
        start, count = (0, before) if which == "q" else (before, attention.num_key_value_heads)
        return heads.narrow(2, start, count).transpose(1, 2)


@register_decoder
class Qwen35Decoder(Decoder):
    """Linear attention in most layers; the others' projection makes each head's query, then its gate."""

    model_types = ("qwen3_5_text", "qwen3_5_moe_text")

    def projected(self, attention: Any, which: str, x: Tensor) -> Tensor:
        if which == "k":
            return super().projected(attention, which, x)
        heads = attention.q_proj(x).unflatten(-1, (-1, 2, attention.head_dim))[..., 0, :]  # [B, T, H, d]
        return attention.q_norm(heads).transpose(1, 2)


@register_decoder
class Lfm2Decoder(Decoder):
    """Short convolutions in most layers; names of its own for nearly everything."""

    model_types = ("lfm2",)

    def normed(self, layer: Any, hidden: Tensor) -> Tensor:
        return layer.operator_norm(hidden)

    def feed_forward(self, layer: Any) -> Any:
        return layer.feed_forward

    def recurrent(self, layer: Any) -> Any:
        return layer.conv

    def final_norm(self, lm: Any) -> Any:
        return lm.embedding_norm

    def projected(self, attention: Any, which: str, x: Tensor) -> Tensor:
        heads = getattr(attention, f"{which}_proj")(x).unflatten(-1, (-1, attention.head_dim))
        return getattr(attention, f"{which}_layernorm")(heads).transpose(1, 2)


@register_decoder
class NemotronHDecoder(Decoder):
    """Every layer is attention, a state space, experts or a feed-forward part; keys and queries are not rotated."""

    model_types = ("nemotron_h",)

    def attention(self, layer: Any) -> Any:
        return layer.mixer

    def recurrent(self, layer: Any) -> Any:
        return layer.mixer

    def feed_forward(self, layer: Any) -> Any:
        return layer.mixer

    def normed(self, layer: Any, hidden: Tensor) -> Tensor:
        return layer.norm(hidden.to(layer.norm.weight.dtype))

    def rotary(self, lm: Any) -> None:
        return None

    def final_norm(self, lm: Any) -> Any:
        return lm.norm_f

    def tables(self, attention: Any, given: Any) -> Tables:
        return ()

    def rotated(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        return x


@register_decoder
class QwenVLDecoder(Decoder):
    """Before transformers 5.18 these are handed a table per axis (t, h, w), [3, B, T, d]; now the merged one."""

    model_types = ("qwen2_vl_text", "qwen2_5_vl_text")

    def tables(self, attention: Any, given: Any) -> Tables:
        if given[0].dim() == 3:
            return given
        sections = list(attention.config.rope_parameters["mrope_section"]) * 2
        return tuple(
            torch.cat([part[i % 3] for i, part in enumerate(table.split(sections, dim=-1))], dim=-1) for table in given
        )

    def rotated(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        try:
            rotate = own_function(attention, "apply_multimodal_rotary_pos_emb")
        except AttributeError:
            return super().rotated(attention, x, tables)
        cos, sin = (table.to(x.device).expand(3, -1, -1, -1) for table in tables)  # merged: alike on every axis
        return rotate(x, x[:, :0], cos, sin, attention.config.rope_parameters["mrope_section"])[0]


class LatentDecoder(Decoder):
    """Multi-head latent attention: keys are projected up from a latent, and one rotated part is shared by all heads.

    transformers caches the latent and the rotated part since 5.24, whole keys before.
    """

    def queries(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        if attention.q_lora_rank is None:
            flat = attention.q_proj(x)
        else:
            flat = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(x)))
        heads = flat.unflatten(-1, (-1, attention.qk_head_dim)).transpose(1, 2)
        plain, turned = heads.split([attention.qk_nope_head_dim, attention.qk_rope_head_dim], dim=-1)
        return torch.cat([plain, self.rotated(attention, turned, tables)], dim=-1)

    def keys(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        latent, turned = attention.kv_a_proj_with_mqa(x).split(
            [attention.kv_lora_rank, attention.qk_rope_head_dim], dim=-1
        )
        turned = self.rotated(attention, turned[:, None], tables)
        return self._whole(attention, attention.kv_a_layernorm(latent), turned)

    def cached_keys(self, attention: Any, cached: Any) -> Tensor:
        if cached.keys.shape[1] > 1:
            return cached.keys
        return self._whole(attention, cached.keys[:, 0], cached.values)

    def rotated_ones(self, attention: Any, tables: Tables) -> Tensor:
        batch, places = tables[0].shape[-3], tables[0].shape[-2]
        plain = torch.ones(batch, 1, places, attention.qk_nope_head_dim, device=tables[0].device)
        turned = torch.ones(batch, 1, places, attention.qk_rope_head_dim, device=tables[0].device)
        return torch.cat([plain, self.rotated(attention, turned, tables).float()], dim=-1)

    def _whole(self, attention: Any, latent: Tensor, turned: Tensor) -> Tensor:
        """Keys [B, H, T, d] of latents [B, T, rank] and rotated parts [B, 1, T, r]."""
        heads = attention.kv_b_proj(latent).unflatten(-1, (-1, attention.qk_nope_head_dim + attention.v_head_dim))
        plain = heads[..., : attention.qk_nope_head_dim].transpose(1, 2)
        return torch.cat([plain, turned.expand(-1, plain.shape[1], -1, -1)], dim=-1)


@register_decoder
class DeepseekV2Decoder(LatentDecoder):
    model_types = ("deepseek_v2",)

    def tables(self, attention: Any, given: Any) -> Tables:
        return given if isinstance(given, tuple) else (given,)  # one complex table

    def rotated(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        return own_function(attention, "apply_rotary_emb")(x, x[:, :1], tables[0].to(x.device))[0]


@register_decoder
class DeepseekV3Decoder(LatentDecoder):
    model_types = ("deepseek_v3",)

    def rotated(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        name = "apply_rotary_pos_emb_interleave" if attention.config.rope_interleave else "apply_rotary_pos_emb"
        return own_function(attention, name)(x, x[:, :0], *(table.to(x.device) for table in tables))[0]
