"""The machine: what it is, and how fast it multiplies and copies at best — the roofs that results are held against."""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch


@dataclass(frozen=True)
class Roofs:
    """flops: multiply-adds counted twice, per second, of a large matmul; bandwidth: bytes read plus written per second
    of a large copy."""

    flops: float
    bandwidth: float

    def seconds(self, flops: float, moved: float) -> float:
        """Least time for that many FLOPs and bytes, whichever takes longer."""
        return max(flops / self.flops, moved / self.bandwidth)


def clock(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `run` takes, the device's own work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def best_of(run: Callable[[], Any], device: torch.device, rounds: int) -> list[float]:
    """Seconds of `rounds` runs, after one that does not count."""
    run()
    return [clock(run, device) for _ in range(rounds)]


@cache
def roofs(device: torch.device, dtype: torch.dtype) -> Roofs:
    """Measured in this process, so that shares of a roof are shares of what this machine gives today."""
    cuda = device.type == "cuda"
    side, size = (8192, 2**28) if cuda else (1536, 2**25)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.empty(size, dtype=torch.float32, device=device).zero_()
    target = torch.empty_like(source).zero_()
    product = statistics.median(best_of(lambda: a @ b, device, 5))
    copy = statistics.median(best_of(lambda: target.copy_(source), device, 5))
    return Roofs(2 * side**3 / product, 2 * source.nbytes / copy)


def machine(device: torch.device) -> dict[str, str]:
    """Columns of every CSV row: date, device and versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "date": datetime.date.today().isoformat(),
        "device": name,
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "triton": _version("triton"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
