"""The command `vtc train`."""

from __future__ import annotations

import argparse
from typing import Any

import vtc
from vtc.cli import arguments
from vtc.cli.loading import load
from vtc.methods.base.registry import untrained


def add_command(commands: Any, running: argparse.ArgumentParser) -> None:
    """Add `train` to the subcommands; `running` holds the options of a model."""

    def run(options: argparse.Namespace) -> None:
        """Train the parameters of a method for a model: only the method's own, the model stays as it is."""
        (name,) = arguments.check_methods([options.method])
        if not any(info.trained for info in vtc.list_methods() if info.name == name):
            raise untrained(name)
        if options.frames and options.fps:
            raise ValueError("give --frames or --fps, not both")
        vtc.read_samples(options.data)  # these refuse before a model is loaded
        arguments.check_folder("--out", options.out)
        model, processor = load(options.model, options.device, options.dtype)
        vtc.train(
            model,
            options.method,
            options.data,
            out=options.out,
            processor=processor,
            keep=options.keep,
            steps=options.steps,
            batch_size=options.batch_size,
            lr=options.lr,
            seed=options.seed,
            frames=options.frames,
            fps=options.fps,
            checkpoint_every=options.checkpoint_every,
            log_every=options.log_every,
            log=lambda line: print(line, flush=True),
        )
        print(f"weights: {options.out}")

    command = commands.add_parser(
        "train", parents=[running], help="train a method's own parameters for a model", description=run.__doc__
    )
    command.add_argument("--data", required=True, metavar="FILE", help="a .jsonl file of questions and answers")
    command.add_argument("--method", required=True, help="a method with parameters, such as vqtoken")
    command.add_argument("--keep", type=arguments.keep, help="visual tokens to keep while training")
    command.add_argument("--out", required=True, metavar="FOLDER", help="for the weights; a stopped run goes on there")
    command.add_argument("--steps", type=arguments.count, default=1000, metavar="N", help="default: %(default)s")
    command.add_argument("--batch-size", type=arguments.count, default=16, metavar="N", help="default: %(default)s")
    command.add_argument(
        "--lr", type=arguments.positive, default=1e-3, help="peak of the learning rate; default: %(default)s"
    )
    command.add_argument("--seed", type=arguments.whole, default=0, help="default: %(default)s")
    command.add_argument("--frames", type=arguments.count, metavar="N", help="so many of each video; default: 8")
    command.add_argument("--fps", type=arguments.positive, metavar="F", help="so many per second instead")
    for name, default in (("checkpoint", 200), ("log", 50)):
        command.add_argument(
            f"--{name}-every", type=arguments.count, default=default, metavar="N", help="steps; default: %(default)s"
        )
    command.set_defaults(run=run)
