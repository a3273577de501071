"""The one dispatcher: every op by name; the Triton kernel where it can run, else the reference.

`VTC_KERNELS=auto` (default) takes Triton for CUDA tensors where the op has a kernel that was measured to be faster
there (docs/speed.md). `reference` and `triton` force one of them; a forced choice that cannot run raises with the
reason. With TRITON_INTERPRET=1 `triton` runs on the CPU, too, slowly, for tests.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vtc.transfer import upload

__all__ = [
    "attention_rows",
    "bipartite_match",
    "bipartite_pairs",
    "dpc_knn",
    "energy",
    "gather_rows",
    "greedy_coverage",
    "greedy_determinantal",
    "greedy_diversity",
    "greedy_suppression",
    "kmeans",
    "nearest",
    "passed_attention",
    "provider",
    "received_attention",
    "segment_mean",
    "segment_sum",
    "transition",
]


#: one launch of Triton takes the host longer than the few launches that it stands for; a CUDA graph has one instead
NOT_FASTER = ("gather_rows",)


@cache
def _there(name: str) -> bool:
    return find_spec(name) is not None


@cache
def _load(op: str, kind: str) -> ModuleType | None:
    name = f"vtc.kernels.{op}.{kind}"
    return import_module(name) if _there(name) else None


def obstacle(op: str, tensor: Tensor, interpreted: bool = False) -> str | None:
    """Why the Triton kernel of `op` cannot run for `tensor`; None where it can."""
    if not tensor.is_cuda and not interpreted:
        return f"its input is on {tensor.device.type}, not on a CUDA device"
    if not _there("triton"):
        return "the package triton is not installed"
    return None if _there(f"vtc.kernels.{op}.triton") else "the op has no Triton kernel"


def provider(op: str, tensor: Tensor) -> str:
    """Which implementation of `op` runs for `tensor`: "triton" or "reference"."""
    choice = os.environ.get("VTC_KERNELS", "auto")
    if choice not in ("auto", "reference", "triton"):
        raise ValueError(f"VTC_KERNELS={choice!r} is not one of auto, reference, triton.")
    if choice == "reference" or (choice == "auto" and op in NOT_FASTER):
        return "reference"
    reason = obstacle(op, tensor, choice == "triton" and os.environ.get("TRITON_INTERPRET") == "1")
    if choice == "triton" and reason:
        raise RuntimeError(f"VTC_KERNELS=triton, but {op} cannot run in Triton: {reason}.")
    return "reference" if reason else "triton"


def reference(op: str) -> Any:
    """The definition of an op, which runs anywhere and has gradients where that makes sense."""
    module = _load(op, "reference")
    assert module is not None
    return getattr(module, op)


def _learning(x: Tensor) -> bool:
    """Whether a gradient is wanted, which kernels do not have."""
    return x.requires_grad and torch.is_grad_enabled()


def _run(op: str, tensor: Tensor, *args: Any) -> Any:
    kind = provider(op, tensor)
    module = _load(op, kind)
    assert module is not None
    run = getattr(module, op)
    if kind == "triton" and tensor.is_cuda:  # Triton launches on the current device, wherever the tensors are
        with torch.cuda.device(tensor.device):
            return run(tensor, *args)
    return run(tensor, *args)


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


def passed_attention(q: Tensor, k: Tensor, scale: float, weight: Tensor, times: int = 1) -> Tensor:
    """What each key collects of the weights that queries hand out, head by head: q [B, H, R, d], k [B, H, N, d],
    weight [B, H, R] -> [B, H, N] in fp32, the sum over queries of weight * softmax; `times` over, what comes out
    being the next weight (R = N)."""
    return _run("passed_attention", q.detach(), k.detach(), scale, weight, times)


def dpc_knn(features: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Density-peaks clustering: features [N, D] -> centres LongTensor [clusters], member LongTensor [N] (which one).

    Args:
        neighbours: how many nearest tokens, itself included, a token's density is read from; papers differ in it.
    """
    return _run("dpc_knn", features, clusters, neighbours)


