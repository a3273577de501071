"""The command `vtc check`."""

from __future__ import annotations

import argparse
from typing import Any

import vtc
from vtc.cli import arguments
from vtc.cli.loading import load


def add_command(commands: Any, running: argparse.ArgumentParser) -> None:
    """Add `check` to the subcommands; `running` holds the options of a model."""

    def run(options: argparse.Namespace) -> int:
        """Compare a model that is wrapped with a method with the model itself: is what it answers right? A model of no
        listed family is tried with the default one. Exit status 1 if not everything that was compared agrees."""
        arguments.check_methods([options.method], several=True)
        pictures = None if options.image is None else [vtc.load_picture(options.image)]
        model, processor = load(options.model, options.device, options.dtype or "float32")
        inputs = None
        if pictures is not None:
            inputs = dict(vtc.prepare(processor, options.question, pictures).to(model.device, model.dtype))
        family = None if model.config.model_type in vtc.list_families() else "auto"
        found = vtc.check(model, options.method, options.keep, processor=processor, inputs=inputs, family=family)
        return 0 if found.ok else 1

    command = commands.add_parser(
        "check", parents=[running], help="compare a wrapped model with the model itself", description=run.__doc__
    )
    command.add_argument("--method", default="divprune", help="with its options; default: %(default)s")
    command.add_argument("--keep", type=arguments.keep, help="default: 0.5")
    command.add_argument("--image", metavar="FILE", help="a picture to ask about; default: one that is drawn")
    command.add_argument("--question", default="What is in the picture?", help="default: %(default)s")
    command.set_defaults(run=run)
