"""What the kinds of `vtc bench` do: check, measure, write, print. Nothing here imports torch before it is needed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vtc
from vtc.cli import arguments
from vtc.eval.bench import archs, suites
from vtc.eval.bench.progress import Progress
from vtc.methods.base import index
from vtc.models import tiny

if TYPE_CHECKING:
    import torch

Rows = Sequence[dict[str, Any]]


def where(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The device and type to measure on, once these and the files to write are checked."""
    if options.device == "auto":
        raise ValueError("--device auto spreads a model over devices: name the one to measure, such as cuda:0")
    arguments.check_device(options.device)
    writable(options)
    import torch

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))


def writable(options: argparse.Namespace) -> None:
    """Refuse files that cannot be written before anything is measured."""
    arguments.check_file("--plot", getattr(options, "plot", None), (".png", ".svg", ".pdf"))
    arguments.check_file("--csv", options.csv)
    arguments.check_file("--markdown", options.markdown)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _limit(options: argparse.Namespace) -> float:
    return float("inf") if options.seconds is None else options.seconds


def finish(
    options: argparse.Namespace,
    pages: Mapping[str, Sequence[Sequence[str]]],
    titles: Sequence[str],
    found: Rows,
    about: Mapping[str, str],
    plot: Callable[[Rows, Path], None] | None = None,
) -> None:
    """Print the tables `pages`, heading -> cells, and write what the options ask for."""
    from vtc.eval.bench import table

    for heading, cells in pages.items():
        print(table.terminal(titles, cells, heading))
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    arguments.existing_folders(options.csv, options.markdown, getattr(options, "plot", None))
    if options.csv:
        table.write_csv(found, about, Path(options.csv))
    if options.markdown:
        texts = {heading: table.markdown(titles, cells) for heading, cells in pages.items()}
        several = [f"{heading}:\n\n{text}" for heading, text in texts.items()]
        Path(options.markdown).write_text("\n".join(several if len(several) > 1 else texts.values()))
    if plot is not None and options.plot:
        plot(found, Path(options.plot))


def ops(options: argparse.Namespace) -> None:
    """Time every op at the shapes of real models, by provider, against its own matmul and the usual loop; with --growth
    how time and memory of every method that chooses before the language model grow with the number of tokens."""
    if options.growth:
        _growth(options)
        return
    if options.tokens is not None:
        raise ValueError("--tokens goes with --growth: other shapes are those of real models")
    for word in ("limit", "resume"):
        if getattr(options, word):
            raise ValueError(f"--{word} goes with --growth")
    unknown = set(options.only) - {*suites.OPS}
    if unknown:
        raise ValueError(f"--only {','.join(sorted(unknown))}: no such op here; there are {', '.join(suites.OPS)}")
    device, dtype = where(options)
    from vtc.eval.bench import ops
    from vtc.eval.bench.roofs import machine

    found = []
    with Progress() as progress:
        for number, case in enumerate(ops.measure(device, dtype, options.only, options.rounds, options.seconds), 1):
            found += ops.rows(case, device, dtype)
            progress.show("cases", number)
    heading = f"{_name(dtype)}, median of {options.rounds} rounds"
    finish(options, {heading: ops.cells(found)}, list(ops.COLUMNS.values()), found, machine(device), ops.plot)


