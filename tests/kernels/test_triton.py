"""The Triton kernels without a GPU: the tests of this folder in Triton's interpreter, and compilation for real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


def test_every_kernel_passes_its_ops_tests_in_the_interpreter():
    ops = [folder.name for folder in (HERE.parents[1] / "kernels").iterdir() if (folder / "triton.py").is_file()]
    files = [str(HERE / f"test_{op}.py") for op in sorted(ops)]
    assert files
    environment = {**os.environ, "TRITON_INTERPRET": "1", "VTC_KERNELS": "triton", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def compiled():
    """What `compile_kernels.py` printed: one dict per kernel and target."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(HERE / "compile_kernels.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_every_kernel_compiles_for_a100_and_h100_and_fits_the_registers(compiled):
    assert {line["target"] for line in compiled} == {"sm_80", "sm_90"}
    for line in compiled:
        assert line["cubin"] > 0, line
        assert line["spills"] <= (64 if line["dtype"] == "fp32" else 16), line  # bytes; fp32 takes three products each
        assert line["registers"] <= 255, line
