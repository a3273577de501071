"""Cost model: FLOPs and KV-cache bytes of a decoder-only language model from its config, FLOPs of a vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderCost:
    """The sizes that decide a decoder's cost.

    Attributes:
        mlp: inner width of the feed-forward part that a token goes through, experts that it is not sent to left out,
            averaged over layers. router: how many experts a token is scored for, likewise.
        windows: how many tokens back each layer sees, itself included; None = all. () = all do.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: float
    vocab: int
    bytes_per_value: int = 2
    router: float = 0
    windows: tuple[int | None, ...] = ()

    @classmethod
    def of(cls, config: Any, bytes_per_value: int = 2) -> DecoderCost:
        """Read a text config of transformers (Llama, Qwen, Mistral and their like)."""
        parts = _feed_forward(config)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            mlp=sum(width for width, _ in parts) / len(parts),
            router=sum(scored for _, scored in parts) / len(parts),
            vocab=config.vocab_size,
            bytes_per_value=bytes_per_value,
            windows=_windows(config),
        )

    def pairs(self, tokens: int, layer: int) -> float:
        """Pairs of a query and a key of `tokens` in a row: half of the square, without what lies beyond a window."""
        window = self.windows[layer] if self.windows else None
        beyond = 0 if window is None else max(0, tokens - window)
        return (tokens * tokens - beyond * beyond) / 2

    def held(self, tokens: int, layer: int) -> int:
        """How many of `tokens` in a row a layer's cache holds for the next one."""
        window = self.windows[layer] if self.windows else None
        return tokens if window is None else min(tokens, window - 1)

    def layer_flops(self, tokens: int, pairs: float | None = None) -> int:
        """Multiply-adds count twice; attention counts its causal half, or so many pairs of a query and a key."""
        inner, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        projections = 2 * tokens * self.hidden * (2 * inner + 2 * kv)
        attention = round(4 * (tokens * tokens / 2 if pairs is None else pairs) * inner)  # q @ k and p @ v
        mlp = 2 * tokens * self.hidden * (3 * self.mlp + self.router)  # gate, up, down
        return projections + attention + round(mlp)

    def head_flops(self) -> int:
        """FLOPs of one row of logits."""
        return 2 * self.hidden * self.vocab

    def prefill_flops(self, tokens: int) -> int:
        """FLOPs to read a prompt of `tokens` and emit one logit row."""
        layers = (self.layer_flops(tokens, self.pairs(tokens, i)) for i in range(self.layers))
        return sum(layers) + self.head_flops()

    def layer_kv_bytes(self, tokens: float) -> int:
        """Bytes of keys and values that `tokens` leave in one layer's cache; the mean over its heads, where these hold
        unequally many."""
        return round(2 * self.kv_heads * self.head_dim * tokens * self.bytes_per_value)

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of keys and values that `tokens` leave in the cache, all layers."""
        return sum(self.layer_kv_bytes(self.held(tokens, i)) for i in range(self.layers))


def _first(config: Any, *names: str) -> Any:
    """The first of some fields that a configuration has, by the names that model families have for it; None."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _windows(config: Any) -> tuple[int | None, ...]:
    """How many tokens back each layer sees; None = all."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not isinstance(window, int):
        return ()
    kinds = kinds or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _feed_forward(config: Any) -> list[tuple[int, int]]:
    """Per layer: inner width that a token goes through, and how many experts it is scored for.

    Example, GLM-4.5V's 46 layers: the first is dense (10944, 0); in the others a token goes through 8 experts of 1408
    and one that all share, (9 * 1408, 128).
    """
    layers, dense = config.num_hidden_layers, (config.intermediate_size, 0)
    experts = _first(config, "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
    if not experts:
        return [dense] * layers
    chosen = _first(config, "num_experts_per_tok", "moe_k", "moe_topk")
    width = _first(config, "moe_intermediate_size", "intermediate_size")
    width = width[0] if isinstance(width, list | tuple) else width  # ERNIE's experts of words, then those of pictures
    common = width * (_first(config, "n_shared_experts", "moe_num_shared_experts") or 0)
    common = _first(config, "shared_expert_intermediate_size") or common
    sparse = (chosen * width + common, experts)
    return [dense if _is_dense(config, i) else sparse for i in range(layers)]


def _is_dense(config: Any, layer: int) -> bool:
    """Whether a layer of a model of experts has none."""
    kinds = getattr(config, "mlp_layer_types", None)
    if kinds:
        return kinds[layer] == "dense"
    step = getattr(config, "decoder_sparse_step", None) or 1
    first = getattr(config, "first_k_dense_replace", None) or 0
    return layer < first or layer in (getattr(config, "mlp_only_layers", None) or ()) or (layer + 1) % step != 0


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
