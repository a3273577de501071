"""The one dispatcher: every op by name; the Triton kernel where it can run, else the reference.

`VTC_KERNELS=auto` (default) takes Triton for CUDA tensors where the op has a kernel. `reference` and `triton` force
one of them; a forced choice that cannot run raises with the reason. With TRITON_INTERPRET=1 `triton` runs on the CPU,
too, slowly, for tests.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import Tensor

__all__ = [
    "attention_rows",
    "dpc_knn",
    "greedy_diversity",
    "provider",
    "received_attention",
    "segment_sum",
    "transition",
]


@cache
def _load(op: str, kind: str) -> ModuleType | None:
    name = f"vtc.kernels.{op}.{kind}"
    return import_module(name) if find_spec(name) else None


def provider(op: str, tensor: Tensor) -> str:
    """Which implementation of `op` runs for `tensor`: "triton" or "reference"."""
    choice = os.environ.get("VTC_KERNELS", "auto")
    if choice not in ("auto", "reference", "triton"):
        raise ValueError(f"VTC_KERNELS={choice!r} is not one of auto, reference, triton.")
    if choice == "reference":
        return "reference"
    reason = None
    interpreted = choice == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if not tensor.is_cuda and not interpreted:
        reason = f"its input is on {tensor.device.type}, not on a CUDA device"
    elif find_spec("triton") is None:
        reason = "the package triton is not installed"
    elif find_spec(f"vtc.kernels.{op}.triton") is None:
        reason = "the op has no Triton kernel"
    if choice == "triton" and reason:
        raise RuntimeError(f"VTC_KERNELS=triton, but {op} cannot run in Triton: {reason}.")
    return "reference" if reason else "triton"


def _run(op: str, tensor: Tensor, *args: Any) -> Any:
    module = _load(op, provider(op, tensor))
    assert module is not None
    return getattr(module, op)(tensor, *args)


def attention_rows(q: Tensor, k: Tensor, scale: float, at: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
    """Softmax rows of a few queries over all keys, averaged over heads.

    Args:
        q: [B, H, R, d]. k: [B, G, N, d]; G divides H (grouped queries).
        at: LongTensor [B, R], the last key each query may see; -1 for a query that is not there. None = no limit.
        seen: BoolTensor [B, N], False for keys that nobody sees (padding).

    Returns:
        [B, R, N] in fp32; rows sum to 1, rows of absent queries are 0.
    """
    return _run("attention_rows", q, k, scale, at, seen)


def received_attention(
    q: Tensor, k: Tensor, scale: float, at: Tensor | None = None, seen: Tensor | None = None
) -> Tensor:
    """Attention each key receives, averaged over heads and queries: arguments as `attention_rows` -> [B, N]."""
    return _run("received_attention", q, k, scale, at, seen)


def dpc_knn(features: Tensor, clusters: int, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """Density-peaks clustering: features [N, D] -> centres LongTensor [clusters], member LongTensor [N] (which one)."""
    return _run("dpc_knn", features, clusters, neighbours)


def transition(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Ratio of norms |after| / |before| and cosine of each row: before, after [..., D] -> two tensors [...]."""
    return _run("transition", before, after)


def greedy_diversity(features: Tensor, k: int, mode: str = "maxmin", first: Tensor | None = None) -> Tensor:
    """Greedy choice of k mutually different tokens: features [B, N, D] -> LongTensor [B, k] in order of selection.

    Args:
        mode: "maxmin" takes the token farthest (in cosine distance) from its nearest chosen one (k-center, DivPrune);
            "maxsum" the one least similar to all chosen ones together (max-sum diversification, ToDRE).
        first: LongTensor [B], the first token; None takes the token whose nearest neighbour is farthest.
    """
    return _run("greedy_diversity", features, k, mode, first)


def segment_sum(x: Tensor, source: Tensor, weight: Tensor, segments: int) -> Tensor:
    """Weighted sum per segment: x [N, D], source [N] (-1 = nowhere), weight [N] -> [segments, D]."""
    return _run("segment_sum", x, source, weight, segments)
