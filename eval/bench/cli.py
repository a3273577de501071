"""The command `vtc bench`: runs a benchmark and writes it as CSV, Markdown and a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vtc
from vtc.cli import arguments
from vtc.eval.bench import archs
from vtc.models import tiny

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

    from vtc.eval.bench import model

OPS = (
    "greedy_diversity",
    "kmeans",
    "bipartite_match",
    "segment_mean",
    "gather_rows",
    "transition",
    "attention_rows",
    "received_attention",
)
FEW = ("random", "vtc-cls", "divprune", "todre", "visionzip", "fastv", "sparsevlm", "transprune", "h2o")
VIDEO = ("random", "uniform-frames", "evs", "dycoke", "framefusion", "prunevid", "quota", "divprune", "transprune")
SHARED = ("divprune", "vtc-cls", "fastv", "h2o")  # one of each stage, and one that listens to the tower
ALL = ()
# Without --arch: (architecture, batch, methods, keeps). What a device runs in minutes.
SUITES: dict[str, list[tuple[str, int, Sequence[str], list[int | float]]]] = {
    "cpu": [
        ("cpu-24x1024", 1, ALL, [64]),
        ("cpu-next", 1, FEW, [288]),
        ("cpu-qwen2.5-vl", 1, FEW, [130]),
        ("cpu-qwen2.5-vl", 8, FEW[:4], [130]),
        ("cpu-video", 1, VIDEO, [0.1]),
    ],
    "cuda": [
        ("llava-1.5-7b", 1, ALL, [192, 64]),
        ("llava-1.5-7b", 8, FEW, [64]),
        ("llava-1.5-7b", 32, FEW, [64]),
        ("llava-1.5-13b", 1, FEW, [64]),
        ("llava-next-7b", 1, FEW, [320, 288]),
        ("llava-next-7b", 8, FEW, [288]),
        ("qwen2.5-vl-7b", 1, FEW, [130]),
        ("qwen2.5-vl-7b", 32, FEW[:4], [130]),
        ("llava-onevision-7b", 1, FEW, [0.1]),
        ("llava-onevision-0.5b-64", 1, VIDEO, [0.1]),
        ("llava-onevision-0.5b-119", 1, VIDEO, [32]),
        ("llava-onevision-7b-64", 1, VIDEO, [0.1]),
        ("llava-onevision-7b-119", 1, VIDEO, [0.1]),
        ("qwen2.5-vl-7b-video", 1, VIDEO, [0.1]),
    ],
}


def add_command(commands: Any) -> None:
    """Register `vtc bench` with the command line's subparsers."""
    about = "what methods cost and save in time and memory"
    command = commands.add_parser("bench", help=about, description=__doc__)
    kinds = command.add_subparsers(required=True, metavar="ops|model|clip|threads|imports")

    def kind(name: str, run: Any, about: str, tensors: bool = True, plot: bool = True) -> Any:
        own = kinds.add_parser(name, help=about, description=run.__doc__)
        own.add_argument("--rounds", type=arguments.count, default=5, metavar="N", help="default: %(default)s")
        own.add_argument("--csv", metavar="FILE", help="write every number here")
        own.add_argument("--markdown", metavar="FILE", help="write the tables here")
        if tensors:
            own.add_argument("--device", type=arguments.device, help="default: a GPU if there is one")
            own.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")
        if tensors and plot:
            own.add_argument("--plot", metavar="FILE", help="draw into this picture file")
        own.set_defaults(run=run)
        return own

    own = kind("ops", _ops, "scoring and gathering at the shapes of real models")
    own.add_argument("--only", type=arguments.listed(str), default=[], metavar="A,B", help="these ops; default: all")
    own = kind("model", _model, "prefill and decoding of whole models with random weights")
    own.add_argument("--arch", choices=archs.ARCHS, help="default: a suite for the device")
    own.add_argument("--methods", type=arguments.listed(str), metavar="A,B", help="default: all")
    own.add_argument(
        "--keep", type=arguments.listed(arguments.keep), default=[64], metavar="N,N", help="budgets; default: 64"
    )
    own.add_argument("--batch", type=arguments.listed(arguments.count), default=[1], metavar="N,N", help="default: 1")
    own = kind("clip", _clip, "from a video file to the first word of an answer, part by part")
    own.add_argument("--video", required=True, metavar="FILE")
    own.add_argument("--question", default="What moves?", help="default: %(default)s")
    own.add_argument("--model", default="tiny-qwen", help="shipped name, folder or hub id; default: %(default)s")
    own.add_argument("--frames", type=arguments.count, metavar="N", help="so many of the video; default: 8")
    own.add_argument("--fps", type=float, metavar="F", help="so many per second instead")
    own.add_argument("--methods", type=arguments.listed(str), default=list(VIDEO), metavar="A,B")
    own.add_argument(
        "--keep", type=arguments.listed(arguments.keep), default=[0.1], metavar="N,N", help="budgets; default: 0.1"
    )
    own = kind("threads", _threads, "answers per second when threads share one model", plot=False)
    own.add_argument("--arch", choices=archs.ARCHS, default="cpu-4x256", help="default: %(default)s")
    own.add_argument("--threads", type=arguments.count, default=4, metavar="N", help="default: %(default)s")
    own.add_argument("--methods", type=arguments.listed(str), default=list(SHARED), metavar="A,B")
    own.add_argument("--keep", type=arguments.keep, default=0.2, metavar="N", help="budget; default: %(default)s")
    kind("imports", _imports, "how long importing vtc takes, and its command line without a model", tensors=False)


