"""The commands `vtc eval` and `vtc compare`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.cli import arguments
from vtc.cli.bars import with_bars
from vtc.cli.loading import load
from vtc.eval import datasets
from vtc.eval.metrics import METRICS
from vtc.eval.settings import BUDGETS, FEW, KEEPS, Settings, from_file
from vtc.models import tiny

if TYPE_CHECKING:
    from vtc.eval.compare import Group
    from vtc.eval.recorded import Compared

_SHOWN = 10  # broken questions that are listed
_GLANCE = 100  # questions that are asked where neither a set nor their number is named
_WIDE = "print all columns, and scores by task, instead of what fits 100 characters"


def add_commands(commands: Any, running: argparse.ArgumentParser) -> None:
    """Put `eval` and `compare` into a parser's subcommands; `running` has the options about models,
    without defaults."""
    about = "answer a set of questions with and without compression, and measure"
    own = commands.add_parser(
        "eval",
        parents=[running],
        help=about,
        description=f"{(datasets.__doc__ or '').strip()}\n\nmetrics:\n" + _metrics(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own.add_argument("--config", metavar="FILE", help="settings: a TOML, JSON or YAML file; options here come first")
    own.add_argument(
        "--data", metavar="NAME_OR_PATH", help=f"a set or a file, see above; default: the first {_GLANCE} of tiny"
    )
    own.add_argument("--columns", type=_columns, metavar="FIELD=NAME,..", help="what the set calls its fields")
    own.add_argument(
        "--methods",
        type=arguments.listed(str),
        metavar="A,B",
        help=f"such as pool,'dart(pivots=2)'; all: every one before the LLM; default: of {', '.join(FEW)} what fits",
    )
    keeps = ",".join(map(str, KEEPS))
    own.add_argument("--keep", type=arguments.listed(arguments.keep), metavar="N,N", help=f"budgets; default: {keeps}")
    own.add_argument(
        "--budget",
        choices=BUDGETS,
        help="what --keep means for methods inside the language model: tokens at the end, or mean over its layers",
    )
    own.add_argument("--tasks", type=arguments.listed(str), metavar="A,B", help="only questions of these tasks")
    own.add_argument("--limit", type=arguments.count, metavar="N", help="only the first N questions")
    own.add_argument("--metric", type=_metric, metavar="M|TASK=M,..", help="default: what fits the questions")
    own.add_argument("--instruction", metavar="TEXT", help="a sentence after every question: 'Answer in a word.'")
    own.add_argument("--max-new-tokens", type=arguments.count, metavar="N", help="default: by the longest reference")
    own.add_argument("--frames", type=arguments.count, metavar="N", help="so many of each video; default: 8")
    own.add_argument("--fps", type=float, metavar="F", help="so many per second of each video instead")
    own.add_argument("--blind", action="store_const", const=True, help="add a baseline that sees grey pictures instead")
    own.add_argument("--batch-size", type=arguments.count, metavar="N", help="default: 64; halved when memory runs out")
    own.add_argument(
        "--timing", type=arguments.whole, metavar="N", help="questions that are timed; default: 5, 0: none"
    )
    own.add_argument("--out", metavar="FOLDER", help="default: runs/<data>-<...>, the same for the same settings")
    own.add_argument("--wide", action="store_true", help=_WIDE)
    own.set_defaults(run=_eval)

    about = "compare what vtc eval has measured"
    own = commands.add_parser("compare", help=about, description=_compare.__doc__)
    own.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of runs, folders of such folders, or files that --json wrote"
    )
    own.add_argument("--markdown", metavar="FILE", help="write the tables here")
    own.add_argument("--json", metavar="FILE", help="write all numbers here")
    own.add_argument("--plot", metavar="FILE.png", help="draw accuracy over TTFT, FLOPs and KV bytes into this picture")
    own.add_argument("--html", metavar="FILE.html", help="the same as a page to look around in, complete in itself")
    own.add_argument("--wide", action="store_true", help=_WIDE)
    own.set_defaults(run=_compare)


def _metrics() -> str:
    return "\n".join(f"  {name:9} {metric.about}" for name, metric in METRICS.items())


def _metric(text: str) -> str | dict[str, str]:
    if "=" not in text:
        return text
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    return {task.strip(): name.strip() for task, name in pairs}


def _columns(text: str) -> dict[str, str]:
    pairs = [[side.strip() for side in part.partition("=")[::2]] for part in text.split(",")]
    if not all(field and name for field, name in pairs) or len({field for field, _ in pairs}) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} does not name columns by field: write image=picture,question=q")
    return dict(pairs)


def _eval(options: argparse.Namespace) -> int:
    """Run the evaluation and print its table; 1 if a question broke."""
    from vtc.eval import compare, runner
    from vtc.eval.processes import Processes

    names = (
        "data",
        "columns",
        "methods",
        "keep",
        "budget",
        "tasks",
        "limit",
        "metric",
        "instruction",
        "max_new_tokens",
        "frames",
    )
    names += ("fps", "blind", "batch_size", "timing", "out", "device", "dtype")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.model is not None:
        given["models"] = tuple(options.model)
    glance = options.config is None and "data" not in given and "limit" not in given
    if glance:
        given["limit"] = _GLANCE
    settings = from_file(options.config, **given) if options.config is not None else Settings(**given)
    for device in filter(None, [settings.device]):
        try:
            arguments.device(device)
        except argparse.ArgumentTypeError as error:
            raise ValueError(str(error)) from None
        arguments.check_device(device)
    for model in settings.models or ():
        tiny.find(model)
    arguments.check_folder("--out", settings.out if settings.out is not None else "runs")
    team = Processes(settings.device)
    own = partial(load, classifiers=True)
    try:
        outcome = with_bars(lambda advance: runner.evaluate(settings, advance, team, own), team.rank == 0)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; what was answered is kept, and the same command goes on from there") from None
    team.leave()
    if team.rank == 0:
        groups = compare.load(outcome.runs)
        _show(groups, options.wide)
        print(f"results: {outcome.folder}")
        if glance:
            outcome.notes.append(f"these are the first {_GLANCE} questions: --limit N asks more, --data tiny all")
        for note in [*outcome.notes, *_mixed(groups)]:
            print(f"note: {note}", file=sys.stderr)
        _tell_broken(outcome.broken)
    return 1 if outcome.broken else 0


def _tell_broken(broken: dict[str, str]) -> None:
    for identity, reason in list(broken.items())[:_SHOWN]:
        print(f"question {identity} is left out: {reason}", file=sys.stderr)
    if len(broken) > _SHOWN:
        print(f"... and {len(broken) - _SHOWN} more, in the samples.jsonl of the runs", file=sys.stderr)
    if broken:
        print(f"vtc: {len(broken)} questions could not be answered", file=sys.stderr)


def _compare(options: argparse.Namespace) -> None:
    """One table of runs side by side, with which differences are significant; also as Markdown, picture and page."""
    from vtc.eval import compare, page, plot, recorded, table

    arguments.check_file("--plot", options.plot, (".png", ".svg", ".pdf"))
    for name in ("markdown", "json", "html"):
        arguments.check_file(f"--{name}", getattr(options, name))
    files = [run for run in options.runs if Path(run).suffix.lower() == ".json"]
    written = [group for file in files for group in recorded.read(file)]
    paths, notes = compare.find([run for run in options.runs if run not in files])
    runs = compare.load(paths)
    groups = [*runs, *written]
    if not any(group.rows for group in groups):
        raise ValueError("none of these runs has an answered question")
    arguments.existing_folders(options.markdown, options.json, options.plot, options.html)
    if options.markdown:
        Path(options.markdown).write_text(table.markdown(groups), encoding="utf-8")
    if options.json:
        Path(options.json).write_text(recorded.write(groups), encoding="utf-8")
    if options.plot:
        plot.pareto(groups, Path(options.plot))
    if options.html:
        Path(options.html).write_text(page.html(groups), encoding="utf-8")
    _show(groups, options.wide)
    for note in [*notes, *_mixed(runs)]:
        print(f"note: {note}", file=sys.stderr)


def _mixed(groups: list[Group]) -> list[str]:
    """A sentence about each group whose rows come from different code."""
    from vtc.eval.origin import warning

    found = []
    for group in groups:
        names = [run.label if run.keep is None else f"{run.label}@{run.keep}" for run in group.runs]
        if said := warning(names, [run.config for run in group.runs]):
            found.append(f"{group.title}: {said}")
    return found


def _show(groups: Sequence[Compared], wide: bool) -> None:
    from rich.console import Console

    from vtc.eval import table

    console = Console(width=None if sys.stdout.isatty() else 260 if wide else 100, highlight=False)
    for group in groups:
        if group.rows:
            for part in table.terminal(group, wide, min(100, console.width)):
                console.print(part)