def _growth(options: argparse.Namespace) -> None:
    """Of the methods `--only`, or all that choose before the language model."""
    known = [name for name, info in index.shipped().items() if info.stage.split("+")[0] == "input"]
    unknown = set(arguments.check_methods(options.only)) - {*known}
    if unknown:
        raise ValueError(
            f"--only {','.join(sorted(unknown))}: --growth has methods that choose before the language model; there "
            f"are {', '.join(known)}"
        )
    sizes = sorted(set(options.tokens or suites.SIZES))
    if len(sizes) < 2 or any(size % suites.FRAME for size in sizes):
        frames = f"{suites.FRAME} tokens a frame"
        raise ValueError(f"--tokens {','.join(map(str, sizes))}: give two numbers or more of whole frames ({frames})")
    if options.resume and not options.csv:
        raise ValueError("--resume goes on from the file of --csv: say which")
    device, dtype = where(options)
    from vtc.eval.bench import growth, table
    from vtc.eval.bench.roofs import machine

    names, limit = options.only or [*known, *suites.SCOPED], options.limit or growth.LIMIT
    about = {"dtype": _name(dtype), **machine(device)}
    before = growth.earlier(Path(options.csv), about) if options.resume else []
    arguments.existing_folders(options.csv)
    points = list[growth.Point]()
    with Progress() as progress:
        show = partial(progress.show, "methods")
        for point in growth.measure(names, device, dtype, sizes, _limit(options), limit, before, show):
            points.append(point)
            if options.csv:
                table.write_csv(growth.rows(points), about, Path(options.csv))
    found = growth.rows(points)
    kind = " of the processor" if device.type == "cpu" else ""
    heading = (
        f"{_name(dtype)}, ms{kind} by the number of tokens; at the last one memory, by that of the\n"
        "features, and time, by that of all products of all tokens; time ~ tokens^exponent; empty: more\n"
        f"than {limit:g} s, or than half of the memory, to be expected"
    )
    finish(options, {heading: growth.cells(found, sizes)}, growth.columns(sizes), found, about, growth.plot)


def clip(options: argparse.Namespace) -> None:
    """Time a question about a video file from reading it to the first word of the answer."""
    arguments.check_methods(options.methods)
    tiny.find(options.model)
    vtc.load_clip(options.video, options.frames, options.fps)  # says what is wrong before a model is loaded
    device, dtype = where(options)
    from vtc.eval.bench import clip
    from vtc.eval.bench.roofs import machine

    loaded, processor = vtc.load(options.model, str(device), _name(dtype))
    asked = clip.Asked(loaded, processor, Path(options.video), options.question, options.frames, options.fps)
    settings = [(method, keep) for keep in options.keep for method in options.methods]
    with Progress() as progress:
        lines = clip.measure(asked, settings, options.rounds, lambda *done: progress.show("answers", *done))
    found, about = clip.rows(lines), {"dtype": _name(dtype), **machine(device)}
    heading = f"{Path(options.video).name} on {options.model}, median of {options.rounds} rounds"
    pages = {heading: clip.cells(found)}
    named = [{"model": options.model, **row} for row in found]
    finish(options, pages, list(clip.COLUMNS.values()), named, about, lambda _, file: clip.plot(found, file))


def tower(options: argparse.Namespace) -> None:
    """Time of vision towers (random weights, real widths) whose patches merge between the blocks, against keep."""
    arguments.check_methods(options.methods)
    if unknown := set(options.towers) - {*suites.TOWERS}:
        raise ValueError(
            f"--towers {','.join(sorted(unknown))}: no such tower here; there are {', '.join(suites.TOWERS)}"
        )
    device, dtype = where(options)
    from vtc.eval.bench import tower
    from vtc.eval.bench.roofs import machine

    settings = [(method, keep) for method in options.methods for keep in options.keep]
    found: list[dict[str, Any]] = []
    pages: dict[str, Any] = {}
    with Progress() as progress:
        for name in options.towers:
            built, inputs = tower.SHAPES[name].build(device, dtype, options.blocks)

            def advance(done: int, total: int, what: str = name) -> None:
                progress.show(what, done, total)

            own = tower.rows(tower.measure(built, inputs, settings, options.rounds, advance))
            pages[f"{name}, {options.blocks or 4} blocks, median of {options.rounds} rounds"] = tower.cells(own)
            found += [{"tower": name, **row} for row in own]
    about = {"dtype": _name(dtype), **machine(device)}
    finish(options, pages, list(tower.COLUMNS.values()), found, about, tower.plot)


