"""What one decoder layer costs, read from a language model's config: attention, latent attention, linear attention,
convolutions, state spaces, a memory beside the row; dense feed-forward parts and experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

#: tokens that a gated delta network works on together, in transformers and in flash-linear-attention
CHUNK = 64


@dataclass(frozen=True)
class LayerCost:
    """One layer.

    Attributes:
        weights: multiply-adds of a token with weights: projections, convolution, feed-forward part, router.
        pair: multiply-adds of a query and a key that it sees, in products with keys and with values, all heads
            together.
        scan: multiply-adds of a token with a recurrent state, and with its neighbours in a chunk.
        cached: numbers that a token leaves in the cache.
        beside: of a layer that attends to a memory beside the row, multiply-adds of one of its tokens with weights; 0 =
            it attends to the row. `cached` is then what each of these leaves, and `pair` is of a token and one of them.
        window: how many tokens back it sees, itself included; None = all.
        state: numbers that are kept whatever the length; state32: those of them that are kept in fp32.
    """

    weights: int
    pair: int = 0
    scan: int = 0
    cached: int = 0
    state: int = 0
    state32: int = 0
    beside: int = 0
    window: int | None = None

    def pairs(self, tokens: int) -> float:
        """Pairs of a query and a key of `tokens` in a row: half of the square, without what lies beyond the window."""
        beyond = 0 if self.window is None else max(0, tokens - self.window)
        return (tokens * tokens - beyond * beyond) / 2

    def flops(self, tokens: int, pairs: float | None = None, memory: int = 0) -> int:
        """Of so many tokens, and, where some between them are gone, so many pairs: multiply-adds count twice.

        Args:
            memory: tokens that stand beside the row; without any, a layer that attends to them is left out.
        """
        if self.beside:
            return 2 * (tokens * (self.weights + memory * self.pair) + memory * self.beside) if memory else 0
        pairs = self.pairs(tokens) if pairs is None else pairs
        return 2 * tokens * (self.weights + self.scan) + round(2 * pairs * self.pair)

    def kv_bytes(self, tokens: float, bytes_per_value: int, memory: float = 0) -> int:
        """Bytes that so many tokens of one sequence leave in the layer's cache, or those of a memory beside it."""
        tokens = memory if self.beside else tokens
        tokens = tokens if self.window is None else min(tokens, self.window - 1)
        return round(self.cached * tokens * bytes_per_value) + self.state * bytes_per_value + 4 * self.state32


def layer_costs(config: Any, latents: bool) -> list[LayerCost]:
    """Of each layer; see `DecoderCost.of`."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    if {"moe", "mlp"} & {*kinds}:
        return [_nemotron(config, kind) for kind in kinds]
    parts, hidden = feed_forward(config), config.hidden_size
    gate = hidden if _first(config, "shared_expert_intermediate_size") else 0  # of the expert that all share
    made = {"linear_attention": _delta_network, "conv": _convolution}
    windows, reused = _windows(config), _reused(config)
    crossing, found = {*(getattr(config, "cross_attention_layers", None) or ())}, []
    for i, (kind, (width, experts)) in enumerate(zip(kinds, parts, strict=True)):
        own = layer_config(config, i)
        mixer = made[kind](config) if kind in made else _attention(own, latents, kind, i in reused)
        mixer = _across(config) if i in crossing else mixer
        around = hidden * (3 * width + experts) + (gate if experts else 0)  # gate, up, down; router
        around += _beside(config, i)
        found.append(replace(mixer, weights=mixer.weights + around, window=windows[i]))
    return found


def layer_config(config: Any, layer: int) -> Any:
    """What holds for one layer, where they differ: Gemma 4's heads."""
    return config.per_layer_config[layer] if getattr(config, "is_heterogeneous", False) else config


def _windows(config: Any) -> list[int | None]:
    """How many tokens back each layer sees, itself included; None = all."""
    found, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    kinds = kinds or ["sliding_attention"] * config.num_hidden_layers
    return [found if isinstance(found, int) and kind == "sliding_attention" else None for kind in kinds]


def _reused(config: Any) -> set[int]:
    """Layers that have no keys and values of their own, but read those of an earlier one (Gemma 3n and 4)."""
    return {i for i, mode in enumerate(getattr(config, "kv_sharing_modes", None) or ()) if mode == "reuse"}