def _where(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    if options.device == "auto":
        raise ValueError("--device auto spreads a model over devices: name the one to measure, such as cuda:0")
    arguments.check_device(options.device)
    import torch

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    arguments.existing_folders(options.csv, options.markdown, getattr(options, "plot", None))
    return device, getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))


def _bar(unit: str) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _print(titles: Sequence[str], cells: Sequence[Sequence[str]], heading: str) -> None:
    from rich.console import Console

    from vtc.eval.bench import table

    Console(width=None if sys.stdout.isatty() else 200).print(table.terminal(titles, cells, heading))


def _ops(options: argparse.Namespace) -> None:
    """Time every op at the shapes of real models, by provider, against its own matmul and the usual loop."""
    unknown = set(options.only) - {*OPS}
    if unknown:
        raise ValueError(f"--only {','.join(sorted(unknown))}: no such op here; there are {', '.join(OPS)}")
    device, dtype = _where(options)
    from vtc.eval.bench import ops, table
    from vtc.eval.bench.roofs import machine

    found = []
    with _bar("cases") as progress:
        bar = progress.add_task("cases", total=None)
        for case in ops.measure(device, dtype, options.only, options.rounds):
            found += ops.rows(case, device, dtype)
            progress.update(bar, advance=1)
    about = machine(device)
    cells = ops.cells(found)
    titles = list(ops.COLUMNS.values())
    if options.csv:
        table.write_csv(found, about, Path(options.csv))
    if options.markdown:
        Path(options.markdown).write_text(table.markdown(titles, cells))
    if options.plot:
        ops.plot(found, Path(options.plot))
    _print(titles, cells, f"{dtype}, median of {options.rounds} rounds".removeprefix("torch."))
    print(", ".join(f"{name} {value}" for name, value in about.items()))


