"""The commands `vtc methods` and `vtc families`: a line each, a page about one, or JSON. None imports torch."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import vtc
from vtc.cli.arguments import known_name
from vtc.methods.base.index import MethodInfo
from vtc.methods.base.notation import write_method
from vtc.models.families import FamilyInfo, family_infos

STAGES = {
    "pixels": "before the vision tower",
    "encoder": "between the vision tower's blocks",
    "input": "before the language model",
    "layer": "between its layers",
    "cache": "in its KV cache",
}
_KINDS = {"image": "pictures", "video": "videos"}
_EVERYWHERE = ("keep", "positions", "scope")
_IN_TOWER = ("stage", "shorten", "schedule", "proportional", "block")  # where a method acts inside the vision tower
_IN_PARTS = ("blocks",)  # of methods that choose token by token
_OF_CROPS = ("exact_count", "newline")  # of methods that share a budget among crops
_WIDEST = 100
#: of model types that some methods are for alone, a checkpoint for examples
CHECKPOINTS = {"diffusion_gemma": "google/diffusiongemma-26B-A4B-it"}
#: methods that act on no model before they have been calibrated on it
CALIBRATED = ("razor",)


def add_commands(commands: Any) -> None:
    """Put `methods` and `families` into a parser's subcommands."""
    lists = (("methods", "method", "methods", _methods), ("families", "family", "model families", _families))
    for name, what, plural, run in lists:
        own = commands.add_parser(name, help=f"list the {plural}, or tell about one", description=run.__doc__)
        own.add_argument(what, nargs="?", metavar="NAME", help=f"a {what}; default: all, a line each")
        own.add_argument("--json", action="store_true", help="everything that is known, as JSON")
        own.add_argument("--plugin", metavar="FILE.py", help=f"a file of yours that defines a {what}")
        own.set_defaults(run=run)


def _methods(options: argparse.Namespace) -> None:
    """List the methods: their names, the stages they act at, what they keep. With NAME, everything about one."""
    known = {info.name: info for info in vtc.list_methods()}
    _show(options, "method", known, _method_rows(known.values()), _method_page)


def _families(options: argparse.Namespace) -> None:
    """List the model families that can be wrapped, by `config.model_type`. With NAME, everything about one."""
    known = {info.model_type: info for info in family_infos()}
    reads = {info: "+ videos" if "video" in info.modality else kinds(info.modality) for info in known.values()}
    rows = [(info.model_type, info.title, reads[info], info.tokens) for info in known.values()]
    _show(options, "family", known, rows, _family_page)


def _show(
    options: argparse.Namespace, what: str, known: dict[str, Any], rows: Sequence[Sequence[str]], page: Any
) -> None:
    name = getattr(options, what)
    if name is not None:
        known_name(name, known, what)
    if options.json:
        found = asdict(known[name]) if name is not None else [asdict(info) for info in known.values()]
        print(json.dumps(found, indent=1, ensure_ascii=False, default=str))
    elif name is not None:
        print("\n".join(page(known[name])))
    else:
        print("\n".join(_columns(rows)))
        plural = "methods" if what == "method" else "families"
        print(f"\n`vtc {plural} NAME` tells all about one, `vtc {plural} --json` about all.")


def _width() -> int:
    return min(_WIDEST, shutil.get_terminal_size((80, 24)).columns)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells under each other, a line per row; on a terminal, cut to its width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if not sys.stdout.isatty():
        return lines
    wide = shutil.get_terminal_size((80, 24)).columns
    return [line if len(line) <= wide else f"{line[: wide - 1]}…" for line in lines]


def _method_rows(infos: Iterable[MethodInfo]) -> list[tuple[str, str, str]]:
    return [(info.name, info.acts, info.summary) for info in infos]


def _method_page(info: MethodInfo) -> list[str]:
    """Everything about one method, in lines."""
    paper = f"{info.paper.title} (arXiv {info.paper.arxiv})" if info.paper else "none"
    count = "exactly `keep`" if info.exact_count else "`keep`, or as its own rules have it"
    stages = ", then ".join(f"{stage} ({STAGES.get(stage, stage)})" for stage in info.stage.split("+"))
    facts = {
        "stage": stages + "".join(f", or {place} ({STAGES.get(place, place)})" for place in instead(info)),
        "acts on": kinds(info.modality),
        "models": f"{', '.join(info.only)} alone" if info.only else "",
        "signals": ", ".join(info.needs) or f"none: {alone(info)}",
        "question": "is read" if info.query_aware else "is not read",
        "count": count,
        "positions": info.positions,
        "merging": "yes: what goes lives on in what stays" if info.merges else "no",
        "training": "`vtc train` trains its own weights" if info.trained else "none",
        "paper": paper,
    }
    lines = [f"{info.name}: {info.summary}", ""]
    lines += [line for name, said in facts.items() if said for line in _fact(name, said)]
    lines += ["", "options"]
    for name in in_order(info):
        default = info.default_keep if name == "keep" else info.defaults[name]
        lines += _option(name, default, info.types.get(name, ""), info.help.get(name, ""))
    lines += ["", "example", *_example(info)]
    if info.about:
        lines += ["", "about"]
        lines += [line for paragraph in info.about.split("\n") for line in _indented(paragraph)]
    return lines


