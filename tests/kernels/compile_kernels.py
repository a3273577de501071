"""Compiles every Triton kernel for sm_80 and sm_90 without a GPU; prints what each needs, one JSON object per line.

`python tests/kernels/compile_kernels.py fp32 bf16` compiles those of these dtypes; by default all three.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vtc.kernels.attention_rows import triton as attention_rows
from vtc.kernels.gather_rows import triton as gather_rows
from vtc.kernels.greedy_coverage import triton as greedy_coverage
from vtc.kernels.greedy_determinantal import triton as greedy_determinantal
from vtc.kernels.greedy_diversity import triton as greedy_diversity
from vtc.kernels.greedy_suppression import triton as greedy_suppression
from vtc.kernels.received_attention import triton as received_attention
from vtc.kernels.segment_sum import triton as segment_sum
from vtc.kernels.transition import triton as transition


class Kernel(NamedTuple):
    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4


def kernels(kind: str) -> list[Kernel]:
    """Every kernel, as it is launched for inputs of one dtype."""
    numbers = dict(queries="i32", count="i32", share="i32", groups="i32", heads="i32", size="i32", scale="fp32")
    attention = dict(q=f"*{kind}", k=f"*{kind}", at="*i64", seen="*u8", since="*i64", lse="*fp32") | numbers
    pair = dict(before=f"*{kind}", after=f"*{kind}", ratio="*fp32", cosine="*fp32", size="i32")
    rows = dict(x=f"*{kind}", order="*i64", weight="*fp32", offset="*i64", out=f"*{kind}", size="i32")
    words = {"fp32": "*i32", "bf16": "*i16", "fp16": "*i16"}[kind]
    copies = {f"{name}{i}": words for name in ("x", "out") for i in range(4)} | {f"size{i}": "i32" for i in range(4)}
    shared = {f"SHARED{i}": i == 1 for i in range(4)}
    found = [
        Kernel(transition._transition, pair, dict(BLOCK=1024)),
        Kernel(segment_sum._segment_sum, rows, dict(BLOCK=256)),
        *choices(kind),
        Kernel(
            gather_rows._gather,
            dict(index="*i64", count="i32", slots="i32") | copies,
            shared | dict(TENSORS=4, BLOCK=1024),
        ),
    ]
    for queries in (1,) if kind == "fp32" else (1, attention_rows.MANY):
        tile, warps = attention_rows.tile(kind == "fp32", queries)
        for size in (64, 128):
            constants = dict(CAUSAL=True, MASKED=True, SINCE=True, CAST=False, SIZE=size) | tile
            found += [
                Kernel(attention_rows.normalisers, attention, constants, warps),
                Kernel(attention_rows._rows, attention | dict(out="*fp32"), constants, warps),
                Kernel(received_attention._columns, attention | dict(out="*fp32"), constants | dict(SHARES=8), warps),
            ]
    return found


def choices(kind: str) -> list[Kernel]:
    """The greedy choices."""
    counts = dict(count="i32", targets="i32", k="i32", deep="i32", spanned="fp32", chosen="*i64")
    cover = dict(cover=f"*{kind}", bounds="*fp32", weight="*fp32") | counts
    gram = dict(gram="*fp32", scale="*fp32", square="*fp32", behind="*fp32", factor="*fp32") | counts
    places = gram | dict(places="*i32", group="*i32", threshold="*fp32", apart="*i64")
    pairs = dict(gram="*fp32", scale="*fp32", lengths="*i64", first="*i64", out="*fp32", score="*fp32") | counts
    found = []
    if kind == "fp32":
        found = [
            Kernel(greedy_diversity._nearest, pairs, dict(BLOCK=1024)),
            *(
                Kernel(greedy_diversity._greedy, pairs, dict(SUM=flag, BLOCK=block), greedy_diversity.warps(block))
                for flag in (False, True)
                for block in (1024, 4096, greedy_diversity.RESIDENT)
            ),
            Kernel(greedy_diversity._greedy_long, pairs, dict(SUM=True, BLOCK=8192), 16),
        ]
    for block in (1024, 4096, greedy_coverage.RESIDENT):
        warps, deep = greedy_diversity.warps(block), greedy_determinantal.depth(block)
        found.append(Kernel(greedy_coverage._coverage, cover, dict(WEIGHTED=True, BLOCK=block, WIDE=block), warps))
        if kind != "fp32":  # the others read products, which are fp32 always
            continue
        found += [
            Kernel(greedy_determinantal._determinantal, gram, dict(BLOCK=block, DEPTH=deep), warps),
            Kernel(greedy_suppression._suppression, places, dict(BLOCK=block), warps),
        ]
    return found


KINDS = ("fp32", "bf16", "fp16")


def main() -> None:
    for capability in (80, 90):
        target = GPUTarget("cuda", capability, 32)
        for kind in sys.argv[1:] or KINDS:
            for kernel in kernels(kind):
                cubin = compiled(kernel, target)
                line = {"kernel": kernel.function.__name__, "dtype": kind, "target": f"sm_{capability}"}
                blocks = {name: kernel.constants[name] for name in ("ROWS", "BLOCK") if name in kernel.constants}
                needs = usage(cubin) | (instructions(cubin) if capability == 90 and kind != "fp16" else {})
                print(json.dumps(line | blocks | {"cubin": len(cubin)} | needs))
    for name, (numbers, free) in sorted(NUMBERS.items()):
        print(json.dumps({"variants": name, "numbers": numbers, "free": free}))


#: kernel -> its numbers that differ from picture to picture, and those of all of them that have no variants
NUMBERS: dict[str, tuple[list[str], list[str]]] = {}
#: scalars that differ from picture to picture; of the others there are a few per model
OF_PICTURES = ("queries", "count", "k", "deep", "targets", "slots", "share")
#: those that wrappers round up to a multiple of 16, so that rows are read in whole
EVEN = ("count", "targets")


def compiled(kernel: Kernel, target: GPUTarget) -> bytes:
    """As at a launch: tensors begin at 16 bytes, and so do rows of sizes that are multiples of 16."""
    params = kernel.function.params
    names = [param.name for param in params]
    types = {name: kernel.types.get(name, "constexpr") for name in names}
    NUMBERS[kernel.function.__name__] = (
        [name for name in names if types[name] == "i32" and name in OF_PICTURES],
        [param.name for param in params if param.do_not_specialize],
    )
    even = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, param) in enumerate(zip(names, params, strict=True))
        if types[name].startswith("*")
        or (types[name] == "i32" and name in (*EVEN, "size") and not param.do_not_specialize)
    }
    constants = {(names.index(name),): value for name, value in kernel.constants.items()}
    source = ASTSource(kernel.function, types, constexprs=constants, attrs=even)
    options = {"num_warps": kernel.warps, "num_stages": attention_rows.STAGES}
    return triton.compile(source, target=target, options=options).asm["cubin"]


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and spilled bytes of a compiled kernel."""
    text = read(cubin, "-res-usage")
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    assert registers
    assert stack
    return {"registers": int(registers[1]), "spills": int(stack[1])}


def instructions(cubin: bytes) -> dict[str, int]:
    """How many it has of some kinds: products of the tensor cores as Hopper has them (`wgmma`), and as Ampere (`mma`);
    reads from memory of 16 bytes a thread (`wide`), and of fewer (`narrow`)."""
    code = read(cubin, "-sass")
    reads = re.findall(r"\b(?:LDG|LDGSTS)\.E[\w.]*", code)
    wide = sum(".128" in read for read in reads)
    kinds = {"wgmma": len(re.findall(r"\bHGMMA\b", code)), "mma": len(re.findall(r"\bHMMA\b", code))}
    return kinds | {"wide": wide, "narrow": len(reads) - wide}


def read(cubin: bytes, what: str) -> str:
    """What the disassembler that ships with triton says."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), what, file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
