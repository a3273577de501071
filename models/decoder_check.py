"""Proof, at `wrap`, that what is known of a language model is what its attention computes.

A decoder layer of the same class is made anew from the model's configuration, small parts and attention with random
weights in fp32 on the CPU, the feed-forward part without any. It runs on random hidden states as far as its eager
attention, whose weights are compared with those of our queries and keys. The model itself is not touched.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vtc.cost_layers import layer_config
from vtc.models import text_models
from vtc.models.decoder import Decoder

TOKENS, TOLERANCE = 12, 1e-4
_PROVEN: WeakKeyDictionary[nn.Module, Decoder] = WeakKeyDictionary()


class _Reached(Exception):
    """The attention has run; what follows is of no interest."""


def check_decoder(decoder: Decoder, lm: nn.Module) -> None:
    """Raise ValueError, in one sentence without its end, if `decoder` is not known to be right about `lm`.

    What `text_models.py` says is believed, as tests prove it; anything else is proven here, once per model.
    """
    if reason := decoder.why_not(lm):
        raise ValueError(f"it {reason}")
    if type(decoder).__module__ == text_models.__name__ or _PROVEN.get(lm) is decoder:
        return
    try:
        for number, layer in _of_each_kind(decoder, lm):
            _compare(decoder, lm, number, layer)
    except Exception as error:
        found = str(error) if isinstance(error, _Differs) else f"does not fit it: {type(error).__name__}: {error}"
        raise ValueError(f"what is known of such models ({type(decoder).__name__}) {found}") from error
    _PROVEN[lm] = decoder


def check_places(decoder: Decoder, lm: nn.Module) -> None:
    """Raise ValueError, in one sentence without its end, if a layer has no attention or feed-forward part there."""
    attending = decoder.attending(lm.config)
    for number, layer in enumerate(decoder.layers(lm)):
        for name, find in (("attention", decoder.attention), ("feed-forward part", decoder.feed_forward)):
            if name == "attention" and number not in attending:
                continue
            try:
                find(layer)
            except AttributeError as error:
                raise ValueError(f"no {name} is where others have it: {error}") from error


def check_final_norm(decoder: Decoder, lm: nn.Module) -> None:
    """Raise ValueError, in one sentence without its end, if there is no norm behind the last layer."""
    try:
        decoder.final_norm(lm)
    except AttributeError as error:
        raise ValueError(f"its last norm is not where others have it: {error}") from error


class _Differs(Exception):
    """What the model computes is not what we do."""


def _of_each_kind(decoder: Decoder, lm: Any) -> Iterator[tuple[int, Any]]:
    """One layer, with its number, of each kind: layers that say the same of themselves compute the same."""
    layers, found = decoder.layers(lm), set()
    per_layer = [x for x in vars(lm.config).values() if isinstance(x, list | tuple) and len(x) == len(layers)]
    for number in decoder.attending(lm.config):
        layer = layers[number]
        attention = decoder.attention(layer)
        own = {k: v for k, v in vars(attention).items() if isinstance(v, bool | int | float | str) and k != "layer_idx"}
        said = [repr(x[number]) for x in per_layer]
        kind: Hashable = (type(layer), type(attention), tuple(own.items()), *said)
        if kind not in found:
            found.add(kind)
            yield number, layer


def _compare(decoder: Decoder, lm: Any, number: int, layer: Any) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
        torch.manual_seed(number)
        fresh, config = _fresh(decoder, lm, number, layer)
        attention = decoder.attention(fresh)
        rotary = decoder.rotary(lm)
        rotary = None if rotary is None else type(rotary)(config).float()
        states = [config.altup_num_inputs] if decoder.stacked else []
        hidden = torch.randn(*states, 2, TOKENS, config.hidden_size, dtype=torch.float32)
        positions = torch.randint(0, 8, (2, TOKENS)).cumsum(dim=1)
        if sections := (getattr(config, "rope_parameters", None) or {}).get("mrope_section"):
            positions = positions + torch.randint(0, 8, (len(sections), 2, TOKENS))
        given = None if rotary is None else decoder.position_embeddings(rotary, hidden, positions, number)
        x, heard, theirs, cache = _run(fresh, attention, hidden, given)
        tables = decoder.tables(attention, heard)
        queries, keys = decoder.queries(attention, x, tables), decoder.keys(attention, x, tables)
        cached = decoder.cached_keys(attention, cache.layers[number])
        groups = queries.shape[1] // keys.shape[1]
        logits = queries @ keys.repeat_interleave(groups, dim=1).transpose(-1, -2) * decoder.scaling(attention)
        ours = logits.masked_fill(~_causal(), -torch.inf).softmax(dim=-1)  # [B, H, T, T]
        _same("what goes into its attention", decoder.normed(fresh, hidden), x)
        _same("its keys as the KV cache holds them", keys, cached)
        _same("its attention weights", ours, theirs)


def _same(what: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise _Differs(f"gives {what} the shape {list(ours.shape)} instead of {list(theirs.shape)}")
    error = float((ours - theirs).abs().max())
    if not error <= TOLERANCE:  # also where it is no number
        raise _Differs(f"is off by up to {error:.2g} in {what}")


def _fresh(decoder: Decoder, lm: Any, number: int, layer: Any) -> tuple[Any, Any]:
    """(a new layer like `layer` with random weights up to its attention, the configuration it was made from)."""
    config = copy.deepcopy(lm.config)
    config._attn_implementation = "eager"
    attention = type(decoder.attention(layer))(layer_config(config, number), number).float().eval()
    with torch.device("meta"):
        fresh = type(layer)(config, number)
    fresh = fresh.float().eval()
    old, skipped = decoder.attention(fresh), decoder.feed_forward(fresh)
    path = next(name for name, module in fresh.named_modules() if module is old)
    fresh.set_submodule(path, attention)
    rest = set(fresh.modules()) - set(skipped.modules()) - set(attention.modules())
    for module in rest:
        module.to_empty(device="cpu", recurse=False)
    for module in rest | set(attention.modules()):
        for weight in module.parameters(recurse=False):
            if weight.dim() > 1:
                weight.normal_(std=weight.shape[-1] ** -0.5)
            else:
                weight.uniform_(0.5, 1.5)
    return fresh, config


def _run(layer: Any, attention: Any, hidden: Tensor, given: Any) -> tuple[Tensor, Any, Tensor, Any]:
    """(what goes into the attention, the tables it is handed, its weights [B, H, T, T], the cache it fills)."""
    from transformers import DynamicCache

    got: dict[str, Any] = {}
    cache = DynamicCache()

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        got.update(x=args[0] if args else kwargs["hidden_states"], tables=kwargs.get("position_embeddings"))
        got.update(weights=output[1])
        raise _Reached

    mask = torch.zeros(2, 1, TOKENS, TOKENS, dtype=torch.float32).masked_fill_(
        ~_causal(), torch.finfo(torch.float32).min
    )
    asked = inspect.signature(layer.forward).parameters
    kwargs = {"attention_mask": mask, "position_ids": torch.arange(TOKENS)[None], "position_embeddings": given}
    kwargs["cache" if "cache" in asked else "past_key_values"] = cache
    kwargs |= {"shared_kv_states": {}} if "shared_kv_states" in asked else {}
    if not any(p.kind is p.VAR_KEYWORD for p in asked.values()):
        kwargs = {name: value for name, value in kwargs.items() if name in asked}
    handle = attention.register_forward_hook(after, with_kwargs=True)
    try:
        layer(hidden, **kwargs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return got["x"], got["tables"], got["weights"], cache


def _causal() -> Tensor:
    """BoolTensor [T, T]: which keys each query sees."""
    return torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