def _clip(options: argparse.Namespace) -> None:
    """Time a question about a video file from reading it to the first word of the answer."""
    arguments.check_methods(options.methods)
    tiny.find(options.model)
    vtc.load_clip(options.video, options.frames, options.fps)  # says what is wrong before a model is loaded
    device, dtype = _where(options)
    from vtc.eval.bench import clip, table
    from vtc.eval.bench.roofs import machine

    loaded, processor = vtc.load(options.model, str(device), str(dtype).removeprefix("torch."))
    asked = clip.Asked(loaded, processor, Path(options.video), options.question, options.frames, options.fps)
    settings = [(method, keep) for keep in options.keep for method in options.methods]
    with _bar("answers") as progress:
        bar = progress.add_task("answers", total=None)
        lines = clip.measure(
            asked, settings, options.rounds, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    found, about = clip.rows(lines), {"dtype": str(dtype).removeprefix("torch."), **machine(device)}
    titles, printed = list(clip.COLUMNS.values()), clip.cells(found)
    if options.csv:
        table.write_csv([{"model": options.model, **row} for row in found], about, Path(options.csv))
    if options.markdown:
        Path(options.markdown).write_text(table.markdown(titles, printed))
    if options.plot:
        clip.plot(found, Path(options.plot))
    _print(titles, printed, f"{Path(options.video).name} on {options.model}, median of {options.rounds} rounds")
    print(", ".join(f"{key} {value}" for key, value in about.items()))


def _model(options: argparse.Namespace) -> None:
    """Time to first token by part, decoding and memory, with and without compression, of models with random weights."""
    arguments.check_methods(options.methods or [])
    device, dtype = _where(options)
    from vtc.eval.bench import model, table
    from vtc.eval.bench.roofs import machine

    every = [info.name for info in vtc.list_methods() if "image" in info.modality]
    suite = SUITES[device.type] if device.type in SUITES else SUITES["cpu"]
    if options.arch:
        suite = [(options.arch, batch, options.methods or ALL, options.keep) for batch in options.batch]
    lines: list[model.Line] = []
    built: tuple[str, Any] = ("", None)
    with _bar("prefills") as progress:
        for name, batch, methods, keeps in suite:
            bar = progress.add_task(f"{name}, batch {batch}", total=None)
            if built[0] != name:
                built = ("", None)  # frees the one before
                built = (name, archs.build(archs.ARCHS[name], device, dtype))
            bench = model.Bench(archs.ARCHS[name], device, dtype, batch, built[1])
            settings = [(method, keep) for keep in keeps for method in (options.methods or methods or every)]

            def advance(done: int, total: int, bar: Any = bar) -> None:
                progress.update(bar, completed=done, total=total)

            lines += model.measure(name, bench, settings, options.rounds, advance)
    rows = table.model_rows(lines)
    about = {"dtype": str(dtype).removeprefix("torch."), **machine(device)}
    titles = list(table.MODEL_COLUMNS.values())
    pages = []
    for (name, batch), own in table.groups(rows, "arch", "batch").items():
        heading = f"{name}, batch {batch}"
        cells = table.model_cells(own)
        _print(titles, cells, heading)
        pages.append(f"{heading}:\n\n{table.markdown(titles, cells)}")
    if options.csv:
        table.write_csv(rows, about, Path(options.csv))
    if options.markdown:
        Path(options.markdown).write_text("\n".join(pages))
    if options.plot:
        table.plot_model(rows, Path(options.plot))
    print(", ".join(f"{key} {value}" for key, value in about.items()))


def _threads(options: argparse.Namespace) -> None:
    """Let threads ask one model at the same time, with and without compression, in turn."""
    arguments.check_methods(options.methods)
    device, dtype = _where(options)
    from vtc.eval.bench import table, threads
    from vtc.eval.bench.roofs import machine

    arch = archs.ARCHS[options.arch]
    built = archs.build(arch, device, dtype)
    with _bar("settings") as progress:
        bar = progress.add_task("settings", total=None)
        seconds = threads.measure(
            built,
            archs.inputs(arch, built, 1),
            [(method, options.keep) for method in options.methods],
            options.threads,
            options.rounds,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    found, about = threads.rows(seconds), {"dtype": str(dtype).removeprefix("torch."), **machine(device)}
    titles, printed = list(threads.COLUMNS.values()), threads.cells(found)
    if options.csv:
        table.write_csv(
            [{"arch": options.arch, "workers": options.threads, **row} for row in found], about, Path(options.csv)
        )
    if options.markdown:
        Path(options.markdown).write_text(table.markdown(titles, printed))
    _print(titles, printed, f"{options.threads} threads on {options.arch}, median of {options.rounds} rounds")
    print(", ".join(f"{key} {value}" for key, value in about.items()))


def _imports(options: argparse.Namespace) -> None:
    """Time imports and commands that need no model, each in fresh processes."""
    arguments.existing_folders(options.csv, options.markdown)
    import torch

    from vtc.eval.bench import imports, table
    from vtc.eval.bench.roofs import machine

    with _bar("processes") as progress:
        bar = progress.add_task("processes", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        seconds = imports.measure(imports.STARTS, options.rounds, advance)
    found, about = imports.rows(seconds), machine(torch.device("cpu"))
    titles, printed = list(imports.COLUMNS.values()), imports.cells(found)
    if options.csv:
        table.write_csv(found, about, Path(options.csv))
    if options.markdown:
        Path(options.markdown).write_text(table.markdown(titles, printed))
    _print(titles, printed, f"milliseconds, {options.rounds} fresh processes each")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
