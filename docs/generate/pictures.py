"""Draw the pictures of "How it works" into docs/pictures/: `python -m docs.generate.pictures [NAME ...]`.

Each is a card with round corners, once for light pages and once, as NAME-dark.png, for dark ones. What they show is
computed: numbers by the library, what methods keep by runs of tiny-llava and tiny-next on pictures of their test sets.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image, ImageDraw

from vtc.stages import stage_names

Point = tuple[float, float]
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pictures"
PICTURE, QUESTION = ROOT / "eval/data/tiny/pictures/0006.webp", "What color is the heart?"
FOUR = ("vtc-cls", "divprune", "visionzip", "fastv")
CROPPED, COMMANDED = ROOT / "eval/data/tiny-next/pictures/n0001.webp", ("hired", "globalcom2")
_DPI, _RADIUS, _COLORS = 190, 22, 256


class Colors(NamedTuple):
    """Of a card, of what is written on it, and of stages and of groups of tokens that become one.

    `hues` are Okabe and Ito's, which readers with any colour vision tell apart; those for light cards are darker, so
    that words can be read that are written in them.
    """

    card: str
    ink: str
    soft: str
    line: str
    dim: str
    kept: str
    hues: tuple[str, ...]


_DARK = ("#56b4e9", "#e69f00", "#2fbf8f", "#e58ab8", "#f0e442")
_LIGHT = ("#2a86c8", "#bd6f00", "#0c8f65", "#b9568b", "#8f8200")
#: what the name of a picture's file ends in -> the colours of the pages that it is for
LOOKS = {
    "": Colors("#f6f8fa", "#1b1f24", "#56606b", "#b3bcc6", "#e3e7ec", "#e39a1c", _LIGHT),
    "-dark": Colors("#171b22", "#eceff4", "#a7b0bc", "#465160", "#2b323c", "#e8b04a", _DARK),
}
_look = LOOKS[""]  # of what is being drawn


def main(names: list[str]) -> int:
    """Draw those that are named, or all; 2 if there is none of that name."""
    unknown = [name for name in names if name not in PICTURES]
    if unknown:
        print(f"there is no picture {unknown[0]!r}: there are {', '.join(PICTURES)}", file=sys.stderr)
        return 2
    FOLDER.mkdir(exist_ok=True)
    for name in names or PICTURES:
        for look in LOOKS:
            file = FOLDER / f"{name}{look}.png"
            draw(name, look).save(file, optimize=True)
            print(f"{file} ({file.stat().st_size // 1000} kB)")
    return 0


def draw(name: str, look: str) -> Image.Image:
    """A picture in one of `LOOKS`."""
    global _look
    _look = LOOKS[look]
    return PICTURES[name]()


# -- the way of a token ----------------------------------------------------------------------------------------------


def stages() -> Image.Image:
    """From the picture to the cache, and where on that way methods act."""
    figure, axes = _canvas(10.4, 4.3)
    hues = dict(zip(stage_names(), _look.hues, strict=False))
    _cells(axes, 0.25, 1.75, 6, 6, 0.2)
    _under(axes, 0.85, 1.55, "picture", "pixels")
    _box(axes, 2.35, 1.45, 1.2, 1.8, "vision\ntower", slabs=3)
    _box(axes, 4.15, 1.95, 0.75, 0.8, "pro-\njector")
    _tokens(axes, 5.55, 2.35, range(12), 0.117, range(12))
    _under(axes, 6.2, 1.95, "visual tokens", "among the text's")
    _model(axes, 7.35, 0.75)
    for x0, x1, y in ((1.5, 2.3, 2.35), (3.6, 4.1, 2.35), (4.95, 5.4, 2.35), (7.0, 7.3, 2.35)):
        _arrow(axes, (x0, y), (x1, y))
    places = {
        "pixels": (1.75, "fewer pixels:\nspares all of it"),
        "encoder": (3.1, "fewer patches\nfrom a block on"),
        "input": (5.15, "fewer tokens:\nspares every layer"),
        "layer": (8.0, "fewer from some\nlayer on"),
        "cache": (9.72, "fewer cached:\nspares memory"),
    }
    for name, (x, said) in places.items():
        if name in hues:
            _pill(axes, x, 4.0, name, hues[name])
            axes.text(x, 3.68, said, color=_look.soft, fontsize=9.5, ha="center", va="top", linespacing=1.25)
            bottom = {"layer": 2.95, "cache": 2.95, "encoder": 3.28}.get(name, 2.45)
            axes.plot([x, x], [3.28 if "\n" in said else 3.4, bottom], color=hues[name], lw=1.2, ls=(0, (2, 2)))
    return _finish(figure)


def _model(axes: Any, x: float, y: float) -> None:
    """Four decoder layers, of which a method drops tokens before the second, each with its part of the cache.

    Tokens that go at a place are dim there, and gone above.
    """
    _under(axes, x + 0.65, y - 0.08, "language model", "layers, first one below")
    _under(axes, x + 2.35, y - 0.08, "KV cache", "of each layer")
    left = [range(9), *[(0, 2, 4, 7, 8)] * 3]  # tokens of each layer
    cached = [(0, 2, 3, 4, 7), *[(2, 4, 7)] * 3]
    for i, (tokens, kept) in enumerate(zip(left, cached, strict=True)):
        bottom = y + 0.06 + 0.53 * i
        _round(axes, x, bottom, 1.3, 0.42, _look.dim)
        _tokens(axes, x + 0.15, bottom + 0.21, tokens, 0.117, range(9) if i == 1 else tokens)
        _arrow(axes, (x + 1.36, bottom + 0.21), (x + 1.78, bottom + 0.21), 0.8)
        _round(axes, x + 1.82, bottom, 1.06, 0.42, _look.dim)
        _tokens(axes, x + 1.92, bottom + 0.21, kept, 0.1, tokens)


# -- a selection -----------------------------------------------------------------------------------------------------


def selection() -> Image.Image:
    """Eight tokens pruned, and merged: the three tensors of a Selection are those of the library."""
    import torch

    from vtc.selection import Selection

    figure, axes = _canvas(10.4, 4.3)
    pruned = Selection.prune(torch.tensor([1, 4, 6]), total=8)
    merged = Selection.merge(anchor=torch.tensor([1, 4, 6]), source=torch.tensor([0, 0, -1, 1, 1, 1, 2, -1]))
    _selection(axes, 0.75, pruned, "pruning: three stay as they are, five go")
    _selection(axes, 5.95, merged, "merging: what goes lives on in what stays")
    return _finish(figure)


def _selection(axes: Any, x: float, chosen: Any, title: str) -> None:
    source, weight, anchors = chosen.source.tolist(), chosen.weight.tolist(), chosen.anchor.tolist()
    wide = 0.5
    axes.text(x, 3.95, title, color=_look.ink, fontsize=11.5, weight="bold", va="center")
    for m, anchor in enumerate(anchors):
        for i, into in enumerate(source):
            if into == m:
                _arrow(
                    axes,
                    (x + wide * i + 0.2, 2.88),
                    (x + wide * anchor + 0.2, 2.22),
                    2.2 * weight[i],
                    _look.hues[m],
                )
        _token(axes, x + wide * anchor, 1.78, 0.4, _look.hues[m], str(m))
    for i, into in enumerate(source):
        _token(
            axes,
            x + wide * i,
            2.9,
            0.4,
            _look.hues[into] if into >= 0 else _look.dim,
            str(i),
            into < 0,
            i in anchors,
        )
    axes.text(x - 0.12, 3.44, "anchors", color=_look.soft, fontsize=9.5, ha="right", va="center")
    axes.text(x - 0.12, 3.1, "in", color=_look.soft, fontsize=9.5, ha="right", va="center")
    axes.text(x - 0.12, 1.98, "out", color=_look.soft, fontsize=9.5, ha="right", va="center")
    lines = {
        "anchor": [str(i) for i in anchors],
        "source": [str(into) for into in source],
        "weight": [_fraction(w) for w in weight],
    }
    for row, (name, cells) in enumerate(lines.items()):
        y = 1.32 - 0.42 * row
        axes.text(x - 0.12, y, name, color=_look.soft, fontsize=9.5, ha="right", va="center")
        for i, cell in enumerate(cells):
            at = anchors[i] if name == "anchor" else i
            dropped = name != "anchor" and source[i] < 0
            color = _look.hues[i if name == "anchor" else source[i]] if not dropped else _look.soft
            axes.text(x + wide * at + 0.2, y, cell, color=color, fontsize=10.5, ha="center", va="center")


def _fraction(weight: float) -> str:
    return "0" if weight == 0 else "1" if weight == 1 else f"1/{round(1 / weight)}"


# -- four methods on a picture ---------------------------------------------------------------------------------------


def four_methods() -> Image.Image:
    """What four methods keep of one picture at a tenth of its tokens, and what tiny-llava then answers."""
    import vtc

    model, processor = vtc.load("tiny-llava")
    picture = vtc.load_picture(PICTURE)
    inputs = vtc.prepare(processor, QUESTION, [picture])
    drawn = [(vtc.seen(picture, processor), "all tokens", _answer(model, processor, inputs), "")]
    for name in FOUR:
        with vtc.wrapped(model, name, keep=0.1):
            said = _answer(model, processor, inputs)
            report = vtc.report(model)
            span = report.at(len(report.tokens_by_layer) - 1)[0]
            panel = vtc.overlay(vtc.seen(picture, processor), span, captions=False)
            drawn.append((panel, name, said, f"{len(span.kept)} of {span.tokens_in}"))
    return _row(drawn)


def _answer(model: Any, processor: Any, inputs: Any) -> str:
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


def _row(drawn: list[tuple[Image.Image, str, str, str]]) -> Image.Image:
    wide = 2.0
    figure, axes = _canvas(0.25 + len(drawn) * (wide + 0.12), 3.05)
    axes.text(0.2, 2.82, f"“{QUESTION}”", color=_look.ink, fontsize=11.5, va="center")
    for i, (panel, name, said, count) in enumerate(drawn):
        x = 0.18 + i * (wide + 0.12)
        axes.imshow(panel, extent=(x, x + wide, 0.6, 0.6 + wide), interpolation="lanczos", zorder=2)
        axes.text(x, 0.42, name, color=_look.ink, fontsize=11, weight="bold", va="center")
        axes.text(x + wide, 0.42, count, color=_look.soft, fontsize=10, ha="right", va="center")
        axes.text(x, 0.18, f"says “{said}”", color=_look.soft, fontsize=10, va="center")
    axes.set_xlim(0, figure.get_figwidth())
    axes.set_ylim(0, figure.get_figheight())
    return _finish(figure)


# -- budgets of crops -------------------------------------------------------------------------------------------------


def crops() -> Image.Image:
    """How two methods share 640 tokens among the thumbnail and the crops of one picture of tiny-next's test set."""
    import vtc

    model, processor = vtc.load("tiny-next")
    picture = vtc.load_picture(CROPPED)
    inputs = vtc.prepare(processor, "What is this?", [picture])
    wide, high = 5.1, 2.72
    figure, axes = _canvas(0.2 + 2 * wide, high + 0.45)
    for i, name in enumerate(COMMANDED):
        with vtc.wrapped(model, name, keep=640):
            model(**inputs)
            drawn = vtc.overlay(vtc.seen(picture, processor), vtc.report(model).spans[0], side=470)
        x = 0.1 + wide * i
        axes.imshow(drawn, extent=(x, x + wide, 0.05, 0.05 + wide * drawn.height / drawn.width), zorder=2)
        axes.text(x + 0.17, high + 0.2, name, color=_look.ink, fontsize=12, weight="bold", va="center")
    axes.set_xlim(0, figure.get_figwidth())
    axes.set_ylim(0, figure.get_figheight())
    return _finish(figure)