def instead(info: MethodInfo) -> list[str]:
    """Stages that a method acts at where its option `stage` says so."""
    return [place for place in info.places if place not in info.stage.split("+")]


def alone(info: MethodInfo) -> str:
    """What a method reads that asks for no signal."""
    return "the blocks' own queries and keys" if info.stage == "encoder" else "the tokens alone"


def in_order(info: MethodInfo) -> list[str]:
    """The method's own options, after `keep` and before those that every method has."""
    own = [name for name in info.options if name not in _EVERYWHERE]
    return ["keep", *own, *(name for name in _EVERYWHERE[1:] if name in info.options)]


def _option(name: str, default: Any, kind: str, said: str) -> list[str]:
    kind = kind.replace(" | None", " or None").replace(" | ", " or ")
    shown = write_method("", {name: default})[1:-1] if default is not None else f"{name}=None"
    return [f"  {shown}  ({kind})", *_indented(said, 6)]


def _example(info: MethodInfo) -> list[str]:
    """A command and two lines of Python."""
    video = "image" not in info.modality
    asked = "--video clip.mp4" if video else "--image photo.jpg"
    text, model = example_text(info), "tiny-qwen" if video else "tiny-llava"
    if info.only:
        model = CHECKPOINTS.get(info.only[0], "...")
        asked = f"--model {model} {asked}"
    found, said, named = [], text, ""
    if info.name in CALIBRATED:
        file = f"{info.name}.json"
        found = [f'  vtc calibrate --data tiny --method "{text}" --pairs 1 --out {file}']
        said, named = f"{text[:-1]}, calibration={file})", f', calibration="{file}"'
    return [
        *found,
        f'  vtc ask {asked} --question "What is this?" --method "{said}"',
        "",
        f'  model, processor = vtc.load("{model}")',
        f'  vtc.wrap(model, "{text}"{named})',
    ]


def example_text(info: MethodInfo) -> str:
    """The method in its string form, with a budget and the first of its own options that has a value."""
    shared = (*_EVERYWHERE, *_IN_TOWER, *_IN_PARTS, *_OF_CROPS)
    shared = (*shared, "first") if info.only else shared  # which does nothing there
    own = {name: value for name, value in info.defaults.items() if name not in shared and value is not None}
    first = dict([*own.items()][:1])
    drops = info.stage != "cache" or info.default_keep != 1.0  # else layers share what all of them hold
    return write_method(info.name, ({"keep": 0.25} if drops else {}) | first)


def _family_page(info: FamilyInfo) -> list[str]:
    """Everything about one family, in lines."""
    where = "on the picture's grid" if info.grid else "in a row: methods of the grid refuse it"
    facts = {
        "model type": info.model_type,
        "reads": kinds(info.modality),
        "tokens": info.tokens,
        "they lie": where if info.modality else "",
        "stages": ", ".join(info.stages) if info.modality else "",
        "tower": ("is read" if info.read else "is not read: methods that read its attention refuse it")
        if info.modality
        else "",
        "notes": info.notes,
    }
    lines = [info.title, ""]
    lines += [line for name, said in facts.items() if said for line in _fact(name, said)]
    if info.checkpoint:
        asked = "--image photo.jpg"
        lines += [
            "",
            "example",
            f'  vtc ask --model {info.checkpoint} {asked} --question "What is this?" --method divprune --keep 0.1',
            "",
            f'  model, processor = vtc.load("{info.checkpoint}")',
            '  vtc.wrap(model, "divprune", keep=0.1)',
        ]
    return lines


def kinds(modality: Sequence[str]) -> str:
    """What a method or family takes, in words."""
    return ", ".join(_KINDS.get(kind, kind) for kind in modality) or "as its adapter says"


def _fact(name: str, said: str) -> list[str]:
    return _indented(f"{name:11} {said}", 2, 14)


def _indented(text: str, first: int = 2, rest: int | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        _width(),
        initial_indent=" " * first,
        subsequent_indent=" " * (first if rest is None else rest),
        break_long_words=False,
        break_on_hyphens=False,
    )
