"""torch.compile and hooks: graphs that were made before hooks came or went do not know of them."""

from __future__ import annotations

import sys

OLD_GRAPH = (
    "this forward ran in a compiled graph that was made before vtc.wrap, so it could not be compressed: wrap first and "
    "compile then, or call torch.compiler.reset() after vtc.wrap."
)


def forget_graphs() -> None:
    """Let compiled code be compiled anew: a graph holds the hooks that were there when it was made.

    Where nothing was compiled this costs some microseconds.
    """
    if "torch._dynamo" in sys.modules:
        import torch

        torch.compiler.reset()