def model(options: argparse.Namespace) -> None:
    """Time to first token by part, decoding and memory, with and without compression, of models with random weights."""
    arguments.check_general(arguments.check_methods(options.methods or []), "vtc bench")
    device, dtype = where(options)
    from vtc.eval.bench import model, table
    from vtc.eval.bench.roofs import machine

    # what makes pictures smaller is no method of a model whose pictures are encoded before the clock starts
    early = ("pixels", "encoder")
    every = [i.name for i in vtc.list_methods() if "image" in i.modality and i.stage not in early and not i.only]
    known = suites.SHORT if options.short else suites.SUITES
    suite = known.get(device.type, known["cpu"])
    if options.arch:
        suite = [(options.arch, batch, options.methods or suites.ALL, options.keep) for batch in options.batch]
    lines: list[model.Line] = []
    built: tuple[str, Any] = ("", None)
    budget = model.Budget(_limit(options))
    with Progress() as progress:
        for name, batch, methods, keeps in suite:
            if budget.spent:
                print(f"left out, as --seconds {options.seconds} have passed: {name}, batch {batch}")
                continue
            if built[0] != name:
                built = ("", None)  # frees the one before
                built = (name, archs.build(archs.ARCHS[name], device, dtype))
            bench = model.Bench(archs.ARCHS[name], device, dtype, batch, built[1])
            if archs.ARCHS[name].frames and not bench.takes_features:
                print(f"left out, as it takes transformers 5.18 to time a prefill without its vision tower: {name}")
                continue
            settings = [(method, keep) for keep in keeps for method in (options.methods or methods or every)]

            def advance(done: int, total: int, what: str = f"{name}, batch {batch}: prefills") -> None:
                progress.show(what, done, total)

            lines += model.measure(name, bench, settings, options.rounds, advance, budget)
    found, about = table.model_rows(lines), {"dtype": _name(dtype), **machine(device)}
    pages = {
        f"{name}, batch {batch}": table.model_cells(own)
        for (name, batch), own in table.groups(found, "arch", "batch").items()
    }
    finish(options, pages, list(table.MODEL_COLUMNS.values()), found, about, table.plot_model)


def engine(options: argparse.Namespace) -> None:
    """What wrapping costs by itself: prefill and decode step of a wrapped model against the plain one, pair by pair."""
    if options.grid is not None and options.grid % 2:
        raise ValueError(f"--grid {options.grid} is odd: a video's frames are half as high and wide; give an even one")
    device, dtype = where(options)
    from vtc.eval.bench import engine, table
    from vtc.eval.bench.roofs import machine

    sizes = [engine.Size.read(text) for text in options.sizes]
    grid = options.grid or (8 if device.type == "cpu" else 24)
    stages = list(dict.fromkeys(setting.stage for setting in engine.SETTINGS))
    if unknown := set(options.stages or []) - {*stages}:
        raise ValueError(f"--stages {','.join(sorted(unknown))}: no such stage; there are {', '.join(stages)}")
    settings = [setting for setting in engine.SETTINGS if setting.stage in (options.stages or stages)]
    found: list[dict[str, Any]] = []
    with Progress() as progress:
        how = (options.pairs, options.steps, _limit(options), settings)
        for line in engine.measure(sizes, device, dtype, grid, *how, progress.show):
            found += engine.rows(line)
    titles, about = list(engine.COLUMNS.values()), {"dtype": _name(dtype), **machine(device)}
    pages = {
        f"{size}, {own[0]['prompt']} tokens": engine.cells(own) for (size,), own in table.groups(found, "size").items()
    }
    finish(options, pages, titles, found, about, engine.plot)
    for row in found:
        if row["met"]:
            print(
                f"target for the identity wrap of {row['size']}, {row['phase']}: at most {row['target_us']:.0f} µs; "
                f"{row['extra_us']:.0f} ({row['low_us']:.0f} to {row['high_us']:.0f}) measured: {row['met']}"
            )