def _beside(config: Any, layer: int) -> int:
    """Multiply-adds of a token with weights beside its attention and its feed-forward part: what Gemma 3n and 4 make of
    an embedding per layer, and the bypass of low rank and the states side by side that the former has."""
    hidden, each, rank = (
        config.hidden_size,
        _first(config, "hidden_size_per_layer_input"),
        _first(config, "laurel_rank"),
    )
    known = hidden * (3 * (each or 0) + 2 * (rank or 0))  # of the embedding: its projection, gate, way back
    return known + _alternating(config, layer)


def _alternating(config: Any, layer: int) -> int:
    """n states of each token, of which a layer works on one (AltUp, arXiv 2301.13310; sizes are its weights').

    The others are predicted before and corrected behind it, by n scores of the token each time, which make n x n
    numbers and then n; and they are made of the first one before all layers, and made one with it behind them.
    """
    n, hidden = _first(config, "altup_num_inputs") or 1, config.hidden_size
    if n == 1:
        return 0
    ends = (layer == 0) + (layer == config.num_hidden_layers - 1)
    return 2 * hidden * n + n**3 + n**2 + hidden * n**2 + ends * (n - 1) * hidden**2


def _attention(config: Any, latents: bool, kind: str = "full_attention", reused: bool = False) -> LayerCost:
    hidden, heads = config.hidden_size, config.num_attention_heads
    rank = _first(config, "kv_lora_rank")
    if rank:
        return _latent_attention(config, rank, latents)
    groups = _first(config, "num_key_value_heads") or heads
    width = _first(config, "head_dim") or hidden // heads
    inner, kv = heads * width, groups * width
    gate = inner if _first(config, "linear_num_value_heads") else 0  # Qwen3-Next and later: of the output
    gate = heads if getattr(config, "gating", False) is True else gate  # Step 3.5: of each head
    if reused:
        return LayerCost(2 * hidden * inner, pair=2 * inner)
    alike = kind == "full_attention" and getattr(config, "attention_k_eq_v", False)  # Gemma 4: one makes both
    return LayerCost(hidden * (2 * inner + (2 - alike) * kv + gate), pair=2 * inner, cached=2 * kv)


