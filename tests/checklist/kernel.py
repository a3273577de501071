"""What an op has: its definition, a Triton kernel where it pays, and what holds them to each other."""

from __future__ import annotations

import ast

from tests.checklist.tree import Line, Tree

BENCH = {"segment_sum": "segment_mean"}  # measured by what is made of it


def kernel(tree: Tree, name: str) -> list[Line]:
    """The checklist of the op `vtc.ops.name`, whose folder is kernels/name."""
    reference, triton = f"kernels/{name}/reference.py", f"kernels/{name}/triton.py"
    defined, compiled = tree.function(reference, name), tree.function(triton, name)
    if defined is None:
        return [Line("reference", f"{reference} defines no function {name}")]
    lines = [Line(f"reference in {reference}"), _shapes("docstring of the reference", defined)]
    if tree.files(triton):
        lines += [_same(name, defined, compiled), *_on_gpus(tree, name), _measured(tree, name)]
    return [*lines, _public(tree, name), _tested(tree, name), tree.changelog(name)]


def _shapes(what: str, function: ast.FunctionDef | None) -> Line:
    doc = (function and ast.get_docstring(function)) or ""
    return Line(what, "" if "[" in doc else "say the shapes of what goes in and comes out: [N, D] -> [N]")


def _same(name: str, defined: ast.FunctionDef, compiled: ast.FunctionDef | None) -> Line:
    what = f"Triton kernel in kernels/{name}/triton.py"
    if compiled is None:
        return Line(what, f"it defines no function {name}")
    takes = [[argument.arg for argument in function.args.args] for function in (defined, compiled)]
    return Line(what, "" if takes[0] == takes[1] else f"it takes {takes[1]}, the reference {takes[0]}")


def _on_gpus(tree: Tree, name: str) -> list[Line]:
    run = name in tree.words("tests/kernels/test_gpu.py")
    lines = [Line("tested on a GPU", "" if run else f"call ops.{name} in tests/kernels/test_gpu.py")]
    if "jit" in tree.words(f"kernels/{name}/triton.py"):  # else it launches kernels of other ops
        compiled = name in tree.words("tests/kernels/compile_kernels.py")
        where = "add it to kernels() of tests/kernels/compile_kernels.py"
        lines.append(Line("compiled for A100 and H100", "" if compiled else where))
    return lines


def _public(tree: Tree, name: str) -> Line:
    function = tree.function("vtc/ops.py", name)
    if function is None:
        return Line("vtc.ops", f"define {name} in vtc/ops.py, which checks its arguments and calls _run")
    if name not in tree.listed("vtc/ops.py", "__all__"):
        return Line("vtc.ops", f"add {name} to __all__ of vtc/ops.py")
    return _shapes("vtc.ops", function)


def _tested(tree: Tree, name: str) -> Line:
    path = f"tests/kernels/test_{name}.py"
    if name not in tree.words(path):
        return Line("definition", f"{path} must hold ops.{name} against loops over single elements")
    there = "core" in tree.words(path)
    return Line("definition", "" if there else f"mark the tests of {path} core: old versions run them, too")


def _measured(tree: Tree, name: str) -> Line:
    there = BENCH.get(name, name) in tree.listed("eval/bench/suites.py", "OPS")
    return Line(
        "vtc bench ops", "" if there else "add it to OPS of eval/bench/suites.py, and a case to eval/bench/ops.py"
    )
