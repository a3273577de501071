"""What a wrapped model with a memory beside its row has to equal: itself, with columns of the memory that nobody sees.

As `hidden.py` for rows, nothing here shares code with the engine. The memory keeps its length, in every layer and in
the cache. A column of what was dropped, or of what is no picture's, is emptied, and covered in the mask that the model
has made, for all words and in all steps. So a row without a picture, all of whose columns are empty, is what it is
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtc.api import wrapped
from vtc.methods.base.registry import resolve
from vtc.models.cross import MemoryAdapter
from vtc.models.registry import adapter_for
from vtc.proof.hidden import Dropped, eager
from vtc.proof.results import Comparison
from vtc.proof.run import Proof


class MemoryProof(Proof):
    """The comparisons of a model with a memory beside its row."""

    @property
    def _adapter(self) -> MemoryAdapter:
        adapter = adapter_for(self.model, self.how["family"])
        assert isinstance(adapter, MemoryAdapter)
        return adapter

    def placeholders(self) -> Comparison:
        """Columns that are taken for visual tokens: those, and no others, that a picture's own tiles change."""
        name, seen = "placeholders", list[dict[str, Any]]()
        with wrapped(self.model, resolve("random", 1.0), **self.how) as model, self._entering(seen):
            model(**self.given)
            trace = model._vtc_engine.trace
        if not trace.spans:
            return Comparison(name, "no visual token was found", False)
        memory = _as_rows(seen[0], self._adapter)
        place = torch.zeros(memory.shape[:2], dtype=torch.bool)
        for span in trace.spans:
            place[span.row, span.index.cpu()] = True
        pixels, theirs = self.given["pixel_values"], []
        for tile in range(pixels.shape[1] * pixels.shape[2]):
            theirs.append(pixels.flatten(1, 2)[:, tile].flatten(1).any(dim=1).cpu())
        filled = torch.stack(theirs, dim=1).repeat_interleave(memory.shape[1] // len(theirs), dim=1)
        same = bool(place.eq(filled).all())
        said = f"{int(place.sum())} of {place.numel()} columns are of tiles that hold pixels"
        return Comparison(name, said if same else "columns are taken for visual tokens that hold no pixels", same)

    def _left(self) -> Tensor:
        return self.real  # no word ever leaves

    @contextmanager
    def _covered(self) -> Iterator[None]:
        assert self.made is not None
        with eager(self.model), _covered(self._lm(), self._adapter, self.made):
            yield


def _as_rows(kwargs: dict[str, Any], adapter: MemoryAdapter) -> Tensor:
    """The memory [B, M, D] that a language model is handed."""
    states: Tensor = kwargs[adapter.states]
    words = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
    return states.reshape(len(words), -1, states.shape[-1])


@contextmanager
def _covered(lm: Any, adapter: MemoryAdapter, made: Dropped) -> Iterator[None]:
    """The language model without sight of what was dropped, nor of padding."""
    gone: list[Tensor] = []  # BoolTensor [B, M] of the prompt

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs, bias = dict(kwargs), kwargs.get(adapter.bias)
        if kwargs.get(adapter.states) is not None:
            memory = _summed(_as_rows(kwargs, adapter), made)
            gone[:] = [_gone(memory, made)]
            kwargs[adapter.states] = memory.masked_fill(gone[0].to(memory.device)[..., None], 0)
        if gone:
            (out,) = gone
            if bias is None:
                like = next(module.parameters())
                bias = like.new_zeros(*out.shape[:1], 1, 1, out.shape[1])
            kwargs[adapter.bias] = bias.masked_fill(out.to(bias.device)[:, None, None], torch.finfo(bias.dtype).min)
        return args, kwargs

    handle = lm.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _gone(memory: Tensor, made: Dropped) -> Tensor:
    out = torch.ones(memory.shape[:2], dtype=torch.bool)
    for row, columns in made.kept:
        out[row, columns] = False
    return out


def _summed(memory: Tensor, made: Dropped) -> Tensor:
    """The memory with each anchor that stands for several as their sum."""
    for _, row, slot, index, weight in made.sums:
        there = memory[row, index.to(memory.device)].double()
        total = (there * weight[:, None].to(there)).sum(dim=0).to(memory.dtype)
        memory = memory.clone()
        memory[row, slot] = total
    return memory
