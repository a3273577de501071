"""The command `vtc`: ask a model about a picture or a video with fewer visual
tokens, list the methods, and measure what they cost and spare."""

# Modules of commands import neither torch nor transformers before what was asked for has been checked: help and
# refusals answer at once.
import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import vtc
from vtc.cli import arguments, media, mistakes
from vtc.cli.calibrate import add_command as calibrate_command
from vtc.cli.completion import add_command as completion_command
from vtc.cli.demo import add_command as demo_command
from vtc.cli.listing import add_commands as listing_commands
from vtc.cli.loading import check, load
from vtc.cli.parser import Parser, Version, epilog, running
from vtc.cli.proving import add_command as check_command
from vtc.cli.serve_args import add_command as serve_args_command
from vtc.cli.train import add_command as train_command
from vtc.eval.bench.cli import add_command as bench_command
from vtc.eval.cli import add_commands as eval_commands
from vtc.methods.base.card import read_card
from vtc.models import tiny

_FOR_PICTURES, _FOR_VIDEOS = "tiny-llava", "tiny-qwen"  # of those that ship
_DRAWN = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".apng", ".bmp", ".tif", ".tiff", ".pdf")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, of which `vtc.cli.mistakes` has the meanings."""
    options = _parser().parse_args(argv)
    try:
        _import_plugin(getattr(options, "plugin", None))
        return options.run(options) or 0
    except (Exception, KeyboardInterrupt) as error:
        if options.traceback and not isinstance(error, KeyboardInterrupt):
            raise
        return mistakes.tell(error)


def _ask(options: argparse.Namespace) -> None:
    """Answer one question with all visual tokens and, if a method is given, with fewer."""
    trained = {"weights": options.weights} if options.weights is not None else {}
    names: list[str] = []
    if options.method is not None:
        alone = options.keep is not None or bool(trained)  # these are for one method
        names = arguments.check_methods([options.method], trained, several=not alone)
        _check_kinds(names, options)
        if options.weights is not None:
            read_card(options.weights, names[0])
    elif options.keep is not None or options.save is not None or trained:
        given = "--save" if options.save is not None else "--weights" if trained else "--keep"
        raise ValueError(f"{given} is about what a method keeps: give --method too (`vtc methods` lists them)")
    if not options.image and not options.video:
        raise ValueError("there is nothing to ask about: give --image or --video")
    if not options.video and (options.frames or options.fps or options.any_size):
        given = "frames" if options.frames else "fps" if options.fps else "any-size"
        raise ValueError(f"--{given} is about videos: give --video too")
    arguments.check_file("--save", options.save, _DRAWN)
    from vtc.media.prompts import check_question

    check_question(options.question)
    name = (_FOR_VIDEOS if options.video else _FOR_PICTURES) if options.model is None else options.model
    check(name, options.device)
    if name in tiny.names():
        arguments.check_general(names, name)
    if options.video and tiny.reads_videos(name) is False:
        raise ValueError(f"{name} does not read videos: leave --model out for {_FOR_VIDEOS}, or give one that does")
    pictures = media.pictures(options.image)
    clips = media.clips(options.video, options.frames, options.fps, options.any_size)
    model, processor = load(name, options.device, options.dtype)
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


def _check_kinds(names: Sequence[str], options: argparse.Namespace) -> None:
    """Refuse methods none of which acts on what is asked about: everything would stay as it is."""
    there = {kind for kind, given in (("image", options.image), ("video", options.video)) if given}
    able = {info.name: {*info.modality} for info in vtc.list_methods()}
    if there and not any(able[name] & there for name in names):
        kind, wanted = ("videos", "--video") if "video" in able[names[0]] else ("pictures", "--image")
        raise ValueError(f"{names[0]} acts on {kind} only: give {wanted}, or another method")


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


def _parser() -> argparse.ArgumentParser:
    shipped = running(_FOR_PICTURES, f"{_FOR_PICTURES}, which ships")
    asked = running(None, f"{_FOR_PICTURES}, for videos {_FOR_VIDEOS}, which ship")
    measured = running(None, f"{_FOR_PICTURES}, for videos {_FOR_VIDEOS}, which ship", several=True)
    parser = Parser(
        prog="vtc",
        description=__doc__,
        epilog=epilog([*mistakes.STATUS.items()]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="show the version")
    parser.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "ask", parents=[asked], help="ask a model about pictures or videos", description=_ask.__doc__
    )
    command.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture, or its address (https://); may repeat"
    )
    command.add_argument(
        "--video", action="append", default=[], metavar="FILE", help="a video, or its address; may repeat"
    )
    command.add_argument("--frames", type=arguments.count, metavar="N", help="so many of each video; default: 8")
    command.add_argument("--fps", type=arguments.positive, metavar="F", help="so many per second instead")
    command.add_argument("--any-size", action="store_true", help="read a video however large it is")
    command.add_argument("--question", required=True, help="what is asked")
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

    listing_commands(commands)
    eval_commands(commands, measured)
    bench_command(commands)
    train_command(commands, shipped)
    calibrate_command(commands, shipped)
    check_command(commands, shipped)
    serve_args_command(commands)

    demo_command(commands, shipped)
    completion_command(commands, parser)
    return parser
