"""Decoder: how the layers of one kind of language model attend; keyed by the text model's `config.model_type`.

What the engine reads inside a language model has to be what that model's own attention computes. The default is what
most attention modules share, with the rotation taken from the attention's own module; `text_models.py` holds what
differs. A kind that no test of this package covers is proven at `wrap` (`decoder_check.py`) before it is believed.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.models import enter_before, enter_those_that_ship

#: What a rotary embedding made for some tokens, each [B or 1, T, r]: (cos, sin), or one complex table.
Tables = tuple[Tensor, ...]
#: kinds of layers that attend to tokens one by one: to all before them, or to those within a window
SEEING = frozenset({"full_attention", "sliding_attention"})
#: kinds of layers that keep a state of one size, however many tokens they have read; kinds that keep nothing
RECURRENT, STATELESS = frozenset({"linear_attention", "conv"}), frozenset({"moe", "mlp"})
#: kinds of layers that attend to a memory beside the row (`models/cross.py`)
CROSSING = frozenset({"cross_attention"})
#: kinds of layers that do not attend to the row
APART = RECURRENT | STATELESS | CROSSING


def own_function(attention: nn.Module, name: str) -> Any:
    """A function of the module (file) that an attention's class is written in."""
    return getattr(sys.modules[type(attention).__module__], name)