def _across(config: Any) -> LayerCost:
    """Attention to a memory beside the row, which keys and values are made of (Llama 3.2 Vision)."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    kv = hidden // heads * config.num_key_value_heads
    return LayerCost(2 * hidden * hidden, pair=2 * hidden, cached=2 * kv, beside=2 * hidden * kv)


def _latent_attention(config: Any, rank: int, latents: bool) -> LayerCost:
    """Keys and values are projected up from a latent of `rank`, and one rotated part is shared by all heads
    (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
    hidden, heads, turned = config.hidden_size, config.num_attention_heads, config.qk_rope_head_dim
    query, value = config.qk_nope_head_dim + turned, config.v_head_dim
    down = _first(config, "q_lora_rank")
    asked = hidden * heads * query if down is None else down * (hidden + heads * query)
    held = hidden * (rank + turned) + rank * heads * (config.qk_nope_head_dim + value)
    cached = rank + turned if latents else heads * (query + value)
    return LayerCost(asked + held + heads * value * hidden, pair=heads * (query + value), cached=cached)


def _delta_network(config: Any) -> LayerCost:
    """A gated delta network (arXiv 2412.06464, section 3.3), in chunks of C tokens.

    Of each token and head, d_k and d_v wide: products with C keys for the system of updates and for its queries, the
    triangular system solved for keys and values, a product of attention within the chunk and values, and three with
    the state of d_k times d_v: C (2 d_k + d_v) + C / 2 (d_k + d_v) + 3 d_k d_v.
    """
    hidden, heads = config.hidden_size, config.linear_num_value_heads
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    keys, values, kernel = config.linear_num_key_heads * key, heads * value, config.linear_conv_kernel_dim
    mixed = 2 * keys + values
    weights = hidden * (mixed + values + 2 * heads) + mixed * kernel + values * hidden
    scan = heads * (CHUNK * (2 * key + value) + CHUNK // 2 * (key + value) + 3 * key * value)
    return LayerCost(weights, scan=scan, state=mixed * kernel, state32=heads * key * value)


def _convolution(config: Any) -> LayerCost:
    """A gated short convolution (LFM2)."""
    hidden, kernel = config.hidden_size, config.conv_L_cache
    return LayerCost(hidden * (4 * hidden + kernel), state=hidden * kernel)


def _nemotron(config: Any, kind: str) -> LayerCost:
    """Layers that are attention, a state space (Mamba-2), experts or a feed-forward part, each on its own."""
    hidden = config.hidden_size
    if kind == "full_attention":
        return _attention(config, latents=False)
    if kind == "mlp":
        return LayerCost(2 * hidden * config.intermediate_size)
    if kind == "moe":
        latent = _first(config, "moe_latent_size")
        inside = latent or hidden
        chosen = 2 * inside * config.moe_intermediate_size * config.num_experts_per_tok
        shared = 2 * hidden * config.moe_shared_expert_intermediate_size
        around = 2 * hidden * latent if latent else 0
        return LayerCost(chosen + shared + around + hidden * config.n_routed_experts)
    return _state_space(config)


def _state_space(config: Any) -> LayerCost:
    """Mamba-2 (arXiv 2405.21060, section 6), in chunks of C tokens.

    Of each token and head, p wide with a state of n: products with C neighbours (n + p), of which half are seen, and
    two with the state (n p).
    """
    hidden, heads, width = config.hidden_size, config.mamba_num_heads, config.mamba_head_dim
    inner, groups, state = heads * width, config.n_groups * config.ssm_state_size, config.ssm_state_size
    mixed, kernel = inner + 2 * groups, config.conv_kernel
    weights = hidden * (inner + mixed + heads) + mixed * kernel + inner * hidden
    scan = heads * (config.chunk_size // 2 * (state + width) + 2 * state * width)
    return LayerCost(weights, scan=scan, state=mixed * kernel, state32=heads * state * width)


def _first(config: Any, *names: str) -> Any:
    """The first of some fields that a configuration has, by the names that model families have for it; None."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def feed_forward(config: Any) -> list[tuple[int, int]]:
    """Per layer: inner width that a token goes through, and how many experts it is scored for.

    Example, GLM-4.5V's 46 layers: the first is dense (10944, 0); in the others a token goes through 8 experts of 1408
    and one that all share, (9 * 1408, 128).
    """
    layers, width = config.num_hidden_layers, _dense_width(config)
    if isinstance(width, list | tuple):  # Gemma 3n: of each layer
        return [(each, 0) for each in width]
    if hasattr(config, "use_double_wide_mlp"):
        return _beside_experts(config)
    dense = (width, 0)
    experts = _first(config, "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
    if not experts:
        return [dense] * layers
    chosen = _first(config, "num_experts_per_tok", "moe_k", "moe_topk")
    width = _first(config, "moe_intermediate_size", "intermediate_size")
    width = width[0] if isinstance(width, list | tuple) else width  # ERNIE's experts of words, then those of pictures
    common = width * (_first(config, "n_shared_experts", "moe_num_shared_experts") or 0)
    common = _first(config, "shared_expert_intermediate_size", "share_expert_dim") or common
    sparse = (chosen * width + common, experts)
    return [dense if _is_dense(config, i) else sparse for i in range(layers)]


def _beside_experts(config: Any) -> list[tuple[int, int]]:
    """Gemma 4: a dense part in each layer, twice as wide in those that read keys of another where the configuration
    says so, and in larger models experts beside it."""
    wide = _reused(config) if config.use_double_wide_mlp else set()
    experts = config.num_experts if getattr(config, "enable_moe_block", False) else 0
    chosen = config.top_k_experts * config.moe_intermediate_size if experts else 0
    return [(config.intermediate_size * (1 + (i in wide)) + chosen, experts) for i in range(config.num_hidden_layers)]


def _dense_width(config: Any) -> Any:
    """Inner width of a dense feed-forward part; LFM2 makes less of the number in its configuration."""
    width = _first(config, "intermediate_size") or 0
    if not getattr(config, "block_auto_adjust_ff_dim", False):
        return width
    width, unit = int(2 * width / 3), config.block_multiple_of
    if config.block_ffn_dim_multiplier is None:
        return width
    return -(-int(config.block_ffn_dim_multiplier * width) // unit) * unit


def _is_dense(config: Any, layer: int) -> bool:
    """Whether a layer of a model of experts has none."""
    kinds = getattr(config, "mlp_layer_types", None)
    if kinds:
        return kinds[layer] == "dense"
    step = getattr(config, "decoder_sparse_step", None) or 1
    first = getattr(config, "first_k_dense_replace", None) or 0
    return layer < first or layer in (getattr(config, "mlp_only_layers", None) or ()) or (layer + 1) % step != 0
