"""The command `vtc completion`: what makes a shell complete commands, options, files and names of methods."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

import vtc
from vtc.models import tiny
from vtc.models.families import SHIPPED

SHELLS = ("bash", "zsh", "fish")
_FILES, _FOLDERS = ("FILE", "FILE.py", "FILE.png", "FILE.html"), ("FOLDER", "RUN")
_INSTALL = 'completion needs the package shtab: pip install "shtab>=1.13"'


def add_command(commands: Any, whole: argparse.ArgumentParser) -> None:
    """Put `completion` into the subcommands of the parser `whole`."""

    def run(options: argparse.Namespace) -> None:
        print(script(whole, options.shell))

    own = commands.add_parser(
        "completion",
        help="print what makes a shell complete vtc",
        description="Print a script that makes a shell complete vtc's commands, options, files and names.",
        epilog='bash: eval "$(vtc completion bash)" in ~/.bashrc; zsh: vtc completion zsh > _vtc, in a folder of '
        "$fpath; fish: vtc completion fish > ~/.config/fish/completions/vtc.fish",
    )
    own.add_argument("shell", choices=SHELLS)
    own.set_defaults(run=run)


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What the shell is to read; ImportError with one sentence if shtab is not installed."""
    try:
        import shtab
    except ImportError:
        raise ImportError(_INSTALL) from None
    names = {
        "method": [info.name for info in vtc.list_methods()],
        "methods": [info.name for info in vtc.list_methods()],
        "family": [*SHIPPED],
        "model": tiny.names(),
        "device": ["cpu", "cuda", "auto"],
    }
    known: dict[str, Any] = {name: shtab.cmd(shlex.join(["printf", "%s\\n", *words])) for name, words in names.items()}
    known |= dict.fromkeys(_FILES, shtab.FILE) | dict.fromkeys(_FOLDERS, shtab.DIRECTORY)
    _tell(parser, known)
    return shtab.complete(parser, shell)


def _tell(parser: argparse.ArgumentParser, known: dict[str, Any]) -> None:
    """Give every action of the parser and its subcommands what completes it, by its name or its metavar."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _tell(below, known)
        elif (found := known.get(action.dest, known.get(str(action.metavar)))) is not None:
            action.complete = found  # type: ignore[attr-defined]
