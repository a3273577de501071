"""The command `vtc bench`: runs a benchmark and writes it as CSV, Markdown and a picture."""

from __future__ import annotations

from typing import Any

from vtc.cli import arguments
from vtc.eval.bench import archs, commands
from vtc.eval.bench.suites import SHARED, TOWERS, VIDEO


def add_command(parsers: Any) -> None:
    """Register `vtc bench` with the command line's subparsers."""
    about = "what methods cost and save in time and memory"
    command = parsers.add_parser("bench", help=about, description=__doc__)
    kinds = command.add_subparsers(required=True, metavar="ops|model|engine|select|clip|tower|threads|kvpress|imports")

    def kind(name: str, run: Any, about: str, tensors: bool = True, plot: bool = True, rounds: bool = True) -> Any:
        own = kinds.add_parser(name, help=about, description=run.__doc__)
        if rounds:
            own.add_argument("--rounds", type=arguments.count, default=5, metavar="N", help="default: %(default)s")
        own.add_argument("--csv", metavar="FILE", help="write every number here")
        own.add_argument("--markdown", metavar="FILE", help="write the tables here")
        if tensors:
            own.add_argument("--device", type=arguments.device, help="default: a GPU if there is one")
            own.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")
        if tensors and plot:
            own.add_argument("--plot", metavar="FILE", help="draw into this picture file")
        own.set_defaults(run=run)
        return own

    def limited(own: Any, what: str) -> None:
        own.add_argument("--seconds", type=arguments.count, metavar="N", help=f"time for all of it: {what}")

    def paired(own: Any, pairs: int) -> None:
        own.add_argument("--pairs", type=arguments.count, default=pairs, metavar="N", help="default: %(default)s")
        limited(own, "fewer pairs where that does not do")

    own = kind("ops", commands.ops, "scoring and gathering at the shapes of real models")
    own.add_argument("--only", type=arguments.listed(str), default=[], metavar="A,B", help="these ops; default: all")
    limited(own, "each case gets its share; default: 20 a case")
    own.add_argument("--growth", action="store_true", help="methods instead of ops, by the number of tokens")
    about = "with --growth: numbers of tokens; default: 576 to 36864, doubling, 73728, 131040"
    own.add_argument("--tokens", type=arguments.listed(arguments.count), metavar="N,N", help=about)
    about = "with --growth: seconds of one method at one number of tokens, what takes longer is left out; default: 60"
    own.add_argument("--limit", type=arguments.positive, metavar="S", help=about)
    about = "with --growth: go on from what the file of --csv has already"
    own.add_argument("--resume", action="store_true", help=about)
    own = kind("model", commands.model, "prefill and decoding of whole models with random weights")
    shapes = f"one of {', '.join(archs.ARCHS)}"
    about = f"{shapes}; default: a suite for the device"
    own.add_argument("--arch", choices=archs.ARCHS, metavar="ARCH", help=about)
    own.add_argument("--methods", type=arguments.listed(str), metavar="A,B", help="default: all")
    own.add_argument(
        "--keep", type=arguments.listed(arguments.keep), default=[64], metavar="N,N", help="budgets; default: 64"
    )
    own.add_argument("--batch", type=arguments.listed(arguments.count), default=[1], metavar="N,N", help="default: 1")
    own.add_argument("--short", action="store_true", help="without --arch: a few minutes' worth of the suite")
    limited(own, "no model and no round begins after them")
    own = kind("engine", commands.engine, "what the wrap itself costs, against the plain model", rounds=False)
    sizes = ["24x1024", "64x64"]
    own.add_argument(
        "--sizes", type=arguments.listed(str), default=sizes, metavar="LxW,LxW", help="default: 24x1024,64x64"
    )
    own.add_argument("--stages", type=arguments.listed(str), metavar="A,B", help="identity, input, ...; default: all")
    own.add_argument(
        "--grid", type=arguments.count, metavar="N", help="N x N visual tokens; default: 24, on a CPU 8 for time"
    )
    own.add_argument("--steps", type=arguments.count, default=4, metavar="N", help="decode steps; default: %(default)s")
    paired(own, 200)
    own = kind("select", commands.select, "choosing alone, against the plainest torch of the same rule", rounds=False)
    own.add_argument("--only", type=arguments.listed(str), default=[], metavar="A,B", help="these; default: all")
    paired(own, 50)
    own = kind("clip", commands.clip, "from a video file to the first word of an answer, part by part")
    own.add_argument("--video", required=True, metavar="FILE", help="the video that is asked about")
    own.add_argument("--question", default="What moves?", help="default: %(default)s")
    about = "shipped name, folder or Hub id; default: %(default)s"
    own.add_argument("--model", default="tiny-qwen", metavar="NAME_OR_PATH", help=about)
    own.add_argument("--frames", type=arguments.count, metavar="N", help="so many of the video; default: 8")
    own.add_argument("--fps", type=arguments.positive, metavar="F", help="so many per second instead")
    own.add_argument(
        "--methods", type=arguments.listed(str), default=list(VIDEO), metavar="A,B", help=f"default: {','.join(VIDEO)}"
    )
    own.add_argument(
        "--keep", type=arguments.listed(arguments.keep), default=[0.1], metavar="N,N", help="budgets; default: 0.1"
    )
    own = kind("tower", commands.tower, "vision towers whose patches merge between their blocks, against keep")
    about = f"some of {', '.join(TOWERS)}; default: all"
    own.add_argument("--towers", type=arguments.listed(str), default=list(TOWERS), metavar="A,B", help=about)
    own.add_argument("--methods", type=arguments.listed(str), default=["tome"], metavar="A,B", help="default: tome")
    keeps = [0.75, 0.5, 0.25]
    about = "shares that are left behind the last block; default: 0.75,0.5,0.25"
    own.add_argument("--keep", type=arguments.listed(arguments.keep), default=keeps, metavar="N,N", help=about)
    own.add_argument("--blocks", type=arguments.count, metavar="N", help="so many in each tower; default: 4")
    own = kind("threads", commands.threads, "answers per second when threads share one model", plot=False)
    about = f"{shapes}; default: %(default)s"
    own.add_argument("--arch", choices=archs.ARCHS, default="cpu-4x256", metavar="ARCH", help=about)
    own.add_argument("--threads", type=arguments.count, default=4, metavar="N", help="default: %(default)s")
    own.add_argument(
        "--methods",
        type=arguments.listed(str),
        default=list(SHARED),
        metavar="A,B",
        help=f"default: {','.join(SHARED)}",
    )
    own.add_argument("--keep", type=arguments.keep, default=0.2, metavar="N", help="budget; default: %(default)s")
    own = kind("kvpress", commands.kvpress, "cache methods beside those of kvpress", plot=False, rounds=False)
    llamas = [name for name, arch in archs.ARCHS.items() if arch.family == "llava"]
    about = f"one of {', '.join(llamas)}; default: %(default)s"
    own.add_argument("--arch", choices=llamas, default="cpu-kv", metavar="ARCH", help=about)
    keeps = [0.5, 0.25, 0.1]
    about = "of the prompt's tokens; default: 0.5,0.25,0.1"
    own.add_argument("--keep", type=arguments.listed(arguments.keep), default=keeps, metavar="N,N", help=about)
    about = "the last queries that are heard; default: %(default)s"
    own.add_argument("--window", type=arguments.count, default=32, metavar="N", help=about)
    own.add_argument("--steps", type=arguments.count, default=20, metavar="N", help="decode steps; default: 20")
    about = "how long importing vtc takes, and its command line without a model"
    kind("imports", commands.imports, about, tensors=False)
