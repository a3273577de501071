"""What half precision does to the max-min choice of DivPrune: `python -m vtc.eval.bench.half`.

The released code computes distances in the model's own dtype; vtc always in fp32. Here the released rule runs in fp32,
fp16 and bf16, and so does `vtc.DivPrune` on the same features rounded to fp16 and bf16; each choice is held against
that of `vtc.DivPrune` on features in fp32: Jaccard overlap, tokens in both over tokens in either. On the CPU, with
random features, and structured ones as a language model reads them. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from itertools import product
from statistics import fmean

import torch
from torch import Tensor

import vtc

CASES = ((576, 56), (576, 144), (2880, 288))  # LLaVA-1.5 at the paper's budget and at a quarter, LLaVA-NeXT
KINDS = ("random", "structured")
COLUMNS = (
    ("released", "float32"),
    ("released", "float16"),
    ("released", "bfloat16"),
    ("vtc", "float16"),
    ("vtc", "bfloat16"),
)
RANK, MASSIVE, SIZE = 64, 4, 40.0


def features(kind: str, tokens: int, width: int, seed: int) -> Tensor:
    """[tokens, width] in fp32: normal numbers, or a product of rank 64 with noise and four dimensions large in all.

    Unit variance but for those four, which have a mean of 40 and a spread of a tenth of it: tokens are alike, as behind
    a projector, with a cosine of 0.6 at a width of 4096.
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=g)
    if kind == "structured":
        low = torch.randn(tokens, RANK, generator=g) @ torch.randn(RANK, width, generator=g) / RANK**0.5
        x = 0.9 * low + 0.19**0.5 * x
        x[:, :MASSIVE] = SIZE + SIZE / 10 * torch.randn(tokens, MASSIVE, generator=g)
    return x


def released(x: Tensor, k: int) -> list[int]:
    """Max-min choice of `k` rows of x [N, D] as in vbdi/divprune@799e2d9, in x's own dtype: indices may repeat.

    Distances are 1 - cosine. The first row is the one whose second smallest distance is largest; then the row whose
    smallest distance to the chosen ones is largest, which nothing keeps from being a chosen one.
    """
    unit = x / x.norm(dim=1, keepdim=True)
    distance = 1 - unit @ unit.T
    chosen = [int(distance.kthvalue(2, dim=0).values.argmax())]
    nearest = distance[chosen[0]]
    while len(chosen) < k:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance[chosen[-1]])
    return chosen


def overlap(one: list[int], two: list[int]) -> float:
    """Jaccard overlap of two choices: 1 = the same set."""
    return len(set(one) & set(two)) / len(set(one) | set(two))


def measure(kind: str, tokens: int, k: int, width: int, seeds: int) -> dict[str, list[float]]:
    """ "rule, dtype" -> overlap with `vtc.DivPrune` in fp32, one number per seed; the released rule in fp32 first."""
    found: dict[str, list[float]] = {f"{rule}, {name}": [] for rule, name in COLUMNS}
    for seed in range(seeds):
        x = features(kind, tokens, width, seed)
        ours = vtc.select(vtc.DivPrune(keep=k), x).anchor.tolist()
        for rule, name in COLUMNS:
            rounded = x.to(getattr(torch, name))
            own = (
                released(rounded, k)
                if rule == "released"
                else vtc.select(vtc.DivPrune(keep=k), rounded).anchor.tolist()
            )
            found[f"{rule}, {name}"].append(overlap(ours, own))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096, help="of the features; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    given = parser.parse_args()
    for i, (kind, (tokens, k)) in enumerate(product(KINDS, CASES)):
        found = measure(kind, tokens, k, given.width, given.seeds)
        if not i:
            print("| features | tokens | kept |", " | ".join(found), "|")
            print("|---|---:|---:|" + "---|" * len(found))
        cells = [f"{fmean(x):.2f} ({min(x):.2f}–{max(x):.2f})" for x in found.values()]
        print(f"| {kind} | {tokens} | {k} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