# -- schedules, and what keep means ----------------------------------------------------------------------------------


def schedule() -> Image.Image:
    """Visual tokens that each of 32 layers sees, of 576: before all of them, once, in stages, by the average."""
    from vtc.methods.fastv import FastV
    from vtc.methods.pyramiddrop import PyramidDrop

    depth, total = 32, 576
    methods = [FastV(keep=0.25), PyramidDrop(keep=0.25), PyramidDrop(keep=288, average=True)]
    ways = {"divprune(keep=0.25)": [144] * depth} | {str(one): _seen(one, depth, total) for one in methods}
    figure = Figure(figsize=(10.4, 4.4), facecolor=_look.card)
    axes = figure.add_axes((0.07, 0.14, 0.57, 0.76))
    axes.set_facecolor(_look.card)
    for number, (name, seen) in enumerate(ways.items()):
        hue, wide = _look.hues[number], (8, 5.5, 3.5, 1.8)[number]  # so that none hides another
        axes.step([*range(depth), depth], [*seen, seen[-1]], where="post", color=hue, lw=wide)
        y = 0.93 - 0.23 * number
        beside: dict[str, Any] = {"transform": axes.transAxes}
        axes.text(1.02, y, name, color=hue, fontsize=10.5, weight="bold", **beside)
        said = f"{seen[-1]} at the end, {sum(seen) / depth:.0f} on average"
        axes.text(1.02, y - 0.08, said, color=_look.soft, fontsize=10.5, **beside)
    axes.set(xlim=(0, depth), ylim=(0, 610), yticks=[0, 144, 288, 432, 576], xticks=range(0, 33, 4))
    axes.set_xlabel("decoder layer of 32", color=_look.soft)
    axes.set_title("visual tokens that a layer works on", color=_look.ink, fontsize=11.5, loc="left")
    axes.tick_params(colors=_look.soft, labelsize=10)
    axes.grid(color=_look.line, alpha=0.5, lw=0.6)
    for side in axes.spines.values():
        side.set_visible(False)
    return _finish(figure)


