"""What `vtc bench` measures unless it is told: ops, methods, models. No torch."""

from __future__ import annotations

from collections.abc import Sequence

OPS = (
    "greedy_diversity",
    "greedy_coverage",
    "greedy_determinantal",
    "greedy_suppression",
    "kmeans",
    "bipartite_match",
    "segment_mean",
    "gather_rows",
    "transition",
    "attention_rows",
    "received_attention",
)
SIZES = (576, 1152, 2304, 4608, 9216, 18_432, 36_864, 73_728, 131_040)  # tokens whose choice `ops --growth` times
SCOPED = ("divprune(scope=frame)", "todre(scope=frame)", "tome(scope=frame)", "pitome(scope=frame)")
FRAME = 144  # of them in a frame, 12 x 12
FEW = ("random", "vtc-cls", "divprune", "todre", "visionzip", "fastv", "sparsevlm", "transprune", "h2o")
VIDEO = ("random", "uniform-frames", "evs", "dycoke", "framefusion", "prunevid", "quota", "divprune", "transprune")
STEPWISE = ("dycoke(p=None)", "dycoke")  # DyCoke without and with its choice in every decode step
SHARED = ("divprune", "vtc-cls", "fastv", "h2o")  # one of each stage, and one that listens to the tower
TOWERS = ("clip-l-336", "siglip-so400m", "qwen2.5-vl-1296", "qwen2.5-vl-16384")
ALL = ()
# Without --arch: (architecture, batch, methods, keeps). What a device runs in minutes.
SUITES: dict[str, list[tuple[str, int, Sequence[str], list[int | float]]]] = {
    "cpu": [
        ("cpu-24x1024", 1, ALL, [64]),
        ("cpu-next", 1, FEW, [288]),
        ("cpu-qwen2.5-vl", 1, FEW, [130]),
        ("cpu-qwen2.5-vl", 8, FEW[:4], [130]),
        ("cpu-video", 1, VIDEO, [0.1]),
        ("cpu-decode", 1, STEPWISE, [0.475]),
    ],
    "cuda": [
        ("llava-1.5-7b", 1, ALL, [192, 64]),
        ("llava-1.5-7b", 8, FEW, [64]),
        ("llava-1.5-7b", 32, FEW, [64]),
        ("llava-1.5-13b", 1, FEW, [64]),
        ("llava-next-7b", 1, FEW, [320, 288]),
        ("llava-next-7b", 8, FEW, [288]),
        ("qwen2.5-vl-7b", 1, FEW, [130]),
        ("qwen2.5-vl-7b", 32, FEW[:4], [130]),
        ("llava-onevision-7b", 1, FEW, [0.1]),
        ("llava-onevision-0.5b-64", 1, VIDEO, [0.1]),
        ("llava-onevision-0.5b-119", 1, VIDEO, [32]),
        ("llava-onevision-7b-64", 1, VIDEO, [0.1]),
        ("llava-onevision-7b-64", 1, STEPWISE, [0.475]),
        ("llava-onevision-7b-119", 1, VIDEO, [0.1]),
        ("qwen2.5-vl-7b-video", 1, VIDEO, [0.1]),
        ("qwen2.5-vl-7b-video", 1, STEPWISE, [0.475]),
    ],
}
# With --short: what a GPU that is lent for a few minutes shows, and the same path on a CPU.
SHORT: dict[str, list[tuple[str, int, Sequence[str], list[int | float]]]] = {
    "cpu": [("cpu-4x256", 1, ("divprune", "fastv", "h2o"), [64]), ("cpu-video", 1, STEPWISE, [0.475])],
    "cuda": [
        ("llava-1.5-7b", 1, FEW, [64]),
        ("llava-1.5-7b", 32, FEW[:6], [64]),
        ("llava-next-7b", 1, FEW, [288]),
        ("llava-next-7b", 8, FEW[:6], [288]),
        ("qwen2.5-vl-7b-video", 1, (*STEPWISE, "divprune", "evs"), [0.475, 0.1]),
    ],
}
