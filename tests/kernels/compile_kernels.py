"""Compiles every Triton kernel for sm_80 and sm_90, without a GPU, and prints what it needs, one JSON object per line."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vtc.kernels.attention_rows import triton as attention_rows
from vtc.kernels.greedy_diversity import triton as greedy_diversity
from vtc.kernels.received_attention import triton as received_attention
from vtc.kernels.segment_sum import triton as segment_sum
from vtc.kernels.transition import triton as transition

SIZES = dict(queries="i32", count="i32", groups="i32", heads="i32", size="i32", scale="fp32")
FLAGS = dict(CAUSAL=True, MASKED=True, CAST=False)


def sources(kind: str) -> list[tuple[Any, dict[str, str], dict[str, Any], int]]:
    """(kernel, types of its arguments, constants, warps) for inputs of one dtype."""
    attention = dict(q=f"*{kind}", k=f"*{kind}", at="*i64", seen="*u8", lse="*fp32")
    found: list[tuple[Any, dict[str, str], dict[str, Any], int]] = [
        (
            transition._transition,
            dict(before=f"*{kind}", after=f"*{kind}", ratio="*fp32", cosine="*fp32", size="i32"),
            dict(BLOCK=1024),
            4,
        ),
        (
            segment_sum._segment_sum,
            dict(x=f"*{kind}", order="*i64", weight="*fp32", offset="*i64", out=f"*{kind}", size="i32"),
            dict(BLOCK=256),
            4,
        ),
        (
            greedy_diversity._greedy,
            dict(gram="*fp32", score="*fp32", first="*i64", chosen="*i64", count="i32", k="i32"),
            dict(SUM=True, BLOCK=4096),
            8,
        ),
    ]
    for size in (64, 128):
        tile = {"ROWS": 16, "KEYS": 32} if kind == "fp32" else {"ROWS": 32, "KEYS": 64}
        warps = 8 if kind == "fp32" else 4
        constants = FLAGS | tile | {"SIZE": size}
        found += [
            (attention_rows.normalisers, attention | SIZES, constants, warps),
            (attention_rows._rows, attention | dict(out="*fp32") | SIZES, constants, warps),
            (received_attention._columns, attention | dict(out="*fp32") | SIZES, constants | {"SHARES": 8}, warps),
        ]
    return found


def main() -> None:
    for capability in (80, 90):
        for kind in ("fp32", "bf16", "fp16"):
            for kernel, types, constants, warps in sources(kind):
                types = types | dict.fromkeys(constants, "constexpr")
                source = ASTSource(
                    kernel, types, constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()}
                )
                built = triton.compile(
                    source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": 2}
                )
                cubin = built.asm["cubin"]
                print(
                    json.dumps(
                        {
                            "kernel": kernel.__name__,
                            "dtype": kind,
                            "target": f"sm_{capability}",
                            "cubin": len(cubin),
                            **usage(cubin),
                        }
                    )
                )


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and spilled bytes of a compiled kernel, read by the assembler that ships with triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    assert registers
    assert stack
    return {"registers": int(registers[1]), "spills": int(stack[1])}


if __name__ == "__main__":
    main()
