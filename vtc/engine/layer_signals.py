"""What a decoder layer offers to the signals that are measured in it. Everything is computed once, when first asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vtc.engine.attention import LayerView
from vtc.engine.flow import Flow, padded
from vtc.signals import SIGNALS


@dataclass(frozen=True)
class Door:
    """A batch as the language model begins, before anything is dropped.

    Attributes:
        embeds: [B, L, D]. visual: BoolTensor [B, L].
        text_after: LongTensor [B, R], positions of the prompt's text after the pictures; -1 = none.
    """

    embeds: Tensor
    visual: Tensor
    text_after: Tensor


class LayerSignals:
    """One decoder layer over a batch, for the spans of a flow, in the flow's present slots.

    Slots count within this forward; the layer's keys also hold what came before it, so that slot s is key `past + s`.

    Args:
        view: the layer's attention, for signals that are read from queries and keys; None if nobody asks for any.
        states: [B, S, D], the hidden states that `text_states` and the like are read from; None if nobody asks.
        kept: by signal, what was measured at the door.
        history: [B, S], what a method's `transition` has added up.
    """

    def __init__(
        self,
        flow: Flow,
        view: LayerView | None,
        states: Tensor | None = None,
        kept: Mapping[str, Tensor] | None = None,
        history: Tensor | None = None,
    ) -> None:
        self.flow, self._view = flow, view
        self.states, self.kept, self.history = states, kept or {}, history
        self.past = 0 if view is None else view.past
        self._measured: dict[tuple[str, int | None], Tensor] = {}

    def measure(self, names: tuple[str, ...]) -> None:
        """Compute the signals `names` of every span now, and let go of the layer's activations."""
        for name in names:
            for span in range(1 if SIGNALS[name].shared else len(self.flow.spans)):
                self._measured[name, span] = SIGNALS[name].of(self, span)
        if self._view is not None:
            self._view.x = self._view.x.new_empty(0)

    def of(self, name: str, span: int | None) -> Tensor:
        """The signal `name` for span number `span`; shapes in `vtc.signals.SIGNALS`.

        None = for all spans together, which are S equally large ones: where a shape says N it is then [S, N], and rows
        and slots are as many LongTensors [S, N]; see `even`.
        """
        known = self._measured.get((name, span))
        return SIGNALS[name].of(self, span) if known is None else known

    def even(self, names: tuple[str, ...]) -> bool:
        """Whether all spans can be asked for these signals together: they have equally many tokens and, where that
        counts, their rows equally much text behind the pictures."""
        texts = {self.flow.words(span.row) for span in self.flow.spans} if "text_attention" in names else ()
        return len({len(where) for where in self.flow.where}) == 1 and len(texts) <= 1

    # -- where things are --------------------------------------------------------------------------------------

    def row(self, span: int | None) -> Any:
        """The batch row of a span."""
        return self.flow.spans[span].row if span is not None else self._all(0)

    def slots(self, span: int | None) -> Tensor:
        """LongTensor [N], present slots of a span's tokens."""
        return self.flow.where[span] if span is not None else self._all(1)

    def _all(self, which: int) -> Tensor:
        """LongTensor [S, N]: rows (0) or slots (1) of all visual tokens."""
        assert self.flow.places is not None
        return self.flow.places.at[which].view(len(self.flow.spans), -1)

    def keys_of(self, span: int | None) -> Tensor:
        """LongTensor [N], which keys a span's tokens are."""
        return self.past + self.slots(span)

    def words(self, span: int) -> slice:
        """Which of the rows of `text_rows`, and of `flow.text_after`, are of the text in the span's row."""
        return slice(0, self.flow.words(self.flow.spans[span].row))

    def keys_of_text(self, span: int) -> Tensor:
        """LongTensor [T], which keys the text after the row's pictures is."""
        return self.past + self.slots_of_text(span)

    def slots_of_text(self, span: int) -> Tensor:
        """LongTensor [T], present slots of the text after the row's pictures."""
        return self.flow.text_after[self.row(span), self.words(span)]

    def places(self, span: int, slots: Tensor) -> Tensor:
        """LongTensor [n]: `slots` [n] of a span's row, counted from the row's first token that is no padding."""
        valid = self.flow.part.valid
        return slots if valid is None else slots - valid[self.row(span)].to(torch.uint8).argmax()

    def states_at(self, span: int, slots: Tensor) -> Tensor:
        """[n, D], hidden states in `slots` [n] of a span's row."""
        states = self.states
        if states is None:
            raise ValueError("hidden states are at hand between layers only, not in a layer that has just run.")
        return states[self.row(span), slots.to(states.device)]

    def final_states_at(self, span: int, slots: Tensor) -> Tensor:
        """[n, D], the same behind the language model's last norm."""
        return self.flow.decoder.final_norm(self.flow.lm)(self.states_at(span, slots))

    # -- attention ---------------------------------------------------------------------------------------------

    @property
    def view(self) -> LayerView:
        if self._view is None:
            raise ValueError("this signal reads queries and keys: give its row in the table attention=True.")
        return self._view

    @property
    def keys(self) -> Tensor:
        """[B, G, K, d]: keys of the layer, those of earlier forwards first."""
        return self.view.keys

    def keys_at(self, span: int, index: Tensor) -> Tensor:
        """[n, G, d]: keys number `index` [n] of a span's row."""
        return self.keys[self.row(span), :, index.to(self.keys.device)].transpose(0, 1)

    @cached_property
    def last_rows(self) -> Tensor:
        """[B, 1, K]: attention of each prompt's last token."""
        return self.view.rows(self.flow.last)

    @cached_property
    def text_rows(self) -> Tensor:
        """[B, R, K]: attention of the text after the pictures."""
        return self.view.rows(self.flow.text_after)

    def text_attention(self, span: int | None) -> Tensor:
        """[T, N], or [S, T, N] of all spans: attention of the text after the row's pictures onto a span's tokens."""
        if span is not None:
            row = self.flow.spans[span].row
            return self.text_rows[row, self.words(span)].index_select(-1, self.keys_of(span))
        words = torch.arange(self.flow.words(self.flow.spans[0].row), device=self.flow.device)
        return self.text_rows[self._all(0)[:, None], words[:, None], self.keys_of(None)[:, None]]

    @cached_property
    def head_rows(self) -> Tensor:
        """[B, H, R, K]: attention of the text after the pictures, head by head."""
        return torch.stack(list(self.view.heads(self.flow.text_after)), dim=1)

    @cached_property
    def rotation_bias(self) -> Tensor:
        """[B, R, S]: what the rotation alone makes of products of the text after the pictures with present slots."""
        return self.view.rotation_bias(self.flow.text_after)

    @cached_property
    def peak(self) -> Tensor:
        """[B, K]: largest attention of any head of the text after the pictures."""
        return self.view.peak(self.flow.text_after)

    @cached_property
    def own_attention(self) -> list[Tensor]:
        """Per span [N]: mean attention that its own tokens give each of them."""
        found: list[Tensor] = []
        for number, span in enumerate(self.flow.spans):
            slots = self.flow.where[number]
            if not len(slots):
                found.append(torch.zeros(0, device=slots.device))
                continue
            found.append(self.view.of_row(span.row).received(slots[None])[0, self.past + slots])
        return found

    @cached_property
    def relevance(self) -> Tensor:
        """[B, 2]: share of the text's attention that goes to visual tokens, and of theirs that goes to the text.

        Text is what follows a row's first visual token, up to the end of its prompt. Where no visual token follows any
        of it, causal attention makes the second share 0.
        """
        flow, share = self.flow, torch.zeros(self.flow.rows, 2, device=self.flow.device)
        visual, text = flow.visual_and_text()
        words, seen, between = flow.counts()
        at = padded(text, words)
        rows = self.view.rows(at)[..., self.past :]  # [B, R, S]
        share[:, 0] = (rows * visual[:, None]).sum(dim=(1, 2)) / (at >= 0).sum(dim=1).clamp(min=1)
        if between:
            given = self.view.received(padded(visual, seen))[..., self.past :]
            share[:, 1] = (given * text).sum(dim=1)
        return share