def _seen(method: Any, depth: int, total: int) -> list[int]:
    """Tokens that each layer sees under a method of the stage `layer`."""
    steps = dict(zip(method.steps(depth), method.counts(total, depth), strict=True))
    left, found = total, []
    for layer in range(depth):
        left = steps.get(layer, left)
        found.append(left)
    return found


def keep() -> Image.Image:
    """A fraction and a count, on pictures of three sizes."""
    from vtc.budget import token_count

    sizes = {"one crop": 576, "a wide picture": 1728, "five crops": 2880}
    figure, axes = _canvas(10.4, 3.5)
    for column, (wanted, said) in enumerate(((0.1, "a fraction of each picture"), (64, "a count for each picture"))):
        x = 1.75 + 4.5 * column
        axes.text(x, 3.12, f"keep={wanted}", color=_look.hues[column], fontsize=13.5, weight="bold", family="monospace")
        axes.text(x + 1.35, 3.12, said, color=_look.soft, fontsize=10.5)
        for row, (name, total) in enumerate(sizes.items()):
            y, long = 2.35 - 0.85 * row, 3.1 * total / 2880
            if not column:
                axes.text(0.25, y + 0.28, name, color=_look.ink, fontsize=11, va="center")
                axes.text(0.25, y + 0.05, f"{total} tokens", color=_look.soft, fontsize=10, va="center")
            kept = token_count(wanted, total)
            _round(axes, x, y, long, 0.34, _look.dim)
            _round(axes, x, y, long * kept / total, 0.34, _look.hues[column], 0.0)
            axes.text(x + long + 0.12, y + 0.17, f"{kept}", color=_look.ink, fontsize=11.5, va="center")
    return _finish(figure)


