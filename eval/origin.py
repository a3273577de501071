"""Which code made a run: runs of different code may differ where nothing else says so."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import vtc

_NAMED = 4  # runs that are named, of each version


@cache
def origin() -> dict[str, str | None]:
    """This code: its version and, in a git checkout of its own, its commit, with "-dirty" where files were changed."""
    root = Path(vtc.__file__).resolve().parents[1]
    commit = None
    if (root / ".git").exists():  # and not that of another project, which has this package somewhere within
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            commit = done.stdout.strip() or None
        except (OSError, subprocess.SubprocessError):  # no git here, or not one that this user may read with
            commit = None
    return {"vtc": vtc.__version__, "commit": commit}


def said(config: Mapping[str, Any]) -> str | None:
    """What a run's configuration says about the code that began it: "vtc 0.1.0 (commit 0123456789)"."""
    versions = config.get("how", {}).get("versions", {})
    if "vtc" not in versions:
        return None
    return f"vtc {versions['vtc']}" + (f" (commit {versions['commit']})" if versions.get("commit") else "")


def warning(names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence if runs, which are called `names`, come from different code."""
    found: dict[str, list[str]] = {}
    for name, config in zip(names, configs, strict=True):
        if (code := said(config)) is not None:
            found.setdefault(code, []).append(name)
    if len(found) < 2:
        return None
    parts = [
        f"{code} made {', '.join(own[:_NAMED])}" + (f" and {len(own) - _NAMED} more" if len(own) > _NAMED else "")
        for code, own in found.items()
    ]
    return f"rows come from different code, and may differ for that: {'; '.join(parts)}"
