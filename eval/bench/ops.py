"""Every op at the shapes of real models, by provider: Triton, the reference, a naive loop, torch.compile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops
from vtc.eval.bench.roofs import best_of, clock, roofs
from vtc.eval.bench.suites import OPS

LARGEST_ON_CPU = 4e10  # FLOPs of one call
ITERATIONS = 5  # of k-means

# (model, visual tokens, width, tokens kept): LLaVA-1.5 before and after the projector, LLaVA-NeXT, Qwen2.5-VL, video
SHAPES = [
    ("llava-1.5 tower", 576, 1024, 64),
    ("llava-1.5", 576, 4096, 64),
    ("llava-next tower", 2880, 1024, 288),
    ("llava-next", 2880, 4096, 288),
    ("qwen2.5-vl", 1296, 3584, 130),
    ("qwen2.5-vl 4k", 16_384, 3584, 1638),
    ("video", 23_328, 896, 2333),
]


@dataclass
class Case:
    """One op at one shape: ways to run it, and the least work it takes.

    `matmul` is what to be compared with: the Gram matrix (of the greedy choices), both products of every iteration
    (`kmeans`: tokens by centroids, membership by tokens), one half by the other (`bipartite_match`), membership by
    tokens (`segment_mean`).
    """

    op: str
    model: str
    shape: str
    flops: float
    moved: float  # bytes read and written at least
    run: dict[str, Callable[[], Any]]
    matmul: Callable[[], Any] | None = None  # matrix products that would do the arithmetic, and nothing else
    seconds: dict[str, list[float]] = field(default_factory=dict)


def cases(device: torch.device, dtype: torch.dtype, only: Sequence[str] = OPS) -> Iterator[Case]:
    """The ops `only` at all shapes that the device is up to."""
    makes = (
        *(_greedy, _coverage, _determinantal, _suppression, _kmeans, _bipartite),
        *(_segment_mean, _gather_rows, _transition, _attention, _received),
    )
    for model, n, d, k in SHAPES:
        random = torch.Generator().manual_seed(0)
        x = torch.randn(1, n, d, generator=random).to(device, dtype)
        for make in (make for op, make in zip(OPS, makes, strict=True) if op in only):
            case = make(model, x, k)
            if device.type == "cuda" or case.flops <= LARGEST_ON_CPU:
                yield case


def _providers(op: str, x: Tensor, call: Callable[[Any], Any], naive: Callable[[], Any], compiled: bool) -> dict:
    """`call` with each implementation of `op`, and its naive form."""
    reference = getattr(import_module(f"vtc.kernels.{op}.reference"), op)
    found: dict[str, Callable[[], Any]] = {"reference": lambda: call(reference), "naive": naive}
    if compiled:
        fast = torch.compile(reference)
        found["compile"] = lambda: call(fast)
    if ops.obstacle(op, x) is None:
        kernel = getattr(import_module(f"vtc.kernels.{op}.triton"), op)
        found = {"triton": lambda: call(kernel), **found}
    return found


def _shape(x: Tensor, *rest: object) -> str:
    return "x".join(map(str, (*x.shape[1:], *rest)))


def _greedy(model: str, x: Tensor, k: int) -> Case:
    n, d = x.shape[1:]

    def naive() -> Tensor:
        """As released codes do: distances of everything, then a minimum over the growing set in every step."""
        unit = F.normalize(x[0].float(), dim=-1)
        distance = 1 - unit @ unit.T
        chosen = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
        while len(chosen) < k:
            nearest = distance[torch.tensor(chosen, device=x.device)].amin(dim=0)
            chosen.append(int(nearest.argmax()))
        return torch.tensor(chosen)

    run = _providers("greedy_diversity", x, lambda op: op(x, k, "maxmin", None, None), naive, False)
    product = 2.0 * n * n * d
    wide = x[0].float() if x.device.type == "cpu" else x[0]
    moved = n * d * x.element_size() + 4.0 * n * n
    return Case("greedy_diversity", model, _shape(x, k), product, moved, run, lambda: wide @ wide.T)


def _weights(x: Tensor) -> Tensor:
    """[1, N], as attention gives them: few that are large."""
    return torch.rand(1, x.shape[1], generator=torch.Generator().manual_seed(1)).to(x.device) ** 4


def _choice(op: str, model: str, x: Tensor, k: int, call: Callable[[Any], Any], naive: Callable[[], Any]) -> Case:
    """A greedy choice by weight, whose least work is the Gram matrix."""
    n, d = x.shape[1:]
    wide = x[0].float() if x.device.type == "cpu" else x[0]
    moved = n * d * x.element_size() + 4.0 * n * n
    return Case(
        op, model, _shape(x, k), 2.0 * n * n * d, moved, _providers(op, x, call, naive, False), lambda: wide @ wide.T
    )


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def _coverage(model: str, x: Tensor, k: int) -> Case:
    weight = _weights(x)

    def naive() -> Tensor:
        """As released code does: the gains of all tokens anew in every step."""
        cover = _unit(x[0]) @ _unit(x[0]).T
        covered, score, chosen = torch.zeros_like(cover[0]), weight[0], []
        for _ in range(k):
            score = (cover - covered).clamp(min=0).sum(dim=1) * weight[0]
            score[chosen] = -1.0
            chosen.append(int(score.argmax()))
            covered = covered.maximum(cover[chosen[-1]])
        return torch.tensor(chosen)

    return _choice("greedy_coverage", model, x, k, lambda op: op(_unit(x) @ _unit(x).mT, k, weight), naive)


def _determinantal(model: str, x: Tensor, k: int) -> Case:
    weight = _weights(x)

    def naive() -> Tensor:
        """As released code does: a column of the Cholesky factor for every step, from the whole matrix."""
        rows = _unit(x[0]) * weight[0, :, None]
        product = rows @ rows.T
        left, factor, chosen = product.diagonal().clone(), torch.zeros(k, len(rows), device=x.device), []
        for step in range(k):
            pick = int(left.argmax())
            row = product[pick] - factor[:step, pick] @ factor[:step]
            factor[step] = row / left[pick].clamp(min=1e-12).sqrt()
            left = left - factor[step].square()
            left[pick] = -torch.inf
            chosen.append(pick)
        return torch.tensor(chosen)

    return _choice("greedy_determinantal", model, x, k, lambda op: op(x, k, weight), naive)


def _suppression(model: str, x: Tensor, k: int) -> Case:
    weight, above = _weights(x), torch.full((1,), 0.1, device=x.device)

    def naive() -> Tensor:
        rows, chosen = _unit(x[0]), []
        like = rows @ rows.T > above
        left = weight[0].clone()
        for _ in range(k):
            chosen.append(int(left.argmax()))
            left = torch.where(like[chosen[-1]], left - 2, left)
            left[chosen[-1]] = -torch.inf
        return torch.tensor(chosen)

    return _choice("greedy_suppression", model, x, k, lambda op: op(x, k, weight, above), naive)


def _kmeans(model: str, x: Tensor, k: int) -> Case:
    n, d = x.shape[1:]
    k = 32

    def naive() -> Tensor:
        unit = F.normalize(x[0].float(), dim=-1)
        centroids = unit[torch.linspace(0, n - 1, k, device=x.device).long()]
        label = torch.zeros(n)
        for _ in range(ITERATIONS):
            label = (unit @ F.normalize(centroids, dim=-1).T).argmax(dim=1)
            for i in range(k):
                if bool((label == i).any()):
                    centroids[i] = unit[label == i].mean(dim=0)
        return label

    run = _providers("kmeans", x, lambda op: op(x, k, "cosine", ITERATIONS, None), naive, False)
    left, right = x[0].float(), torch.randn(d, k, device=x.device)
    member = torch.randn(k, n, device=x.device)

    def matmul() -> None:
        for _ in range(ITERATIONS):
            left @ right, member @ left

    moved = 2.0 * ITERATIONS * n * d * 4
    return Case("kmeans", model, _shape(x, k), 4.0 * ITERATIONS * n * d * k, moved, run, matmul)


def _bipartite(model: str, x: Tensor, k: int) -> Case:
    n, d = x.shape[1:]
    r = n // 2 - n // 20
    many, lengths = torch.tensor([r], device=x.device), torch.tensor([n], device=x.device)

    def naive() -> Tensor:
        unit = F.normalize(x[0].float(), dim=-1)
        scores = unit @ unit.T
        best, where = scores[0::2, 1::2].max(dim=1)
        order = best.argsort(descending=True)[:r]
        return where[order]

    run = _providers("bipartite_match", x, lambda op: op(x, many, None, lengths), naive, False)
    left, right = x[0, 0::2].float(), x[0, 1::2].float()
    product = 2.0 * left.shape[0] * right.shape[0] * d
    return Case("bipartite_match", model, _shape(x, r), product, n * d * 4.0, run, lambda: left @ right.T)


def _segment_mean(model: str, x: Tensor, k: int) -> Case:
    n, d = x.shape[1:]
    source = torch.randint(0, k, (n,), generator=torch.Generator().manual_seed(1)).to(x.device)
    member = F.one_hot(source, k).T.float()
    weight = torch.ones(n, device=x.device) / member.sum(dim=1)[source]
    flat, wide = x[0], x[0].float()

    def naive() -> list[Tensor]:
        return [flat[source == i].mean(dim=0) for i in range(k)]

    run = _providers("segment_sum", x, lambda op: op(flat, source, weight, k), naive, False)
    moved = (n + k) * d * x.element_size()
    return Case("segment_mean", model, _shape(x, k), 2.0 * n * d, moved, run, lambda: member @ wide)


def _gather_rows(model: str, x: Tensor, k: int) -> Case:
    n, d = x.shape[1:]
    index = torch.randperm(n, generator=torch.Generator().manual_seed(1))[:k].sort().values.to(x.device)[None]
    cos, sin = torch.randn(2, 1, n, 128, device=x.device).to(x.dtype)
    mask = torch.ones(1, n, dtype=torch.bool, device=x.device)
    tensors = [x, cos, sin, mask]
    run = _providers("gather_rows", x, lambda op: op(index, tensors), lambda: [t[:, index[0]] for t in tensors], False)
    moved = 2.0 * k * ((d + 256) * x.element_size() + 1)
    return Case("gather_rows", model, _shape(x, k), 0.0, moved, run)


def _transition(model: str, x: Tensor, k: int) -> Case:
    after = x.flip(1).contiguous()

    def naive() -> tuple[Tensor, Tensor]:
        return after.float().norm(dim=-1) / x.float().norm(dim=-1), F.cosine_similarity(
            x.float(), after.float(), dim=-1
        )

    run = _providers("transition", x, lambda op: op(x, after), naive, x.is_cuda)
    return Case("transition", model, _shape(x), 6.0 * x.numel(), 2.0 * x.numel() * x.element_size(), run)


def _heads(x: Tensor, queries: int) -> tuple[Tensor, Tensor, float]:
    """q [1, 32, R, 128] and k [1, 32, N, 128], as of a 7B language model."""
    random = torch.Generator().manual_seed(1)
    q = torch.randn(1, 32, queries, 128, generator=random).to(x.device, x.dtype)
    return q, torch.randn(1, 32, x.shape[1], 128, generator=random).to(x.device, x.dtype), 128**-0.5


def _attention(model: str, x: Tensor, k: int) -> Case:
    q, keys, scale = _heads(x, 32)

    def naive() -> Tensor:
        return (q.float() @ keys.float().mT * scale).softmax(dim=-1).mean(dim=1)

    run = _providers("attention_rows", x, lambda op: op(q, keys, scale, None, None), naive, False)
    shape = f"32 heads x 32 x {x.shape[1]} x 128"
    moved = keys.numel() * x.element_size() + 4.0 * 32 * x.shape[1]
    return Case("attention_rows", model, shape, 2.0 * 32 * keys.numel(), moved, run)


def _received(model: str, x: Tensor, k: int) -> Case:
    q, keys, scale = _heads(x, x.shape[1])

    def naive() -> Tensor:
        return (q.float() @ keys.float().mT * scale).softmax(dim=-1).mean(dim=(1, 2))

    run = _providers("received_attention", x, lambda op: op(q, keys, scale, None, None), naive, False)
    if x.shape[1] > 4096:
        run.pop("naive")  # 32 heads of N x N do not fit
    shape = f"32 heads x {x.shape[1]} x {x.shape[1]} x 128"
    moved = 2.0 * keys.numel() * x.element_size()
    return Case("received_attention", model, shape, 2.0 * x.shape[1] * keys.numel(), moved, run)


@torch.inference_mode()
def measure(
    device: torch.device,
    dtype: torch.dtype,
    only: Sequence[str] = (),
    rounds: int = 5,
    seconds: float | None = None,
) -> Iterator[Case]:
    """Time every case, providers in turn within a round; a slow one fewer times than `rounds`, but once.

    Args:
        seconds: for everything together; each case has an equal share of what is left, and when it has all gone no
            case begins. None = 20 for a case.
    """
    began, wanted = time.perf_counter(), only or OPS
    left = len(wanted) * len(SHAPES)
    for case in cases(device, dtype, wanted):
        share = 20.0 if seconds is None else (began + seconds - time.perf_counter()) / left
        if share <= 0:
            return
        left -= 1
        runs = dict(case.run) | ({"matmul": case.matmul} if case.matmul else {})
        case.seconds = {name: [] for name in runs}
        first = {name: best_of(run, device, 1)[0] for name, run in runs.items()}
        for _ in range(rounds):
            for name, run in runs.items():
                if sum(case.seconds[name]) + first[name] < share / len(runs) or not case.seconds[name]:
                    case.seconds[name].append(clock(run, device))
        yield case


def rows(case: Case, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row per provider: milliseconds, share of the roof, and how it compares with the matmul and the naive loop."""
    roof = roofs(device, dtype)
    least = roof.seconds(case.flops, case.moved)
    found = []
    naive = statistics.median(case.seconds["naive"]) if "naive" in case.seconds else None
    matmul = statistics.median(case.seconds["matmul"]) if "matmul" in case.seconds else None
    for provider, seconds in case.seconds.items():
        if provider == "matmul":
            continue
        middle = statistics.median(seconds)
        found.append(
            {
                "op": case.op,
                "model": case.model,
                "shape": case.shape,
                "dtype": str(dtype).removeprefix("torch."),
                "provider": provider,
                "ms": round(1000 * middle, 4),
                "ms_min": round(1000 * min(seconds), 4),
                "ms_max": round(1000 * max(seconds), 4),
                "rounds": len(seconds),
                "gflops_per_s": round(case.flops / middle / 1e9, 1),
                "gbytes_per_s": round(case.moved / middle / 1e9, 1),
                "of_roof": round(least / middle, 3),
                "over_matmul": "" if matmul is None else round(middle / matmul, 3),
                "times_naive": "" if naive is None else round(naive / middle, 2),
            }
        )
    return found