# -- pieces ----------------------------------------------------------------------------------------------------------


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    """A card whose axes are in inches."""
    figure = Figure(figsize=(width, height), facecolor=_look.card)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return figure, axes


def _finish(figure: Figure) -> Image.Image:
    """The figure in pixels, with round corners and few colours."""
    stored = io.BytesIO()
    figure.savefig(stored, dpi=_DPI, facecolor=_look.card)
    drawn = Image.open(stored).convert("RGBA")
    corners = Image.new("L", (2 * drawn.width, 2 * drawn.height), 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, 2 * drawn.width - 1, 2 * drawn.height - 1), 2 * _RADIUS, fill=255)
    drawn.putalpha(corners.resize(drawn.size, Image.Resampling.LANCZOS))
    return drawn.quantize(_COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def _round(axes: Any, x: float, y: float, width: float, height: float, color: str, edge: float = 0.8) -> None:
    style = f"round,pad=0,rounding_size={min(0.08, height / 3, width / 3)}"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, style, facecolor=color, edgecolor=_look.line, lw=edge, zorder=1)
    )


def _box(axes: Any, x: float, y: float, width: float, height: float, text: str, slabs: int = 0) -> None:
    _round(axes, x, y, width, height, _look.dim)
    for i in range(1, slabs):
        axes.plot([x + width * i / slabs] * 2, [y + 0.12, y + 0.3], color=_look.line, lw=1)
        axes.plot([x + width * i / slabs] * 2, [y + height - 0.3, y + height - 0.12], color=_look.line, lw=1)
    axes.text(x + width / 2, y + height / 2, text, color=_look.ink, fontsize=10.5, ha="center", va="center")


