"""The command `vtc`: ask a model about a picture, list the methods, measure what they cost in accuracy."""

# Modules of commands import neither torch nor transformers before what was asked for has been checked: help and
# refusals answer at once.
import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import vtc
from vtc.cli import arguments
from vtc.cli.loading import load
from vtc.cli.train import add_command as train_command
from vtc.demos.serve import PORT, serve
from vtc.eval.bench.cli import add_command as bench_command
from vtc.eval.cli import add_commands as eval_commands
from vtc.methods.base.card import read_card
from vtc.models import tiny

_MISTAKES = (ValueError, TypeError, OSError, ImportError, NotImplementedError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected mistakes end as one sentence on stderr and status 2."""
    options = _parser().parse_args(argv)
    try:
        _import_plugin(getattr(options, "plugin", None))
        return options.run(options) or 0
    except _MISTAKES as error:
        if options.traceback:
            raise
        print(f"vtc: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"vtc: {stop or 'stopped'}", file=sys.stderr)
        return 130


def _ask(options: argparse.Namespace) -> None:
    """Answer one question with all visual tokens and, if a method is given, with fewer."""
    trained = {"weights": options.weights} if options.weights else {}
    if options.method:
        alone = options.keep is not None or bool(trained)  # these are for one method
        (name, *_) = arguments.check_methods([options.method], trained, several=not alone)
    elif options.keep is not None or options.save or options.weights:
        given = "--save" if options.save else "--weights" if options.weights else "--keep"
        raise ValueError(f"{given} is about what a method keeps: give --method too (`vtc methods` lists them)")
    if not options.image and not options.video:
        raise ValueError("there is nothing to ask about: give --image or --video")
    if not options.video and (options.frames or options.fps):
        raise ValueError(f"--{'frames' if options.frames else 'fps'} is about videos: give --video too")
    if options.save:
        from PIL import Image

        if Path(options.save).suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"--save {options.save}: end the name in .png or another picture format")
    if options.weights:
        read_card(options.weights, name)
    from vtc.media.prompts import check_question

    check_question(options.question)
    pictures = [vtc.load_picture(path) for path in options.image]
    clips = [vtc.load_clip(path, options.frames, options.fps) for path in options.video]
    model, processor = load(options.model, options.device, options.dtype)
    from vtc.cli.ask import ask, save_overlays, show

    answers = ask(
        model,
        processor,
        pictures,
        options.question,
        options.method,
        options.keep,
        options.max_new_tokens,
        clips,
        **trained,
    )
    for path, clip in zip(options.video, clips, strict=True):
        first, last = clip.times[0], clip.times[-1]
        print(f"{len(clip)} frames of {Path(path).name}, {first:.1f} to {last:.1f} s, read by {clip.reader}")
        for note in clip.notes:
            print(f"note: {note}")
    show(answers)
    if options.save:
        for path in save_overlays(pictures, processor, answers[-1], Path(options.save), clips):
            print(f"overlay: {path}")


def _methods(options: argparse.Namespace) -> None:
    """List the registered methods."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    listing = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "stage", "needs", "query aware", "merges"):
        listing.add_column(title, no_wrap=title == "name")
    listing.add_column("paper", ratio=1)
    for info in vtc.list_methods():
        paper = f"{info.paper.title} (arXiv {info.paper.arxiv})" if info.paper else ""
        needs = "\n".join(info.needs) or "nothing"
        listing.add_row(info.name, info.stage, needs, _yes(info.query_aware), _yes(info.merges), paper)
    Console().print(listing)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _demo(options: argparse.Namespace) -> None:
    """Show in a browser what methods keep of a picture or a clip, until Ctrl-C."""
    arguments.check_device(options.device)
    tiny.find(options.model)
    models = list(dict.fromkeys([options.model, *tiny.names()]))
    serve(models, options.port, options.host, options.share, options.device, options.dtype)


def _import_plugin(name: str | None) -> None:
    """Run a user's file, if one is named; methods defined in it register themselves."""
    if name is None:
        return
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no plugin file at {path}: check the path")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file: a plugin is a .py file that defines a method")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ImportError(f"the plugin {path} failed: {type(error).__name__}: {error}") from error


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """argparse's own wants the version before anybody has asked for it."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        print(f"vtc {vtc.__version__}")
        parser.exit()


def _running(model: str | None, action: str = "store") -> _Parser:
    """Options of commands that run a model; a parser shares its options' defaults with all that it is a parent of."""
    running = _Parser(add_help=False)
    more = " (tiny-qwen for videos); may repeat" if action == "append" else ""
    running.add_argument(
        "--model", action=action, default=model, metavar="NAME_OR_PATH", help=f"default: tiny-llava, which ships{more}"
    )
    running.add_argument("--device", type=arguments.device, help="default: a GPU if there is one")
    running.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the model's own")
    running.add_argument("--plugin", metavar="FILE.py", help="a file of yours that defines a method")
    return running


def _parser() -> argparse.ArgumentParser:
    running, measured = _running("tiny-llava"), _running(None, "append")
    parser = _Parser(prog="vtc", description=__doc__)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    parser.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "ask", parents=[running], help="ask a model about pictures or videos", description=_ask.__doc__
    )
    command.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may repeat")
    command.add_argument("--video", action="append", default=[], metavar="FILE", help="a video; may repeat")
    command.add_argument("--frames", type=arguments.count, metavar="N", help="so many of each video; default: 8")
    command.add_argument("--fps", type=float, metavar="F", help="so many per second instead")
    command.add_argument("--question", required=True)
    command.add_argument("--method", help="compress with this method, too: todre, 'todre(keep=0.1, mode=kcenter)'")
    command.add_argument(
        "--keep", type=arguments.keep, help="visual tokens to keep per picture: 64, or 0.1 for a tenth"
    )
    command.add_argument("--weights", metavar="FOLDER", help="of a trained method: what `vtc train` wrote")
    command.add_argument(
        "--save", metavar="FILE", help="draw the kept patches into this picture file; of a video .gif and .webp move"
    )
    command.add_argument("--max-new-tokens", type=arguments.count, default=48, metavar="N", help="default: %(default)s")
    command.set_defaults(run=_ask)

    command = commands.add_parser("methods", help="list the methods", description=_methods.__doc__)
    command.set_defaults(run=_methods)

    eval_commands(commands, measured)
    bench_command(commands)
    train_command(commands, running)

    about = "show in a browser what methods keep"
    command = commands.add_parser("demo", parents=[running], help=about, description=_demo.__doc__)
    command.add_argument("--port", type=arguments.count, default=PORT, metavar="P", help="default: %(default)s")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: %(default)s")
    command.add_argument("--share", action="store_true", help="also through a public address of gradio's")
    command.set_defaults(run=_demo)
    return parser
