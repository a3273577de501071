"""Cost model: FLOPs and KV-cache bytes of a decoder-only language model from its config, FLOPs of a vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderCost:
    """The sizes that decide a decoder's cost."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    bytes_per_value: int = 2

    @classmethod
    def of(cls, config: Any, bytes_per_value: int = 2) -> DecoderCost:
        """Read a text config of transformers (Llama, Qwen, Mistral and their like)."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            mlp=config.intermediate_size,
            vocab=config.vocab_size,
            bytes_per_value=bytes_per_value,
        )

    def layer_flops(self, tokens: int) -> int:
        """Multiply-adds count twice; attention counts its causal half."""
        inner, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        projections = 2 * tokens * self.hidden * (2 * inner + 2 * kv)
        attention = 2 * tokens * tokens * inner  # q @ k and p @ v, half of each
        mlp = 2 * tokens * 3 * self.hidden * self.mlp  # gate, up, down
        return projections + attention + mlp

    def head_flops(self) -> int:
        """FLOPs of one row of logits."""
        return 2 * self.hidden * self.vocab

    def prefill_flops(self, tokens: int) -> int:
        """FLOPs to read a prompt of `tokens` and emit one logit row."""
        return self.layers * self.layer_flops(tokens) + self.head_flops()

    def layer_kv_bytes(self, tokens: float) -> int:
        """Bytes of keys and values that `tokens` leave in one layer's cache; the mean over its heads, where these hold
        unequally many."""
        return round(2 * self.kv_heads * self.head_dim * tokens * self.bytes_per_value)

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of keys and values that `tokens` leave in the cache, all layers."""
        return self.layers * self.layer_kv_bytes(tokens)


@dataclass(frozen=True)
class TowerCost:
    """The sizes that decide the cost of one block of a vision tower.

    Attributes:
        attention, rest: weights that each row is multiplied with in the attention, and outside of it.
        width: of all its heads together.
    """

    attention: int
    rest: int
    width: int

    @classmethod
    def of(cls, block: Any, attention: Any, width: int) -> TowerCost:
        """Read a block's weights; vectors (norms, biases) are left out, as they are in FLOP counts."""
        every, own = (sum(p.numel() for p in part.parameters() if p.dim() > 1) for part in (block, attention))
        return cls(own, every - own, width)

    def flops(self, before: int, after: int, products: int) -> int:
        """Multiply-adds count twice.

        Args:
            before: rows in the attention. after: rows in the feed-forward part.
            products: of queries and keys in each head: `before` squared where all attend to all.
        """
        return 2 * before * self.attention + 4 * products * self.width + 2 * after * self.rest
