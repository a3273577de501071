"""Readings: what methods hear from one decoder layer. Everything is computed once, when first asked for."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from vtc.engine.attention import LayerView
from vtc.engine.flow import Flow, padded


class Readings:
    """Signals of one decoder layer for the spans of a flow, in the flow's present slots."""

    def __init__(self, flow: Flow, view: LayerView, wanted: tuple[str, ...] = ()) -> None:
        self.flow, self.view = flow, view
        self.past = view.past
        for name in wanted:
            self._measure(name)

    def close(self) -> None:
        """Let go of the layer's activations; what has been measured stays."""
        self.view.x = self.view.x.new_empty(0)

    def _measure(self, name: str) -> object:
        return {
            "last_attention": lambda: self.last_rows,
            "text_attention": lambda: self.text_rows,
            "peak_attention": lambda: self.peak,
            "visual_attention": lambda: self.own_rows,
            "relevance": lambda: self.relevance,
            "layer_keys": lambda: self.view.keys,
            "text_keys": lambda: self.view.keys,
        }.get(name, lambda: None)()

    def of(self, name: str, number: int) -> Tensor:
        """The signal `name` for span `number`; shapes in `vtc.signals.SIGNALS`."""
        span, slots = self.flow.spans[number], self.flow.where[number]
        row = span.row
        keys = self.past + slots
        if name == "last_attention":
            return self.last_rows[row, 0, keys]
        if name == "text_attention":
            return self.text_rows[row][self.flow.text_after[row] >= 0][:, keys]
        if name == "peak_attention":
            return self.peak[row, keys]
        if name == "visual_attention":
            return self.own_rows[number]
        if name == "relevance":
            return self.relevance[row]
        if name == "layer_keys":
            return self.view.keys[row, :, keys].transpose(0, 1)
        if name == "text_keys":
            after = self.flow.text_after[row]
            return self.view.keys[row, :, self.past + after[after >= 0]].transpose(0, 1)
        raise KeyError(name)

    @cached_property
    def last_rows(self) -> Tensor:
        """[B, 1, K]: rows of each row's last token."""
        return self.view.rows(self.flow.last)

    @cached_property
    def text_rows(self) -> Tensor:
        """[B, R, K]: rows of the text after the pictures."""
        return self.view.rows(self.flow.text_after)

    @cached_property
    def peak(self) -> Tensor:
        """[B, K]: largest attention of any head of the text after the pictures."""
        return self.view.peak(self.flow.text_after)

    @cached_property
    def own_rows(self) -> list[Tensor]:
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

        Text is what follows a row's first visual token. Where no visual token follows any of it, causal attention makes
        the second share 0.
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
