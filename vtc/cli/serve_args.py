"""The command `vtc serve-args`: the flag that makes vLLM prune."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from vtc.cli import arguments
from vtc.cli.loading import check, config_of
from vtc.methods.base.card import read_card
from vtc.models import tiny
from vtc.serving.vllm.contract import check_tower, family_of, read_spec
from vtc.serving.vllm.families import tokens_of_every_picture
from vtc.serving.vllm.refuse import check_budget


def add_command(commands: Any) -> None:
    """Add `serve-args` to the subcommands."""
    about = "print the flag that makes vLLM prune pictures"
    command = commands.add_parser("serve-args", help=about, description=_serve_args.__doc__)
    command.add_argument("model", metavar="NAME_OR_PATH", help="the model that vLLM is to serve")
    command.add_argument("--method", required=True, help="divprune, or with options: 'visionzip(contextual=0.2)'")
    command.add_argument(
        "--keep", type=arguments.keep, help="visual tokens to keep per picture: 64, or 0.1 for a tenth"
    )
    command.add_argument("--weights", metavar="FOLDER", help="of a trained method: what `vtc train` wrote")
    command.add_argument("--command", action="store_true", help="print the whole command: vllm serve MODEL FLAG")
    command.set_defaults(run=_serve_args)


def _serve_args(options: argparse.Namespace) -> None:
    """Print the flag with which vLLM serves a model and prunes its pictures, quoted for a shell. What the server would
    refuse at start is refused here."""
    # the server may be started somewhere else
    trained = {"weights": str(Path(options.weights).absolute())} if options.weights is not None else {}
    (name,) = arguments.check_methods([options.method], trained)
    if options.weights is not None:
        read_card(options.weights, name)
    check(options.model)
    config = config_of(options.model)
    family = family_of(config.get("model_type"))
    vision = _part(config, "vision_config")
    check_tower(family, vision.get("model_type", family.towers[0]) if vision else None)
    keep = {"keep": options.keep} if options.keep is not None else {}
    width = _part(config, "text_config").get("hidden_size", config.get("hidden_size"))
    spec = read_spec({"method": options.method, **keep, **trained}, family, width)
    most = tokens_of_every_picture(config)
    if most is not None:
        check_budget(spec, most)
    words = ["vllm", "serve", tiny.source(options.model)] if options.command else []
    print(shlex.join([*words, *spec.flag()]))


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}
