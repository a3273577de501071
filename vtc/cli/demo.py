"""`vtc demo`: the page in a browser, and what its visitors may ask of the machine."""

from __future__ import annotations

import argparse
from typing import Any

from vtc.cli import arguments
from vtc.cli.loading import check
from vtc.demos.serve import MEMORY, MOST_METHODS, PORT, UPLOADS, WAITING, serve
from vtc.methods.base.notation import read_methods
from vtc.models import tiny


def add_command(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add `demo` to the subparsers of `vtc`; `shared` has the options of commands that run a model."""
    about = "show in a browser what methods keep"
    command = commands.add_parser("demo", parents=[shared], help=about, description=_demo.__doc__)
    command.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="METHOD",
        help="tick this one, such as 'todre(mode=kcenter)'; may repeat",
    )
    command.add_argument("--port", type=arguments.count, default=PORT, metavar="P", help="default: %(default)s")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: %(default)s")
    command.add_argument("--share", action="store_true", help="also through a public address of gradio's")
    for name, kind, what in (
        ("--allow-host", "HOST", "answer to this name, such as demo.example.org; may repeat"),
        ("--allow-frame", "ORIGIN", "let pages of this origin show it in a frame; may repeat"),
    ):
        command.add_argument(name, action="append", default=[], metavar=kind, help=what)
    for name, what, usual in (
        ("--uploads", "MB of disk for uploads", UPLOADS),
        ("--memory", "MB of memory for what visitors have sent", MEMORY),
        ("--waiting", "questions from one address that may wait", WAITING),
    ):
        command.add_argument(name, type=arguments.count, default=usual, metavar="N", help=f"{what}; default: {usual}")
    command.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    """Show in a browser what methods keep of a picture or a clip, until Ctrl-C."""
    arguments.check_general(arguments.check_methods(options.method), "the demo")
    if len(options.method) > MOST_METHODS:
        raise ValueError(f"{len(options.method)} times --method, and {MOST_METHODS} fit side by side: give fewer")
    if own := [text for text in options.method if "keep" in read_methods(text)[0][1]]:
        raise ValueError(f"--method {own[0]}: leave keep out, which the page has a slider for")
    check(options.model, options.device)
    models = list(dict.fromkeys([options.model, *tiny.names()]))
    serve(
        models,
        options.port,
        options.host,
        options.share,
        options.device,
        options.dtype,
        options.method,
        allow_hosts=options.allow_host,
        allow_frames=options.allow_frame,
        uploads=options.uploads,
        waiting=options.waiting,
        memory=options.memory,
    )
