"""The oracle of families with a memory beside the row: the plain model, none of whose cross-attention layers can see
the columns of what was dropped, or of padding.

It shares no code with the engine. The memory keeps its full length, in every layer and in the cache; what a word sees
of it is worked out here, word by word and column by column, from the masks that the processor made. Where outputs stand
for several tokens, the memory's rows of anchors are replaced by explicit sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LOW = torch.finfo(torch.float32).min


@contextmanager
def memory_oracle(model: Any, made: Any, rows: int, left: list[set[int]] | None = None) -> Iterator[Any]:
    """The unwrapped `model`, answering as the wrapped one should; see `tests.oracle.oracle`.

    Args:
        left: by row, the columns that are there, where more than one turn has a say in it.
    """
    if left is None and not any(choice.slots != choice.index for _, choices in made.steps for choice in choices):
        yield model  # nothing is left out, padding neither
        return
    play = _Play(model, made, rows)
    play.columns = play.columns if left is None else left
    lm = model.model.language_model
    handles = [
        model.register_forward_pre_hook(play.before_model, with_kwargs=True),
        lm.register_forward_pre_hook(play.before_lm, with_kwargs=True),
    ]
    for i in model.config.text_config.cross_attention_layers:
        attention = lm.layers[i].cross_attn
        handles.append(attention.register_forward_pre_hook(play.before_attention, with_kwargs=True))
        handles.append(attention.register_forward_hook(play.after_attention))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


class _Play:
    """The hooks of one oracle: which columns each row of the prompt has left, in `columns[row]`."""

    def __init__(self, model: Any, made: Any, rows: int) -> None:
        self.model, self.made, self.rows = model, made, rows
        self.each = model.model.vision_model.num_patches
        left = [row.slots for row in made.steps[-1][1]] if made.steps else []
        where = [row.row for row in made.steps[-1][1]] if made.steps else []
        self.columns: list[set[int]] = [set() for _ in range(rows)]
        for row, slots in zip(where, left, strict=True):
            self.columns[row] |= {*slots}
        self.given: Tensor | None = None
        self.blind: list[int] = []

    def before_model(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.given = kwargs.get("cross_attention_mask")

    def before_lm(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Sums in the memory, where there are any."""
        states = kwargs.get("cross_attention_states")
        if states is None:
            return None
        batch = len(kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"])
        memory = states.reshape(batch, -1, states.shape[-1]).clone()
        for _, choices in self.made.steps:
            before = memory.clone()
            for r in range(batch):
                for choice in (c for c in choices if c.row == self.origin(r, batch)):
                    for m, slot in enumerate(choice.slots):
                        if choice.features is not None:
                            memory[r, slot] = choice.features[m]
                            continue
                        own = [n for n, source in enumerate(choice.source) if source == m]
                        parts = [float(choice.weight[n]) * before[r, choice.index[n]].double() for n in own]
                        memory[r, slot] = sum(parts).float()  # type: ignore[union-attr]
        return args, {**kwargs, "cross_attention_states": memory.view(states.shape)}

    def origin(self, row: int, batch: int) -> int:
        """Which row of the prompt a row of a batch repeats."""
        return row // (batch // self.rows)

    def before_attention(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What each word adds to each column: nothing, or LOW."""
        hidden, cache = kwargs["hidden_states"], kwargs.get("cache", kwargs.get("past_key_values"))
        states, batch, words = kwargs.get("cross_attention_states"), len(hidden), hidden.shape[1]
        length = 0 if states is None else states.shape[:-1].numel() // batch
        if cache is not None and module.layer_idx < len(cache.layers):
            length += cache.layers[module.layer_idx].get_seq_length()
        given, tiles = None, 1
        if self.given is not None:  # [B][T][pictures][tiles]
            given, tiles = self.given[:, -words:].tolist(), self.given.shape[3]
        mask = torch.full((batch, 1, words, length), LOW)
        self.blind = [r for r in range(batch) if not self.columns[self.origin(r, batch)]]
        for r in range(batch):
            left = self.columns[self.origin(r, batch)]
            for t in range(words):
                sees = [True] * length
                if given is not None and any(map(any, given[r][t])):  # a word that sees no picture sees everything
                    sees = [bool(given[r][t][c // self.each // tiles][c // self.each % tiles]) for c in range(length)]
                for column in range(length):
                    if sees[column] and column in left:
                        mask[r, 0, t, column] = 0.0
        return args, {**kwargs, "attention_mask": mask}

    def after_attention(self, module: Any, args: Any, output: Any) -> Any:
        """A row without pictures is what it is alone: nothing comes of the attention to what others have."""
        attended = output[0].clone()
        attended[self.blind] = 0.0
        return attended, *output[1:]
