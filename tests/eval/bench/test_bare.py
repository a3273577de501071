"""`make bench-gpu` runs where there are only torch, transformers, triton, numpy, pytest, matplotlib and their needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BARE = """
import re, sys
from importlib import metadata
from importlib.machinery import PathFinder
from packaging.requirements import Requirement

wanted, dists = ["torch", "transformers", "triton", "numpy", "pytest", "matplotlib"], set()
while wanted:
    name = re.sub("[-_.]+", "-", wanted.pop()).lower()
    if name in dists or name == "typer":  # transformers' own commands want it, and with it rich
        continue
    dists.add(name)
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wanted.append(requirement.name)
tops = {file.parts[0].split(".")[0] for name in dists for file in metadata.files(name) or []}
allowed = tops | {*sys.stdlib_module_names, *sys.builtin_module_names, "vtc", "tests"}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in allowed or name.startswith("_sysconfigdata"):
            return super().find_spec(name, path, target)


sys.meta_path = [finder for finder in sys.meta_path if finder is not PathFinder and "editable" not in repr(finder)]
sys.meta_path.append(Bare)
sys.path.insert(0, ".")
"""
RUN = """
import torch
torch.set_num_threads(1)
from vtc.cli.main import main
from vtc.eval.bench import archs, model, ops, suites
from vtc.eval.bench.roofs import Roofs

ops.roofs = model.roofs = lambda device, dtype: Roofs(1e11, 1e10)  # measuring them takes seconds
ops.SHAPES = [("small", 40, 32, 4)]
archs.ARCHS["cpu-4x256"] = archs.Arch("llava", 2, 32, 2, 48, archs.SMALL_CLIP, picture=(112, 112))
suites.SHORT["cpu"] = [("cpu-4x256", 1, ("visionzip", "fastv"), [4])]
for kind, more in (
    ("ops", "--rounds 1 --seconds 60"),
    ("model", "--short --rounds 1 --seconds 60"),
    ("engine", "--sizes 2x64 --grid 4 --pairs 1 --steps 1 --seconds 60"),
):
    files = f"--csv {sys.argv[1]}/{kind}.csv --markdown {sys.argv[1]}/{kind}.md --plot {sys.argv[1]}/{kind}.png"
    assert main(f"--traceback bench {kind} --device cpu {more} {files}".split()) == 0, kind

import pytest
assert pytest.main(["-m", "gpu", "-p", "no:cacheprovider", "tests/kernels"]) == 0
"""
CHECK = """
for name in ("rich", "typer", "torchvision", "accelerate", "scipy", "pandas", "xdist"):
    assert name not in sys.modules, name
try:
    import rich
except ModuleNotFoundError:
    print("bare to the end")
"""


def test_the_gpu_path_imports_nothing_else(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", BARE + RUN + CHECK, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.endswith("bare to the end\n")
    made = {file.name for file in tmp_path.iterdir()}
    assert {f"{kind}.{ending}" for kind in ("ops", "model", "engine") for ending in ("csv", "md", "png")} <= made
