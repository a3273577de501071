"""What differs between versions of transformers, asked by feature: nothing here compares version numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor


def cache_of(holder: Mapping[str, Any]) -> Any:
    """The KV cache among keyword arguments or in a model's output: `cache` since 5.24, `past_key_values` before."""
    found = holder.get("cache")
    return found if found is not None else holder.get("past_key_values")


def length_of(cache: Any) -> int:
    """Tokens that a KV cache stands for; 0 for those that hold many conversations and tell no length (paged ones)."""
    return 0 if cache is None or not hasattr(cache, "get_seq_length") else cache.get_seq_length()


@cache
def _cache_argument() -> str:
    """What `create_causal_mask` calls the KV cache: `cache` since 5.24, `past_key_values` before."""
    from transformers.masking_utils import create_causal_mask

    return "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


def causal_mask(config: Any, hidden: Tensor, visible: Tensor | None, cache: Any) -> Any:
    """The mask that a decoder layer takes, whatever its attention is.

    Args:
        hidden: [B, S, D], what goes into the layer. visible: BoolTensor [B, P + S], False for padding; None = all.
        cache: the transformers Cache whose first layer is this layer's, None without one.
    """
    from transformers.masking_utils import create_causal_mask

    return create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=visible, **{_cache_argument(): cache})