COLUMNS = {
    "op": "op",
    "shape": "shape",
    "provider": "provider",
    "ms": "ms",
    "of_roof": "of the roof",
    "over_matmul": "× its matmul",
    "times_naive": "faster than naive",
}


def cells(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Printed cells of rows."""
    shown = []
    for row in found:
        own = {name: str(row[name]) for name in COLUMNS}
        own["ms"] = f"{row['ms']:.3g}" if row["ms"] < 1000 else f"{row['ms']:.0f}"
        own["of_roof"] = f"{100 * row['of_roof']:.0f} %"
        own["over_matmul"] = f"{row['over_matmul']:.2f}" if row["over_matmul"] != "" else ""
        own["times_naive"] = f"{row['times_naive']:.1f}×" if row["times_naive"] != "" else ""
        shown.append(list(own.values()))
    return shown


def plot(found: Sequence[dict[str, Any]], file: Any) -> None:
    """Milliseconds by shape, one panel per op, one line per provider."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["op"] for row in found))
    columns = 4
    figure = Figure(figsize=(4.2 * columns, 3.4 * -(-len(names) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.axis("off")
    for axes, op in zip(panels, names, strict=False):
        own = [row for row in found if row["op"] == op]
        models = list(dict.fromkeys(row["model"] for row in own))
        for provider in ("triton", "reference", "compile", "naive"):
            points = [row for row in own if row["provider"] == provider]
            if points:
                place = [models.index(row["model"]) for row in points]
                axes.plot(place, [row["ms"] for row in points], marker="o", markersize=4, label=provider)
        axes.set_yscale("log")
        axes.set_xticks(range(len(models)), models, rotation=30, ha="right", fontsize="small")
        axes.set_title(op, fontsize="medium")
        axes.set_ylabel("ms")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(file, dpi=100)
