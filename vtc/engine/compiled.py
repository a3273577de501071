"""torch.compile and hooks: graphs that were made before hooks came or went do not know of them."""

from __future__ import annotations

import sys


def forget_graphs() -> None:
    """Let compiled code be compiled anew, if any was: a graph holds the hooks that were there when it was made."""
    if "torch._dynamo" not in sys.modules:
        return
    import torch

    if torch._dynamo.utils.counters["frames"]["total"]:
        torch.compiler.reset()
        torch._dynamo.utils.counters["frames"].clear()