def transition(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Ratio of norms |after| / |before| and cosine of each row: before, after [..., D] -> two tensors [...]."""
    return _run("transition", before, after)


def greedy_diversity(
    features: Tensor, k: int, mode: str, first: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Greedy choice of k mutually different tokens: features [B, N, D] -> LongTensor [B, k] in order of selection.

    Args:
        mode: "maxmin" takes the token farthest (in cosine distance) from its nearest chosen one (k-center, DivPrune);
            "maxsum" the one least similar to all chosen ones together (max-sum diversification, ToDRE).
        first: LongTensor [B], the first token; None takes the token whose nearest neighbour is farthest.
        lengths: LongTensor [B], tokens of each picture, for pictures of different sizes in one batch; what fills up
            the others is chosen last. The first j of k chosen are what k = j would choose.
    """
    if mode not in ("maxmin", "maxsum"):
        raise ValueError(f'mode={mode!r} is not one of "maxmin", "maxsum".')
    if not 1 <= k <= features.shape[1]:
        raise ValueError(f"k={k} of {features.shape[1]} tokens: choose at least 1 and at most all.")
    return _run("greedy_diversity", features.detach(), k, mode, first, lengths)


def _check_choice(k: int, given: Tensor, weight: Tensor | None) -> None:
    """Raise ValueError if k of the tokens of `given` [B, N, ...] cannot be chosen by weight [B, N]."""
    if not 1 <= k <= given.shape[1]:
        raise ValueError(f"k={k} of {given.shape[1]} tokens: choose at least 1 and at most all.")
    if weight is not None and weight.shape != given.shape[:2]:
        wanted, shape = tuple(given.shape[:2]), tuple(weight.shape)
        raise ValueError(f"weight has shape {shape}; expected one number per token, {wanted}.")


def greedy_coverage(cover: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """Greedy choice of k tokens that stand for all (facility location): LongTensor [B, k], in order of selection.

    A target is covered as well as its best chosen token covers it. Each step takes the token that adds most to the sum
    over all targets, times its weight; ties go to the lowest index. The first j of k chosen are what k = j would
    choose, as of all greedy ops here.

    Args:
        cover: [B, N, M], how well each token covers each target, such as cosines; below 0, and no number, is 0.
        weight: [B, N], at least 0; None = all alike.
        lengths: LongTensor [B], tokens of each picture; what fills up the others is chosen last, and should cover
            nothing, nor be covered.
    """
    _check_choice(k, cover, weight)
    return _run("greedy_coverage", cover.detach(), k, weight, lengths)


def greedy_determinantal(
    features: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Greedy choice of k tokens that are important and span much (MAP of a determinantal point process).

    features [B, N, D] -> LongTensor [B, k], in order of selection. Each step takes the token that makes the determinant
    of L_ij = weight_i cosine_ij weight_j, on what is chosen, largest (arXiv 1709.05135, algorithm 1). Beyond the rank
    of the features the tokens of highest weight follow; ties go to the lowest index.

    Args:
        weight: [B, N], at least 0; None = all alike.
        lengths: LongTensor [B], tokens of each picture; what fills up the others is chosen last.
    """
    _check_choice(k, features, weight)
    return _run("greedy_determinantal", features.detach(), k, weight, lengths)


def greedy_suppression(
    features: Tensor,
    k: int,
    weight: Tensor,
    threshold: float | Tensor,
    group: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Greedy choice of k tokens by falling weight, those like a chosen one last (non-maximum suppression).

    features [B, N, D] -> (LongTensor [B, k] in order of selection, LongTensor [B], how many of them are like none
    before). Ties go to the lowest index; a weight of NaN is lowest.

    Args:
        weight: [B, N].
        threshold: cosine above which tokens are alike; for all pictures or [B].
        group: LongTensor [B, N], at least 0: only tokens of one group are compared; None = all.
        lengths: LongTensor [B], tokens of each picture; what fills up the others is chosen last.
    """
    _check_choice(k, features, weight)
    above = torch.as_tensor(threshold, dtype=torch.float32, device=features.device).expand(len(features)).contiguous()
    return _run("greedy_suppression", features.detach(), k, weight, above, group, lengths)


def kmeans(
    features: Tensor, k: int, metric: str, iterations: int = 100, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """k-means without chance: features [B, N, D] -> (centroids [B, k, D] in fp32, label LongTensor [B, N]).

    Lloyd's iterations until no label changes, from k-means++ seeds at fixed quantiles. An empty cluster keeps its
    centroid; ties go to the lowest label; zero rows and rows that are no numbers count as 0.

    Args:
        metric: "cosine" (centroids are means of unit rows) or "euclidean".
        lengths: LongTensor [B], tokens of each picture; the label behind them is -1.
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f'metric={metric!r} is not one of "cosine", "euclidean".')
    if k < 1 or not features.shape[1]:
        raise ValueError(f"k={k} clusters of {features.shape[1]} tokens: both must be at least 1.")
    return _run("kmeans", features.detach(), k, metric, iterations, lengths)


def bipartite_match(
    features: Tensor, r: int | Tensor, margin: float | None, lengths: Tensor | None = None, protected: int = 0
) -> Tensor:
    """Which tokens to merge: features [B, N, D] -> LongTensor [B, N], the token each one joins (itself if it stays).

    Args:
        r: tokens that are merged away, for all pictures or LongTensor [B]; at most half of a picture's.
        margin: None takes the r best pairs of even and odd tokens (ToMe, arXiv 2210.09461, section 3). A number takes
            the 2r tokens of highest energy, which every second one of joins its most similar other one (PiToMe, arXiv
            2405.16148, section 3.2): the mean over all tokens of ELU(cosine - margin).
        lengths: LongTensor [B], tokens of each picture; what fills up the others joins nobody.
        protected: without a margin, how many of each picture's first tokens (CLS) neither join nor are joined; they are
            counted when every second token is taken, but not among those of which at most half go.
    """
    b, n, _ = features.shape
    lengths = torch.full((b,), n) if lengths is None else lengths
    r = torch.full((b,), r) if isinstance(r, int) else r
    if bool((r < 0).any()) or bool((2 * r.to(lengths.device) > lengths - protected).any()):
        raise ValueError(f"r={r.tolist()} of {lengths.tolist()} tokens: at most half of them can be merged away.")
    return _run("bipartite_match", features.detach(), r, margin, upload(lengths, features.device), protected)


def energy(features: Tensor, margin: float) -> Tensor:
    """How crowded each token's surroundings are (PiToMe's energy): the mean over all tokens of ELU(cosine - margin).

    Features [B, N, D] -> [B, N] in fp64, rounded so that what is equal but for rounding is equal.
    """
    module = _load("bipartite_match", "reference")
    assert module is not None
    x, scale = module.numbers(features.detach(), exact=True)
    lengths = torch.full((len(x),), x.shape[1], device=x.device)
    return (module.energy(x, scale, margin, lengths) * 2**28).round() / 2**28


def nearest(features: Tensor, others: Tensor) -> Tensor:
    """Which of `others` [B, M, D] each of features [B, N, D] is most like, by cosine: LongTensor [B, N]; ties: the
    lowest."""
    module = _load("bipartite_match", "reference")
    assert module is not None
    x, _ = module.numbers(features.detach(), exact=True)
    y, scale = module.numbers(others.detach(), exact=True)
    return module.nearest(x, y, scale, torch.full((len(y),), y.shape[1], device=y.device))[1]


def bipartite_pairs(features: Tensor, protected: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of which `bipartite_match` takes the best (ToMe's): features [B, N, D], N >= 2.

    Args:
        protected: as there.

    Returns:
        LongTensors [B, ceil(N / 2)]: every second token, the other one that is most similar to it, and its rank, 0 for
        the most similar pair.
    """
    b, n, _ = features.shape
    module = _load("bipartite_match", "reference")
    assert module is not None
    return module.bipartite_pairs(features.detach(), torch.full((b,), n, device=features.device), protected)


def gather_rows(index: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same rows of several tensors in one launch: index [B, S]; tensors [B or 1, N, ...] -> [B, S, ...] each."""
    if any(_learning(x) for x in tensors):
        return reference("gather_rows")(index, tensors)
    return _run("gather_rows", index, tensors)


def segment_sum(x: Tensor, source: Tensor, weight: Tensor, segments: int) -> Tensor:
    """Weighted sum per segment: x [N, D], source [N] (-1 = nowhere), weight [N] -> [segments, D]."""
    if _learning(x):
        return reference("segment_sum")(x, source, weight, segments)
    return _run("segment_sum", x, source, weight, segments)


def segment_mean(x: Tensor, source: Tensor, segments: int, weight: Tensor | None = None) -> Tensor:
    """Weighted mean per segment, 0 where nothing falls: arguments as `segment_sum`; no weight = all alike."""
    weight = torch.ones(len(x), device=x.device) if weight is None else weight.float()
    total = segment_sum(weight[:, None], source, torch.ones_like(weight), segments)[:, 0]
    share = torch.where(source >= 0, weight / total[source.clamp(min=0)], 0.0)
    return segment_sum(x, source, share, segments)
