"""Record: what a forward leaves behind for the report — tensors, so that no forward waits for its device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vtc.cost import DecoderCost
from vtc.layout import VisualSpan
from vtc.plan import Plan
from vtc.report import Report, ReportSpan, StageReport, Stopwatch
from vtc.selection import Selection


@dataclass
class Record:
    """One prefill: its spans, what was selected of each, and how many tokens its rows had and kept."""

    notes: list[str] = field(default_factory=list)
    stages: list[tuple[str, int, int, Stopwatch]] = field(default_factory=list)
    spans: tuple[VisualSpan, ...] = ()
    selections: tuple[Selection, ...] = ()
    rows_full: Tensor | None = None  # LongTensor [B], tokens without padding
    rows_kept: Tensor | None = None

    def note_plan(self, plan: Plan, real: Tensor) -> None:
        """Remember a plan; `real` BoolTensor [B, L] marks what is no padding."""
        self.spans, self.selections = plan.layout.spans, plan.selections
        self.rows_full = real.sum(dim=1)
        self.rows_kept = (real.gather(1, plan.slot) & plan.valid).sum(dim=1)

    def report(self, language_model: nn.Module) -> Report:
        """The report, with the cost model's account for this language model."""
        if self.rows_full is None or self.rows_kept is None:
            return Report(notes=list(self.notes))
        table: Any = language_model.get_input_embeddings
        cost = DecoderCost.of(language_model.config, table().weight.element_size())
        full, kept = self.rows_full.tolist(), self.rows_kept.tolist()
        return Report(
            spans=[
                ReportSpan(
                    s.row, s.modality, s.grid, c.anchor.cpu().clone(), c.source.cpu().clone(), s.tiles, s.boxes()
                )
                for s, c in zip(self.spans, self.selections, strict=True)
            ],
            stages=[StageReport(name, None, before, after, watch.ms) for name, before, after, watch in self.stages],
            flops=(sum(map(cost.prefill_flops, full)), sum(map(cost.prefill_flops, kept))),
            kv_bytes=(sum(map(cost.kv_bytes, full)), sum(map(cost.kv_bytes, kept))),
            notes=list(self.notes),
        )
