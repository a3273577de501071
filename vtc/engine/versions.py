"""What differs between versions of transformers, asked by feature, and which versions vtc is tested with.

Only `check_versions` compares numbers, to say what is outside the tested range; how to call transformers is asked of
its signatures, so that a version between two releases is served right, too.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Range(NamedTuple):
    """Versions of one package: `first` to `last` are tested, what is older than `breaks_below` is known to break vtc.

    `last` stands for its patch releases, too: "5.24" includes 5.24.1.
    """

    first: str
    last: str
    breaks_below: str | None = None


#: `make test-versions` runs the first ones together and the last ones together (constraints-oldest.txt and
#: constraints.txt), and pyproject.toml promises the first ones.
TESTED: dict[str, Range] = {
    "torch": Range("2.11", "2.15"),
    "transformers": Range("5.20.2", "5.24", breaks_below="5.6"),  # before, CLIP's tower had other parts
}


def check_versions() -> None:
    """Warn, once per process, where torch or transformers are outside the range that vtc is tested with.

    Raises:
        RuntimeError: with one of them vtc is known to break.
    """
    import transformers

    _check(torch.__version__, transformers.__version__)


@cache  # a warning once per process, however often a model is wrapped; a refusal is raised each time
def _check(torch_version: str, transformers_version: str) -> None:
    outside = []
    for name, version in (("torch", torch_version), ("transformers", transformers_version)):
        tested, numbers = TESTED[name], _numbers(version)
        if tested.breaks_below is not None and numbers < _numbers(tested.breaks_below):
            raise RuntimeError(
                f"vtc does not work with {name} {version}, which is older than {tested.breaks_below}; "
                f'upgrade it: pip install "{name}>={tested.first}".'
            )
        last = _numbers(tested.last)
        if numbers < _numbers(tested.first) or numbers[: len(last)] > last:
            outside.append(f"{name} {tested.first} to {tested.last}, and {version} is installed")
    if outside:
        warnings.warn(f"vtc is tested with {'; with '.join(outside)}: outcomes may differ.", UserWarning, stacklevel=4)


def _numbers(version: str) -> tuple[int, ...]:
    """ "2.11.0a0+cu130" -> (2, 11, 0): builds of what is to become a version count as that version."""
    from packaging.version import Version

    return Version(version).release


def cache_of(holder: Mapping[str, Any]) -> Any:
    """The KV cache among keyword arguments or in a model's output: `cache` since 5.24, `past_key_values` before."""
    found = holder.get("cache")
    if found is not None or "past_key_values" not in list(holder):  # an output of 5.24 would warn of being asked itself
        return found
    return holder["past_key_values"]


def length_of(cache: Any) -> int:
    """Tokens that a KV cache stands for; 0 for those that hold many conversations and tell no length (paged ones)."""
    return 0 if cache is None or not hasattr(cache, "get_seq_length") else cache.get_seq_length()


@cache
def caches_latents() -> bool:
    """Whether multi-head latent attention caches its latents: since 5.24; whole keys and values before."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    return hasattr(DeepseekV3Attention, "expand_kv")


@cache
def cache_name() -> str:
    """What models, and `create_causal_mask`, call the KV cache: `cache` since 5.24, `past_key_values` before."""
    from transformers.masking_utils import create_causal_mask

    return "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


def causal_mask(config: Any, hidden: Tensor, visible: Tensor | None, cache: Any) -> Any:
    """The mask that a decoder layer takes, whatever its attention is.

    Args:
        hidden: [B, S, D], what goes into the layer. visible: BoolTensor [B, P + S], False for padding; None = all.
        cache: the transformers Cache whose first layer is this layer's, None without one.
    """
    from transformers.masking_utils import create_causal_mask

    return create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=visible, **{cache_name(): cache})
