"""Lets torchvision be imported beside a CPU build of torch; the environment of `make test-vllm` runs this at its start.

There is no CPU build of torchvision, and that for CUDA does not load beside a CPU torch: its operators are missing, and
importing it fails where it describes two of them. Declared, without anything behind them, they let all else work, which
is what transformers wants of it. Where the operators load, nothing is declared.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class AfterExtension(MetaPathFinder):
    """Declares OPERATORS once `torchvision.extension` has tried to load them."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision.extension":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if not module._has_ops():
                declare()

        spec.loader.exec_module = exec_module
        return spec


def declare() -> None:
    """Make OPERATORS known to torch, for as long as the process lives."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        library.define(operator)
    sys.modules[__name__].__dict__["library"] = library  # it is taken back when nobody holds it


sys.meta_path.insert(0, AfterExtension())