class Decoder:
    """Facts about a language model; subclasses fill in what differs."""

    model_types: ClassVar[tuple[str, ...]] = ()
    #: whether layers hand on several states of each token, [n, B, S, D]
    stacked: ClassVar[bool] = False

    # -- where things are --------------------------------------------------------------------------------------

    def layers(self, lm: Any) -> Any:
        """The decoder layers, first one first."""
        return lm.layers

    def attention(self, layer: Any) -> Any:
        """The attention module of a layer."""
        return layer.self_attn

    def recurrent(self, layer: Any) -> Any:
        """The module that mixes tokens in a layer of a kind in `RECURRENT`."""
        return layer.linear_attn

    def feed_forward(self, layer: Any) -> Any:
        """The module behind a layer's attention."""
        return layer.mlp

    def normed(self, layer: Any, hidden: Tensor) -> Tensor:
        """What goes into a layer's attention, of the hidden states [B, T, D] that go into the layer."""
        return layer.input_layernorm(hidden)

    def rotary(self, lm: Any) -> Any:
        """The module that makes the tables of the rotary embedding; None in a model without one."""
        return lm.rotary_emb

    def rotaries(self, lm: Any) -> list[Any]:
        """All such modules that the language model asks, where layers are rotated differently."""
        found = self.rotary(lm)
        return [] if found is None else [found]

    def final_norm(self, lm: Any) -> Any:
        """The module that the hidden states go through behind the last layer."""
        return lm.norm

    def position_embeddings(self, rotary: Any, hidden: Tensor, positions: Tensor, layer: int) -> Any:
        """What `layer` is handed for tokens at positions [B, T] (or [3, B, T]) by the module `rotary`."""
        return rotary(hidden, position_ids=positions)

    def kinds(self, config: Any) -> list[str]:
        """Kind of each layer ("full_attention", "sliding_attention", ...), as transformers builds its cache from."""
        if getattr(config, "layer_types", None):
            return list(config.layer_types)
        kind = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        return [kind] * config.num_hidden_layers

    def attending(self, config: Any) -> tuple[int, ...]:
        """The layers (0-based) that keep rows of tokens in the KV cache.

        Example, the first layers of Qwen3.5 (l = linear attention): l l l full l l l full gives (3, 7).
        """
        found = enumerate(zip(self.kinds(config), self.holders(config), strict=True))
        return tuple(i for i, (kind, held) in found if held == i and kind not in APART)

    def windows(self, config: Any) -> list[int | None]:
        """How many tokens back each layer sees, itself included; None = all of them."""
        found = getattr(config, "sliding_window", None)
        window = found if isinstance(found, int) else None
        return [window if kind == "sliding_attention" else None for kind in self.kinds(config)]

    def holders(self, config: Any) -> list[int]:
        """Whose part of the cache each layer (0-based) reads: its own, or that of an earlier layer of its kind."""
        modes, kinds = getattr(config, "kv_sharing_modes", None), self.kinds(config)
        if not modes:
            return [*range(len(kinds))]
        stores = {kinds[i]: i for i, mode in enumerate(modes) if mode == "store"}
        return [stores[kind] if i < len(modes) and modes[i] == "reuse" else i for i, kind in enumerate(kinds)]

    def whole(self, config: Any) -> tuple[int, ...]:
        """The layers (0-based) whose part of the cache holds the whole conversation, a row per token; where all attend
        within a window, all: they do as long as it is not reached.

        Example, the first layers of Gemma 3 (s = sliding): s s s s s full s s gives (5,).
        """
        kinds, holders = self.kinds(config), self.holders(config)
        own = [i for i, kind in enumerate(kinds) if kind in SEEING and holders[i] == i]
        return tuple(i for i in own if kinds[i] == "full_attention") or tuple(own)

    def tables_of(self, config: Any, layer: int) -> Hashable:
        """Equal for layers that are handed the same tables of the rotary embedding."""
        return None

    # -- what its attention computes ---------------------------------------------------------------------------

    def queries(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        """[B, H, T, d] of normed hidden states x [B, T, D], normalised and rotated by `tables`."""
        return self.rotated(attention, self.projected(attention, "q", x), tables)

    def keys(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        """[B, G, T, d] of normed hidden states x [B, T, D], normalised and rotated; G divides H."""
        return self.rotated(attention, self.projected(attention, "k", x), tables)

    def cached_keys(self, attention: Any, cached: Any) -> Tensor:
        """[B, G, P, d], the same of what a layer of the KV cache holds."""
        return cached.keys

    def scaling(self, attention: Any) -> float:
        """What the products of queries and keys are multiplied by."""
        return attention.scaling

    def tables(self, attention: Any, given: Any) -> Tables:
        """`position_embeddings` as the attention was handed them, as tables of [B or 1, T, r]."""
        return given

    def projected(self, attention: Any, which: str, x: Tensor) -> Tensor:
        """Queries ("q") or keys ("k") [B, heads, T, d] of x [B, T, D] before the rotation."""
        flat = getattr(attention, f"{which}_proj")(x)  # [B, T, heads * d]
        norm = getattr(attention, f"{which}_norm", None)
        if norm is not None and norm.weight.shape == flat.shape[-1:]:  # OLMo 2: one norm over all heads
            flat, norm = norm(flat), None
        heads = flat.unflatten(-1, (-1, attention.head_dim))
        return (heads if norm is None else norm(heads)).transpose(1, 2)

    def rotated(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        """x [B, heads, T, d] by the function of the attention's own module; what lies behind `tables` stays."""
        cos, sin = (table.to(x.device) for table in tables)
        turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
        rotate = own_function(attention, "apply_rotary_pos_emb")
        turned, _ = rotate(turned, turned[:, :0], cos, sin)  # it wants keys, too: none
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned

    def rotated_ones(self, attention: Any, tables: Tables) -> Tensor:
        """[B or 1, 1, T, d] in fp32: a query or key of ones only, as the rotation at T places leaves it."""
        batch, places = tables[0].shape[-3], tables[0].shape[-2]
        ones = torch.ones(batch, 1, places, attention.head_dim, device=tables[0].device)
        return self.rotated(attention, ones, tables).float()

    # -- what cannot be read -----------------------------------------------------------------------------------

    def why_not(self, lm: Any) -> str | None:
        """Why methods cannot read attention and keys in this language model, in words that follow "it"; None = they
        can."""
        kinds = set(self.kinds(lm.config)) - SEEING - APART
        return f"has layers of the kind {', '.join(sorted(kinds))}, which have no such attention" if kinds else None


_DEFAULT = Decoder()
_DECODERS: dict[str, Decoder] = {}


def register_decoder(cls: type[Decoder]) -> type[Decoder]:
    """Make a kind of language model known; usable as a class decorator in a user's own file."""
    if not cls.model_types:
        raise ValueError(f"{cls.__name__} names no language model: give it model_types, as in config.model_type.")
    enter_before(cls)
    for model_type in cls.model_types:
        _DECODERS[model_type] = cls()
    return cls


def known_decoders() -> list[str]:
    """Model types (`config.model_type`) of the language models that vtc knows, those of a user's own included."""
    enter_those_that_ship()
    return sorted(_DECODERS)


def decoder_for(lm: nn.Module) -> Decoder:
    """The facts about a language model: those registered for its type, else the default ones, which may be wrong."""
    config: Any = lm.config
    enter_those_that_ship()
    return _DECODERS.get(config.model_type, _DEFAULT)
