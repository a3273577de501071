"""The command that makes one run's numbers again, from the run's configuration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from vtc.eval.settings import BASELINES, BLIND, FULL, RANDOM

_MINUS = "-"


def command(config: Mapping[str, Any], timed: int = 0) -> str:
    """`vtc eval ...` for the row: one method at one budget, with the baselines that stand beside every method.

    The uncompressed model and the baselines need no method of their own; they are asked for through `random`. Where the
    questions are a file of the user's, its name stands for its path.

    Args:
        config: of the run, see `vtc.eval.runner`. timed: questions that were timed.

    Example: the run "dart(average=True)" at 192 of 750 questions of tiny is
    `vtc eval --model tiny-llava --data tiny --limit 750 --methods 'dart(average=True)' --keep 192 --timing 0`.
    """
    method, keep = config["method"], config["keep"]
    alone = method in (FULL, BLIND, *BASELINES)
    parts = ["vtc", "eval", "--model", config["model"], "--data", config["data"], "--limit", config["questions"]]
    parts += ["--methods", RANDOM if alone else method.replace(", ", ",")]
    parts += ["--keep", 0.5 if keep is None else keep]
    parts += ["--blind"] if method == BLIND else []
    for name in ("frames", "fps", "instruction", "max_new_tokens", "dtype"):
        if config.get(name):
            parts += [f"--{name.replace('_', _MINUS)}", config[name]]
    return shlex.join(map(str, [*parts, "--timing", timed]))


def versions(config: Mapping[str, Any]) -> str:
    """What made it: "vtc 0.1.0 (commit 0123456789), torch 2.15.0, transformers 5.24.0, float32 on x86_64"."""
    how = config.get("how", {})
    known = how.get("versions", {})
    commit = f" (commit {known['commit']})" if known.get("commit") else ""
    said = [f"vtc {known['vtc']}{commit}"] if "vtc" in known else []
    said += [f"{name} {known[name]}" for name in ("torch", "transformers") if name in known]
    said += [f"{how['dtype']} on {how['device']}"] if {"dtype", "device"} <= {*how} else []
    return ", ".join(said)
