"""What every training stage shares: optimisers, learning-rate schedule, log, and checkpoints that survive a kill."""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass
class Run:
    """Where a training writes, and how much of it to do."""

    out: Path
    seed: int = 0
    quick: bool = False
    device: str = "cpu"

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Run":
        """What a command line of `parser` asks for, on a GPU if there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(arguments.out, arguments.seed, arguments.quick, device)

    def steps(self, full: int) -> int:
        return 2 if self.quick else full

    def batch(self, full: int) -> int:
        return 2 if self.quick else full

    def log(self, **numbers: object) -> None:
        line = {k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items()}
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print("  ".join(f"{k} {v}" for k, v in line.items()), flush=True)


def parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """The command line of a training whose module says `doc`; `out` is where it writes unless told otherwise."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    made.add_argument("--out", type=Path, default=Path(out), help="checkpoints, log and the finished model")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick", action="store_true", help="two steps of every stage: shows that all of it runs")
    return made


def optimizers(modules: list[nn.Module], lr: float, weight_decay: float = 0.01) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers (about twice as fast here), AdamW for embeddings, heads, norms and biases."""
    matrices, others, seen = [], [], set()
    for module in modules:
        for name, p in module.named_parameters():
            if not p.requires_grad or id(p) in seen:
                continue
            seen.add(id(p))
            inside = p.ndim == 2 and ("layers." in name or "attn." in name or "mlp." in name) and "embed" not in name
            (matrices if inside else others).append(p)
    built: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    ]
    if matrices:
        built.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    for optimizer in built:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return built


def schedule(
    optimizers: list[torch.optim.Optimizer], step: int, steps: int, warmup: int = 100, floor: float = 0.03
) -> None:
    """Linear warm-up, then a cosine down to `floor` of the base rate."""
    rise = min(1.0, (step + 1) / max(1, min(warmup, steps // 5)))
    fall = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * rise * fall


class Checkpoint:
    """Step, modules and optimisers of one stage in one file, replaced atomically. `done` marks a finished stage."""

    def __init__(
        self,
        run: Run,
        stage: str,
        modules: dict[str, nn.Module],
        optimizers: list[torch.optim.Optimizer],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.file = run.out / f"{stage}.pt"
        self.modules, self.optimizers = modules, optimizers
        self.every = 1 if run.quick else 100
        self.clock, self.started = clock, clock()
        self.seconds = 0.0  # spent in earlier runs of this stage

    def load(self) -> tuple[int, bool]:
        """(first step still to do, whether the stage is finished)."""
        if not self.file.is_file():
            return 0, False
        saved = torch.load(self.file, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(saved[name])
        if not saved["done"]:
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        self.seconds = saved["seconds"]
        return saved["step"], saved["done"]

    def elapsed(self) -> float:
        return self.seconds + self.clock() - self.started

    def save(self, step: int, done: bool = False) -> None:
        state: dict = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"step": step, "done": done, "seconds": self.elapsed()}
        state["optimizers"] = [] if done else [o.state_dict() for o in self.optimizers]
        staging = self.file.with_suffix(".new")
        torch.save(state, staging)
        staging.replace(self.file)


def step_all(optimizers: list[torch.optim.Optimizer], modules: list[nn.Module], clip: float = 1.0) -> None:
    parameters = [p for m in modules for p in m.parameters() if p.grad is not None]
    nn.utils.clip_grad_norm_(parameters, clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
