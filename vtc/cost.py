"""Cost model: FLOPs and KV-cache bytes of a decoder-only language model from its config, FLOPs of a vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vtc.cost_layers import LayerCost, feed_forward, layer_config, layer_costs


@dataclass(frozen=True)
class DecoderCost:
    """The sizes that decide a decoder's cost.

    Attributes:
        mlp: inner width of the feed-forward part that a token goes through, experts that it is not sent to left out,
            averaged over layers. router: how many experts a token is scored for, likewise.
        each: what each layer costs; they may be of different kinds.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: float
    vocab: int
    each: tuple[LayerCost, ...]
    bytes_per_value: int = 2
    router: float = 0

    @classmethod
    def of(cls, config: Any, bytes_per_value: int = 2, latents: bool = True) -> DecoderCost:
        """Read a text config of transformers (Llama, Qwen, Mistral, DeepSeek, LFM2 and their like).

        Args:
            latents: whether multi-head latent attention caches its latents, as transformers does since 5.24.
        """
        parts, one = feed_forward(config), layer_config(config, 0)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=one.num_attention_heads,
            kv_heads=getattr(one, "num_key_value_heads", None) or one.num_attention_heads,
            head_dim=getattr(one, "head_dim", None) or config.hidden_size // one.num_attention_heads,
            mlp=sum(width for width, _ in parts) / len(parts),
            router=sum(scored for _, scored in parts) / len(parts),
            vocab=config.vocab_size,
            each=tuple(layer_costs(config, latents)),
            bytes_per_value=bytes_per_value,
        )

    def layer_flops(self, layer: int, tokens: int, pairs: float | None = None, memory: int = 0) -> int:
        """Of one layer; multiply-adds count twice, attention counts its causal half, within the layer's window.

        Args:
            pairs: how many pairs of a query and a key there are, as `LayerCost.pairs` counts; None = of that many
                tokens in a row.
            memory: tokens that stand beside the row, for layers that attend to those (Llama 3.2 Vision).
        """
        return self.each[layer].flops(tokens, pairs, memory)

    def head_flops(self) -> int:
        """FLOPs of one row of logits."""
        return 2 * self.hidden * self.vocab

    def prefill_flops(self, tokens: int, memory: int = 0) -> int:
        """FLOPs to read a prompt of `tokens`, and a `memory` beside it, and emit one logit row."""
        return sum(layer.flops(tokens, memory=memory) for layer in self.each) + self.head_flops()

    def layer_kv_bytes(self, layer: int, tokens: float, memory: float = 0) -> int:
        """Bytes that `tokens` of one sequence leave in one layer's cache: keys and values, the mean over its heads
        where these hold unequally many; or the states of a recurrent layer, whatever the number; or those of a `memory`
        beside it."""
        return self.each[layer].kv_bytes(tokens, self.bytes_per_value, memory)

    def kv_bytes(self, tokens: int, memory: int = 0) -> int:
        """Bytes that `tokens` of one sequence, and a `memory` beside it, leave in the cache, all layers."""
        return sum(layer.kv_bytes(tokens, self.bytes_per_value, memory) for layer in self.each)


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
