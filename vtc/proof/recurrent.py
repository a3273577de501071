"""Recurrent layers of a full-length model that have never met what was dropped.

A token that is covered by a mask in attention cannot be covered in a state. So a layer with linear attention or a
convolution reads, row by row and without padding, the tokens that are left, and nothing else; its states in the cache
are those that come of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

#: (layer, batch row) -> LongTensor, the tokens of the forward in progress that the row still has in that layer
Kept = Callable[[int, int], Tensor]
#: what of a layer's cache belongs to rows of the batch, and is a table of tensors
STATES = ("conv_states", "recurrent_states")


def fed_directly(modules: dict[int, nn.Module], kept: Kept) -> list[RemovableHandle]:
    """Let recurrent modules, by the number of their layer, read only the tokens that are `kept`; returns the hooks."""
    handles = []
    for i, module in modules.items():
        made: list[Tensor] = []
        handles.append(module.register_forward_pre_hook(partial(_before, i, kept, made), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(_after, made)))
    return handles


def _before(i: int, kept: Kept, made: list[Tensor], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do the module's work, row by row, and leave it one token to do again, for nothing."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    name = "cache" if "cache" in kwargs else "past_key_values" if "past_key_values" in kwargs else "cache_params"
    cache, out, rows = kwargs.get(name), torch.zeros_like(hidden), []
    for row in range(len(hidden)):
        own, there = _of_row(cache, i, row), kept(i, row).to(hidden.device)
        given = {**kwargs, name: own, "attention_mask": None}
        given.pop("hidden_states", None)
        out[row, there] = module.forward(hidden[row : row + 1, there], **given)[0]
        rows.append(own)
    if cache is not None:
        _put_together(cache.layers[i], [own.layers[i] for own in rows])
    made.append(out)
    kwargs = {**kwargs, name: None, "attention_mask": None}
    return ((hidden[:, :1],), kwargs) if args else (args, {**kwargs, "hidden_states": hidden[:, :1]})


def _after(made: list[Tensor], module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
    return made.pop()


def _of_row(cache: Any, i: int, row: int) -> Any:
    """A cache whose layer `i` is that of one batch row."""
    if cache is None:
        return None
    own = copy.copy(cache)
    own.layers = list(cache.layers)
    layer = own.layers[i] = copy.copy(cache.layers[i])
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(layer, name, dict(value))
    for name in STATES:
        held = getattr(layer, name)
        held.update({n: x[row : row + 1].clone() for n, x in held.items() if x is not None})
    return own


def _put_together(layer: Any, rows: list[Any]) -> None:
    """Let the layer of a cache hold the states of all rows."""
    vars(layer).update(vars(rows[0]))
    for name in STATES:
        held = getattr(layer, name)
        for n, x in held.items():
            if x is not None:
                held[n] = torch.cat([getattr(row, name)[n] for row in rows])