def select(options: argparse.Namespace) -> None:
    """How long methods take to choose, against the plainest torch of the same rule, pair by pair."""
    device, dtype = where(options)
    from vtc.eval.bench import select
    from vtc.eval.bench.roofs import machine

    unknown = set(options.only) - {case.name for case in select.CASES}
    if unknown:
        names = ", ".join(dict.fromkeys(case.name for case in select.CASES))
        raise ValueError(f"--only {','.join(sorted(unknown))}: no such case here; there are {names}")
    cases = [case for case in select.CASES if not options.only or case.name in options.only]
    found = []
    with Progress() as progress:
        for number, case in enumerate(cases, 1):
            found.append(select.measure(case, device, dtype, options.pairs, _limit(options) / len(cases)))
            progress.show("cases", number, len(cases))
    heading, about = f"{_name(dtype)}, medians", {"dtype": _name(dtype), **machine(device)}
    finish(options, {heading: select.cells(found)}, list(select.COLUMNS.values()), found, about, select.plot)


def threads(options: argparse.Namespace) -> None:
    """Let threads ask one model at the same time, with and without compression, in turn."""
    arguments.check_methods(options.methods)
    device, dtype = where(options)
    from vtc.eval.bench import threads
    from vtc.eval.bench.roofs import machine

    arch = archs.ARCHS[options.arch]
    built = archs.build(arch, device, dtype)
    with Progress() as progress:
        seconds = threads.measure(
            built,
            archs.inputs(arch, built, 1),
            [(method, options.keep) for method in options.methods],
            options.threads,
            options.rounds,
            lambda *done: progress.show("settings", *done),
        )
    found, about = threads.rows(seconds), {"dtype": _name(dtype), **machine(device)}
    pages = {f"{options.threads} threads on {options.arch}, median of {options.rounds} rounds": threads.cells(found)}
    named = [{"arch": options.arch, "workers": options.threads, **row} for row in found]
    finish(options, pages, list(threads.COLUMNS.values()), named, about)


def kvpress(options: argparse.Namespace) -> None:
    """Hold cache methods beside kvpress's: what both keep of one prompt, bytes, and time of a decode step."""
    device, dtype = where(options)
    from vtc.eval.bench import kvpress
    from vtc.eval.bench.roofs import machine

    kvpress.check()
    arch = archs.ARCHS[options.arch]
    built = archs.build(arch, device, dtype)
    archs.sharpen(built)
    inputs = archs.inputs(arch, built, 1)
    length = inputs["input_ids"].shape[1]
    if options.window >= min(k if isinstance(k, int) else round(k * length) for k in options.keep):
        raise ValueError(
            f"--window {options.window} leaves nothing to choose at a budget of --keep: give a smaller one"
        )
    with Progress() as progress:
        lines = kvpress.measure(
            built, inputs, options.keep, options.window, options.steps, lambda *done: progress.show("pairs", *done)
        )
    found, about = kvpress.rows(lines), {"dtype": _name(dtype), **machine(device)}
    pages = {f"{options.arch}, {length} tokens, window {options.window}, {options.steps} steps": kvpress.cells(found)}
    named = [{"arch": options.arch, **row} for row in found]
    finish(options, pages, list(kvpress.COLUMNS.values()), named, about)


def imports(options: argparse.Namespace) -> None:
    """Time imports and commands that need no model, each in fresh processes."""
    writable(options)
    import torch

    from vtc.eval.bench import imports
    from vtc.eval.bench.roofs import machine

    with Progress() as progress:
        seconds = imports.measure(imports.STARTS, options.rounds, lambda *done: progress.show("processes", *done))
    found, about = imports.rows(seconds), machine(torch.device("cpu"))
    pages = {f"milliseconds, {options.rounds} fresh processes each": imports.cells(found)}
    finish(options, pages, list(imports.COLUMNS.values()), found, about)
