"""The Triton kernels without a GPU: the tests of this folder in Triton's interpreter, and compilation for real ones."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


OPS = sorted(folder.name for folder in (HERE.parents[1] / "kernels").iterdir() if (folder / "triton.py").is_file())


@pytest.mark.parametrize("cells", ["not large", pytest.param("large", marks=pytest.mark.full)])
@pytest.mark.parametrize("ops", [OPS[::2], OPS[1::2]], ids=",".join)
def test_every_kernel_passes_its_ops_tests_in_the_interpreter(ops, cells):
    """By default without `large`: what no kernel runs for, or what smaller cells show, too, in less than minutes."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "VTC_KERNELS": "triton", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", cells, "--confcutdir", str(HERE)]
    files = [str(HERE / f"test_{op}.py") for op in ops]
    done = subprocess.run([*command, *files], env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@cache
def compiled_for(*kinds):
    """What `compile_kernels.py` printed of these dtypes: one dict per kernel and target."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(HERE / "compile_kernels.py"), *kinds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture
def compiled():
    return compiled_for("fp32", "bf16")


@pytest.mark.parametrize("kinds", [("fp32", "bf16"), pytest.param(("fp16",), marks=pytest.mark.full)])
def test_every_kernel_compiles_for_a100_and_h100_and_fits_the_registers(kinds):
    kernels = [line for line in compiled_for(*kinds) if "kernel" in line]
    assert {line["dtype"] for line in kernels} == set(kinds)
    assert {line["target"] for line in kernels} == {"sm_80", "sm_90"}
    for line in kernels:
        assert line["cubin"] > 0, line
        assert line["spills"] <= (64 if line["dtype"] == "fp32" else 16), line  # bytes; fp32 takes three products each
        assert line["registers"] <= 255, line


def test_half_precision_products_of_many_queries_are_hoppers_own(compiled):
    """WGMMA wants 64 rows; with fewer queries the smaller instruction does it."""
    attention = [line for line in compiled if "wgmma" in line and line["kernel"] in ATTENTION]
    assert {line["ROWS"] for line in attention} == {16, 64}
    for line in attention:
        assert bool(line["wgmma"]) == (line["ROWS"] == 64), line
        assert bool(line["mma"]) == (line["ROWS"] < 64), line


ATTENTION = ("normalisers", "_rows", "_columns")


def test_rows_of_the_gram_matrix_are_read_sixteen_bytes_at_a_time(compiled):
    """A step of a greedy choice reads one row, and waits for it."""
    steps = [line for line in compiled if "wide" in line and line["kernel"] in STEPS]
    assert {line["kernel"] for line in steps} == set(STEPS)
    for line in steps:
        assert line["wide"] > 0, line
        assert line["narrow"] <= 5, line  # single numbers


STEPS = ("_greedy", "_greedy_long", "_determinantal", "_suppression", "_coverage")


def test_a_picture_of_another_size_needs_no_other_variant(compiled):
    """Triton compiles anew, for a second, where a number is 1 or becomes a multiple of 16, unless it is told not to.

    Numbers that are not told so are rounded up to multiples of 16, beyond 1, by the functions that launch the kernel.
    """
    variants = [line for line in compiled if "variants" in line]
    assert len(variants) >= 12
    for line in variants:
        rounded = {"count", "targets"} if line["variants"] in ROUNDED else set()
        assert set(line["numbers"]) - set(line["free"]) <= rounded, line


#: whose wrappers fill up with rows that are not there (`to_sixteen`)
ROUNDED = ("_coverage", "_determinantal", "_greedy", "_greedy_long", "_nearest", "_suppression")


@pytest.mark.parametrize("n", [15, 16, 17])
def test_what_is_rounded_up_is_so(n):
    import torch

    from vtc.kernels.greedy_diversity.triton import to_sixteen

    x, weight = torch.ones(2, n, 3), torch.ones(2, n)
    lengths, more, (own, none) = to_sixteen(None, x, weight, None)
    wide = 16 if n < 17 else 32
    assert own is not None
    assert none is None
    assert (more.shape, own.shape) == ((2, wide, 3), (2, wide))
    assert more[:, n:].sum() == own[:, n:].sum() == 0
    assert (None if lengths is None else lengths.tolist()) == (None if n == 16 else [n, n])
