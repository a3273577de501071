"""The command `vtc calibrate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import vtc
from vtc.calibration.pairs import read_pairs
from vtc.calibration.trials import check_out
from vtc.cli import arguments
from vtc.cli.bars import with_bars
from vtc.cli.loading import load
from vtc.methods.base.registry import not_calibrated


def add_command(commands: Any, running: argparse.ArgumentParser) -> None:
    """Add `calibrate` to the subcommands; `running` holds the options of a model."""

    def run(options: argparse.Namespace) -> None:
        """Find the numbers of a method for a model, on pictures and questions without answers: a small file, which
        calibration= of the method takes. A run that was stopped goes on with the same command."""
        (name,) = arguments.check_methods([options.method])
        if not any("calibration" in info.options for info in vtc.list_methods() if info.name == name):
            raise not_calibrated(name)
        if options.frames and options.fps:
            raise ValueError("give --frames or --fps, not both")
        file = check_out(options.out)
        arguments.check_file("--out", options.out)
        there = read_pairs(options.data, options.pairs, options.seed)  # these refuse before a model is loaded
        model, processor = load(options.model, options.device, options.dtype)
        if len(there.chosen) < options.pairs:
            print(f"note: there are {there.there} pairs only, fewer than --pairs {options.pairs}", file=sys.stderr)
        try:
            found = with_bars(
                lambda advance: vtc.calibrate(
                    model,
                    options.method,
                    options.data,
                    out=file,
                    processor=processor,
                    keep=options.keep,
                    pairs=options.pairs,
                    trials=options.trials,
                    seed=options.seed,
                    frames=options.frames,
                    fps=options.fps,
                    progress=advance,
                )
            )
        except KeyboardInterrupt:
            kept = Path(f"{file}.trials")
            said = "what was tried is kept, and the same command goes on from there" if kept.exists() else "nothing yet"
            raise KeyboardInterrupt(f"stopped; {said}") from None
        for option, value in found.options.items():
            print(f"{option:10} {value:g}" if isinstance(value, float) else f"{option:10} {value}")
        if found.trials:
            print(f"objective  {found.before:.4f} before, {found.after:.4f} after, of {len(found.trials) - 1} trials")
        print(f"calibration: {found.path}")

    command = commands.add_parser(
        "calibrate", parents=[running], help="find a method's numbers for a model", description=run.__doc__
    )
    command.add_argument(
        "--data", required=True, metavar="NAME_OR_PATH", help="questions as vtc eval reads them; answers may be missing"
    )
    command.add_argument("--method", required=True, help="a method that is calibrated, such as vflowopt")
    command.add_argument("--keep", type=arguments.keep, help="the budget that it is calibrated for")
    command.add_argument("--out", required=True, metavar="FILE.json", help="where the numbers go")
    command.add_argument(
        "--pairs", type=arguments.count, default=30, metavar="N", help="pictures with questions; default: %(default)s"
    )
    command.add_argument(
        "--trials", type=arguments.count, default=60, metavar="N", help="settings to try; default: %(default)s"
    )
    command.add_argument("--seed", type=arguments.whole, default=0, help="default: %(default)s")
    command.add_argument("--frames", type=arguments.count, metavar="N", help="so many of each video; default: 8")
    command.add_argument("--fps", type=arguments.positive, metavar="F", help="so many per second instead")
    command.set_defaults(run=run)
