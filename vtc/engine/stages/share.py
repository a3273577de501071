"""Stage `cache`, methods under which neighbouring layers share a part of what they hold; no token goes.

After a forward with pictures, the rows of the prompt that two layers share go into a store (`kv_store.py`), which makes
them whole in every step. Layers share only what both hold: where another method has left them different tokens, or the
heads of one of them, the pair stays as it is, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.engine.forward import Forward
from vtc.engine.kv_cache import CompressedLayer
from vtc.engine.kv_store import PairedRows, paired
from vtc.engine.kv_tags import KIND, SLOT, real_rows, rows_of_kind, settle, tagged
from vtc.engine.refuse import check_heads, check_use, check_whole
from vtc.engine.stage import Facts, Run, Stage
from vtc.methods.base.cache import PairedMethod
from vtc.methods.base.method import Method
from vtc.reports import Stopwatch


class ShareRun(Run):
    stage: ShareStage

    def leave(self, cache: Any) -> None:
        """After a forward with pictures: let every pair of layers share."""
        flow, stage = self.flow, self.stage
        if cache is None or not flow.spans:
            return
        watch = Stopwatch(flow.device)
        trace, method = self.forward.trace, stage.method
        layers = {i: tagged(flow, cache, i) for i in stage.facts.whole}
        held = trace.cached or {
            i: real_rows(layer).sum(dim=-1).float().view(flow.rows, -1).mean(1) for i, layer in layers.items()
        }
        apart = []
        for i in stage.pairs:
            saved = self._share(layers[i], layers[i + 1], i)
            if saved is None:
                apart.append(i)
            else:
                held[i], held[i + 1] = (held[n] - saved.to(held[n].device) for n in (i, i + 1))
        settle(flow, cache)
        trace.cached = held
        tokens = sum(len(where) for where in flow.where)
        trace.note_stage(method.title, stage.depth, tokens, tokens, [watch.stop()])
        if apart:
            trace.notes.append(
                f"{method.title}: {len(apart)} of {len(stage.pairs)} pairs of layers hold different tokens, and share "
                "nothing."
            )

    def _share(self, one: CompressedLayer, other: CompressedLayer, i: int) -> Tensor | None:
        """Let two layers share, if they hold the same rows: [B], how many rows' memory each of them saves; else None.

        A row of width d that is shared takes d + 2 numbers in both layers together, instead of 2 d.
        """
        if (
            one.held != other.held
            or one.per_head
            or other.per_head
            or not torch.equal(one.tags[SLOT], other.tags[SLOT])
        ):
            return None
        for layer, number in ((one, i), (other, i + 1)):
            if layer.held > layer.prompt:
                layer.take_in(self.flow.seen_keys(number))
        among = self._among(one)
        both = [layer.whole() for layer in (one, other)]
        made = [self._paired(both[0][part], both[1][part], among) for part in (0, 1)]
        saved = [made[part][2] * (0.5 - 1 / both[0][part].shape[-1]) for part in (0, 1)]
        for n, layer in enumerate((one, other)):
            (keys, at), (values, there) = made[0][n], made[1][n]
            layer.store = PairedRows((keys, values), (at, there))
            layer.keys, layer.values = (x[:, :, :0].clone() for x in both[n])
        return (saved[0] + saved[1]) / 2

    def _among(self, layer: CompressedLayer) -> Tensor:
        """BoolTensor [B, held]: the rows that layers may share."""
        method = self.stage.method
        if method.scope == "visual":
            return rows_of_kind(layer, method.modality)
        there = (layer.tags[KIND] >= 0) & real_rows(layer)
        pictures = torch.isin(torch.arange(len(there), device=there.device), self._rows.to(there.device))
        return there & pictures[:, None]

    @property
    def _rows(self) -> Tensor:
        return torch.tensor(sorted({span.row for span in self.flow.spans}))

    def _paired(self, one: Tensor, other: Tensor, among: Tensor) -> Any:
        """Keys, or values, [B, G, K, d] of two layers, of which the rows `among` [B, K] are shared."""
        directions, own = torch.zeros_like(one), torch.zeros(one.shape[:3], dtype=torch.bool, device=one.device)
        among = among.to(one.device)
        for row in among.any(dim=1).nonzero()[:, 0].tolist():
            where = among[row].nonzero()[:, 0]
            shared, kept = self.stage.method.shared(one[row][:, where], other[row, :, where].to(one.device))
            directions[row, :, where], own[row, :, where] = shared.to(one.dtype), kept
        whole = among[:, None].expand(-1, one.shape[1], -1)
        shares = (whole & ~own).sum(dim=2).float().mean(dim=1)
        return *paired(one, other.to(one.device), whole, directions, own), shares


class ShareStage(Stage):
    name, order, run = "cache", 42, ShareRun
    base, shortens = "CacheMethod", False

    @classmethod
    def takes(cls, method: Method) -> bool:
        return method.stage == cls.name and isinstance(method, PairedMethod)

    def __init__(self, facts: Facts, methods: Sequence[PairedMethod]) -> None:
        super().__init__(facts, methods)
        if len(methods) > 1:
            raise ValueError(f"{methods[0].title} and {methods[1].title} both say what layers share; leave one out.")
        self.method, self.depth = methods[0], facts.depth
        if len(facts.attending) < self.depth:
            raise ValueError(
                f"{self.method.title} lets neighbouring layers share keys and values, and only "
                f"{len(facts.attending)} of the {self.depth} layers of {facts.language_model.config.model_type} have "
                "any, with others between them: use a method that drops tokens (snapkv, say)."
            )
        check_heads(self.method, facts.language_model, facts.decoder)
        first = max(1, self.method.first_layer(self.depth))
        whole = set(facts.whole)
        self.pairs = [deeper - 1 for deeper in range(self.depth - 1, first - 1, -2) if {deeper - 1, deeper} <= whole]
        if not self.pairs:
            raise ValueError(
                f"{self.method.title} pairs neighbouring layers whose cache holds the whole conversation, and this "
                "model has no such pair; use another method of the stage 'cache', such as h2o."
            )

    def check(self, forward: Forward) -> None:
        check_use(self.methods, self.facts.language_model, forward)
        check_whole(self.method, self.facts, forward)