def _under(axes: Any, x: float, y: float, text: str, more: str) -> None:
    axes.text(x, y, text, color=_look.ink, fontsize=10.5, ha="center", va="top")
    axes.text(x, y - 0.23, more, color=_look.soft, fontsize=9, ha="center", va="top")


def _pill(axes: Any, x: float, y: float, text: str, hue: str) -> None:
    style = "round,pad=0.07,rounding_size=0.16"
    half = 0.055 * len(text)
    axes.add_patch(FancyBboxPatch((x - half, y - 0.08), 2 * half, 0.18, style, facecolor=hue, edgecolor="none"))
    axes.text(x, y + 0.005, text, color="#10131a", fontsize=10.5, weight="bold", ha="center", va="center")


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], wide: float = 1.1, hue: str = "") -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=8, lw=wide, color=hue or _look.soft, shrinkA=0, shrinkB=0
        )
    )


def _cells(axes: Any, x: float, y: float, rows: int, columns: int, side: float) -> None:
    """A picture as its patches: a sun over a field."""
    for row in range(rows):
        for column in range(columns):
            sun, field = (row - 4) ** 2 + (column - 4) ** 2 < 2, row < 2
            hue = "#e69f00" if sun else "#2f7d5b" if field else "#3b6ea5"
            place = (x + side * column + 0.01, y + side * row + 0.01)
            axes.add_patch(Rectangle(place, side - 0.02, side - 0.02, facecolor=hue, edgecolor="none"))


def _tokens(axes: Any, x: float, y: float, kept: Sequence[int], step: float, among: Sequence[int]) -> None:
    """A row of tokens: those `kept` are bright, others `among` dim, and the rest are not there."""
    side = 0.68 * step
    for i in among:
        color = _look.kept if i in kept else _look.line
        axes.add_patch(Rectangle((x + step * i, y - side / 2), side, side, facecolor=color, edgecolor="none", zorder=3))


def _token(
    axes: Any, x: float, y: float, side: float, color: str, text: str, gone: bool = False, anchor: bool = False
) -> None:
    _round(axes, x, y, side, side, color, 0.0 if not gone else 0.8)
    ink = _look.soft if gone else "#10131a"
    axes.text(
        x + side / 2, y + side / 2, text, color=ink, fontsize=11.5, weight="bold", ha="center", va="center", zorder=4
    )
    if anchor:
        axes.add_patch(Circle((x + side / 2, y + side + 0.14), 0.045, facecolor=_look.ink, edgecolor="none"))


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "stages": stages,
    "selection": selection,
    "four-methods": four_methods,
    "crops": crops,
    "schedule": schedule,
    "keep": keep,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
