"""What a decoder layer offers to the signals that are measured in it. Everything is computed once, when first asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vtc.engine.attention import LayerView
from vtc.engine.flow import Flow, padded
from vtc.models.decoder import decoder_for
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

    def measure(self, names: tuple[str, ...]) -> None:
        """Compute the signals `names` of every span now, and let go of the layer's activations."""
        for name in names:
            for span in range(len(self.flow.spans)):
                self.of(name, span)
        if self._view is not None:
            self._view.x = self._view.x.new_empty(0)

    def of(self, name: str, span: int) -> Tensor:
        """The signal `name` for span number `span`; shapes in `vtc.signals.SIGNALS`."""
        return SIGNALS[name].of(self, span)

    # -- where things are --------------------------------------------------------------------------------------

    def row(self, span: int) -> int:
        return self.flow.spans[span].row

    def slots(self, span: int) -> Tensor:
        """LongTensor [N], present slots of a span's tokens."""
        return self.flow.where[span]

    def keys_of(self, span: int) -> Tensor:
        """LongTensor [N], which keys a span's tokens are."""
        return self.past + self.slots(span)

    def text(self, span: int) -> Tensor:
        """BoolTensor [R]: which of `flow.text_after` there are in the span's row."""
        return self.flow.text_after[self.row(span)] >= 0

    def keys_of_text(self, span: int) -> Tensor:
        """LongTensor [T], which keys the text after the row's pictures is."""
        return self.past + self.slots_of_text(span)

    def slots_of_text(self, span: int) -> Tensor:
        """LongTensor [T], present slots of the text after the row's pictures."""
        after = self.flow.text_after[self.row(span)]
        return after[after >= 0]

    def places(self, span: int, slots: Tensor) -> Tensor:
        """LongTensor [n]: `slots` [n] of a span's row, counted from the row's first token that is no padding."""
        valid = self.flow.part.valid
        return slots if valid is None else slots - int(valid[self.row(span)].to(torch.uint8).argmax())

    def states_at(self, span: int, slots: Tensor) -> Tensor:
        """[n, D], hidden states in `slots` [n] of a span's row."""
        states = self.states
        if states is None:
            raise ValueError("hidden states are at hand between layers only, not in a layer that has just run.")
        return states[self.row(span), slots.to(states.device)]

    def final_states_at(self, span: int, slots: Tensor) -> Tensor:
        """[n, D], the same behind the language model's last norm."""
        return decoder_for(self.flow.lm).final_norm(self.flow.lm)(self.states_at(span, slots))

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
        at = padded(text)
        rows = self.view.rows(at)[..., self.past :]  # [B, R, S]
        heard = (rows * visual[:, None]).sum(dim=(1, 2)) / (at >= 0).sum(dim=1).clamp(min=1)
        share[:, 0] = heard
        first_text = torch.where(text, torch.arange(text.shape[1], device=text.device), text.shape[1]).amin(dim=1)
        later = visual & (torch.arange(text.shape[1], device=text.device) > first_text[:, None])
        if later.any():
            given = self.view.received(padded(visual))[..., self.past :]
            share[:, 1] = (given * text).sum(dim=1)
        return share
