"""The parser: argparse, with one line per mistake.

It is argparse and no typer or click: `vtc bench` runs where nothing but torch and transformers is installed, and help
answers before either could be imported.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NoReturn

import vtc
from vtc.cli.arguments import Once, device
from vtc.hints import did_you_mean


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and what may have been meant; `--help` has the rest."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        for name in (None, "store"):
            self.register("action", name, Once)

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        hint = did_you_mean(wrong[1], re.findall(r"[\w.-]+", wrong[2])) if wrong else ""
        said = " ".join(message.split()) + (hint and f".{hint}")
        self.exit(2, f"{self.prog}: {said} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but a command refuses by itself what it does not know, and before it misses anything."""
        options = [option for action in self._actions for option in action.option_strings]
        if args is not None:
            own = takewhile("--".__ne__ if self.get_default("run") else _is_option, args)  # else a command follows
            for name in (one.partition("=")[0] for one in own if one.startswith("--")):
                if not any(option.startswith(name) for option in options) and " " not in name:
                    hint = did_you_mean(name, options)
                    self.error(f"there is no option {name}{hint and '.'}{hint}")
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"{unknown[0]!r} is not expected here")
        return found, unknown


def _is_option(text: str) -> bool:
    return text.startswith("-") and text != "--"


class Version(argparse.Action):
    """argparse's own wants the version before anybody has asked for it."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        print(f"vtc {vtc.__version__}")
        parser.exit()


def running(model: str | None, default: str, several: bool = False) -> Parser:
    """Options of commands that run a model; a parser shares its options' defaults with all that it is a parent of.

    Args:
        model: the default. default: what help says of it. several: models may be given.
    """
    parser = Parser(add_help=False)
    action, more = ("append", "; may repeat") if several else ("store", "")
    about = f"default: {default}{more}"
    parser.add_argument("--model", action=action, default=model, metavar="NAME_OR_PATH", help=about)
    parser.add_argument("--device", type=device, help="default: a GPU if there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the model's own")
    parser.add_argument("--plugin", metavar="FILE.py", help="a file of yours that defines a method")
    return parser


def epilog(statuses: Sequence[tuple[int, str]]) -> str:
    """What help says of exit statuses."""
    lines = [f"  {number:3}  {meaning}" for number, meaning in statuses]
    return "\n".join(["exit status (other than 0: one sentence on stderr says why):", *lines])
