"""TowerEngine: compression inside a vision tower that is wrapped alone, or as a part of a CLIP or a classifier."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from vtc.engine.compiled import forget_graphs
from vtc.engine.forward import Traces
from vtc.engine.stages.encoder import blocks_for
from vtc.engine.tower_blocks import TowerTrace
from vtc.engine.tower_report import tower_report
from vtc.engine.wrappers import hooked_modules
from vtc.methods.base.encoder import placed
from vtc.methods.base.method import Method
from vtc.models.tower import find_tower
from vtc.reports import Report


class TowerEngine:
    """Compression of one tower by one method; `attach` and `detach` are exact opposites.

    Args:
        model: the tower, or what it is a part of; its features, intermediate ones included, keep their length.
    """

    def __init__(self, model: nn.Module, methods: tuple[Method, ...]) -> None:
        self.model, self.tower = model, find_tower(model)
        self.methods = tuple(placed(method, "encoder") for method in methods)
        parts = [placed(part, "encoder") for method in self.methods for part in method.parts()]
        self.blocks = blocks_for(self.tower, parts, None, self._begin)
        self.handles: list[RemovableHandle] = []
        self.hooked: dict[str, nn.Module] = {}
        self.traces = Traces()  # of threads

    def attach(self) -> None:
        self.blocks.check_free()
        for handle in self.blocks.attach():
            self.handles.append(handle)
        self.hooked = hooked_modules(self.model, self.handles)
        forget_graphs()

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.hooked = {}
        self.blocks.close()
        forget_graphs()

    def _begin(self, trace: TowerTrace) -> None:
        self.traces.keep(trace, None)  # type: ignore[arg-type]

    def report(self) -> Report:
        trace: Any = self.traces.last
        if not isinstance(trace, TowerTrace):
            return Report()
        return tower_report(trace, self.blocks)
