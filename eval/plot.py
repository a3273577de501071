"""The Pareto picture: accuracy over what it costs, and the frontier that no other run is below and left of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.eval.compare import Row, frontier
from vtc.eval.recorded import Compared, classifies
from vtc.eval.settings import FULL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is drawn over: an attribute of Row, its factor, and its title.
COSTS = {
    "ttft_ms": (1.0, "time to first token, ms"),
    "picture_ms": (1.0, "time per picture, ms"),
    "flops_share": (100.0, "prefill FLOPs of the language model, % of uncompressed"),
    "kv_share": (100.0, "bytes of the KV cache, % of uncompressed"),
}
_FLOPS_OF_ALL = "FLOPs of a picture, % of uncompressed"  # where there is no language model
# Okabe and Ito's colours, which all readers can tell apart, then others.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7B4FA3", "#5B7F1E", "#C2185B")
_MARKS = "osDv^<>PXph*"
_DPI = 130
_SIDE = 6.4  # inches of a panel's width
_ASIDE = 4.5  # points from one method to the next of the same cost
_ALMOST = 0.9


def methods(groups: Sequence[Compared]) -> list[str]:
    """What is drawn, by label, `random` first: its place here is the number that `style` wants."""
    return list(dict.fromkeys(["random", *(row.label for group in groups for row in group.rows if row.compressed)]))


def style(number: int) -> tuple[str, str]:
    """Colour and mark of the method with this number, `random` being 0 and black."""
    return ("black" if number == 0 else COLORS[(number - 1) % len(COLORS)]), _MARKS[number % len(_MARKS)]


def pareto(groups: Sequence[Compared], file: Path) -> None:
    """Draw `picture` into a file."""
    picture(groups).savefig(file, dpi=_DPI)


def picture(groups: Sequence[Compared]) -> Figure:
    """A row of panels per group (a panel, where one cost is shown): accuracy over time, FLOPs and KV bytes.

    Scales of cost are logarithmic. A line per method runs through its budgets, with 95 % intervals; methods of one cost
    stand side by side, a few points apart. The frontier is shaded, and its points are ringed, with their keep where
    there is room. A cost that was measured for no run has no panel, nor has one that orders all runs as another does.

    Raises:
        ImportError: matplotlib is missing; it comes with the extra `eval`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'vtc-vlm[eval]'") from error
    groups = [group for group in groups if group.rows]
    costs = shown(groups)
    names = methods(groups)
    marked = {row.label: f"{row.name} (at full cost)" for group in groups for row in group.rows if row.full_cost}
    # What the legend takes, a mark and the letters of a name in inches, and three names besides: frontier, full, blind.
    beside = len(costs) < 2  # one panel per group: these stand in a row
    width = _SIDE * (len(groups) if beside else len(costs))
    told = {name: _in_lines(name) for name in names}
    longest = max(len(line) for text in told.values() for line in text.split("\n"))
    columns = max(1, int(width / (0.6 + 0.085 * longest)))
    lines = math.ceil(sum(text.count("\n") + 1 for text in [*told.values(), "", "", ""]) / columns)
    height = 0.8 * _SIDE * (1 if beside else len(groups)) + 0.25 * (lines + (columns > 1))
    figure = Figure(figsize=(width, height), layout="constrained", dpi=_DPI)
    if beside:
        panels = figure.subplots(1, len(groups), squeeze=False).T
    else:
        panels = figure.subplots(len(groups), len(costs), sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    tell: list[Callable[[], None]] = []
    for group, row_of_panels in zip(groups, panels, strict=True):
        for axes, cost in zip(row_of_panels, costs or [next(iter(COSTS))], strict=True):
            tell.append(_panel(axes, group, cost, names, handles))
            axes.set_xlabel(_FLOPS_OF_ALL if classifies(group) and cost == "flops_share" else COSTS[cost][1])
        row_of_panels[0].set_ylabel(f"accuracy, % of {group.questions} questions")
        row_of_panels[0].set_title(group.title, loc="left", fontweight="bold")
    labels = [_in_lines(marked.get(name, name)) for name in handles]
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.draw_without_rendering()  # every mark has its place now
    for label in tell:
        label()
    return figure


def _in_lines(label: str) -> str:
    """A legend's label: methods that act together each in a line of its own."""
    return label.replace(" + ", " +\n")


def shown(groups: Sequence[Compared]) -> list[str]:
    """The costs that have a panel."""
    rows = [row for group in groups for row in group.rows]
    found: list[str] = []
    for cost in COSTS:
        repeats = any(all(_alike(group.rows, cost, other) for group in groups) for other in found)
        if any(drawn(row, cost) for row in rows) and not repeats:
            found.append(cost)
    return found


def _alike(rows: Sequence[Row], cost: str, other: str) -> bool:
    """Whether two costs put all runs in the same order, but for differences of a tenth."""
    pairs = sorted((getattr(row, other), getattr(row, cost)) for row in rows if drawn(row, cost) and drawn(row, other))
    complete = all(drawn(row, cost) <= drawn(row, other) for row in rows)
    return complete and all(_ALMOST * before <= after for (_, before), (_, after) in itertools.pairwise(pairs))


def drawn(row: Row, cost: str) -> bool:
    """Whether a run has a place over this cost: those that spare nothing would be a pile of marks at 100 %."""
    value = getattr(row, cost)
    if cost == "kv_share" and not row.kv:  # there is no cache
        return False
    return value is not None and not (
        row.compressed and cost.endswith("_share") and value > 0.999 and not row.full_cost
    )


def _panel(axes: Any, group: Compared, cost: str, names: list[str], handles: dict[str, Any]) -> Callable[[], None]:
    """Draw one panel; what it returns writes the labels, once the figure has its final size."""
    rows = [row for row in group.rows if drawn(row, cost) and (row.compressed or row.label == FULL)]
    from matplotlib.ticker import LogLocator, NullFormatter
    from matplotlib.transforms import ScaledTranslation

    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if not rows:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="0.4")
        return lambda: None

    def at(row: Row) -> tuple[float, float]:
        return COSTS[cost][0] * getattr(row, cost), 100 * row.accuracy.mean

    here = [name for name in names if any(row.label == name for row in rows)]
    aside: dict[str, Any] = {FULL: axes.transData}  # so that the bars of one cost do not hide each other
    for number, name in enumerate(here):
        shift = _ASIDE * (number - (len(here) - 1) / 2) if cost.endswith("_share") else 0.0
        aside[name] = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    best = [rows[i] for i in frontier([at(row)[0] for row in rows], [at(row)[1] for row in rows])]
    xs, ys = zip(*(at(row) for row in best), strict=True)
    least, most = min(at(row)[0] for row in rows), max(at(row)[0] for row in rows)
    beside = max(1.1, (most / least) ** 0.09)
    left, right = least / beside, most * beside
    axes.step([*xs, right], [*ys, ys[-1]], where="post", color="0.45", linewidth=5, alpha=0.25, zorder=1)
    (line,) = axes.plot([], [], color="0.45", linewidth=5, alpha=0.25)
    handles["frontier"] = line
    for row in group.rows:
        if not row.compressed:
            dashes = (0, (6, 3)) if row.label == FULL else (0, (1, 2))
            line = axes.axhline(100 * row.accuracy.mean, color="0.35", linestyle=dashes, linewidth=1, zorder=1)
            handles[row.label] = line
    for row in rows:
        if row.label == FULL:
            axes.plot(*at(row), marker="*", markersize=13, color="0.2", zorder=4)
    for name in here:
        points = sorted((row for row in rows if row.label == name), key=lambda row: row.average)
        color, mark = style(names.index(name))
        handles[name] = axes.errorbar(
            [at(row)[0] for row in points],
            [at(row)[1] for row in points],
            yerr=[[100 * row.accuracy.errors[side] for row in points] for side in (0, 1)],
            color=color,
            marker=mark,
            markersize=5,
            linestyle=":" if name == names[0] else "-",
            linewidth=1.1,
            elinewidth=0.7,
            capsize=1.5,
            zorder=3,
            transform=aside[name],
        )
    for row in best:
        place = {"transform": aside[row.label], "zorder": 5}
        axes.scatter(*at(row), s=110, facecolors="none", edgecolors="0.3", linewidths=1.1, **place)
    axes.set_xscale("log")  # budgets are ratios
    axes.set_xlim(left, right)
    axes.set_ylim(*_range(group))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right / left > 6 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    return lambda: _write(axes, [(row, aside[row.label].transform(at(row))) for row in best if row.compressed])


def _range(group: Compared) -> tuple[float, float]:
    """Of accuracies in %, intervals included: marks that stand aside are not seen by matplotlib's own."""
    scores = [row.accuracy for row in group.rows]
    low = 100 * min(score.mean - score.errors[0] for score in scores)
    high = 100 * max(score.mean + score.errors[1] for score in scores)
    return low - 0.04 * (high - low) - 0.5, high + 0.04 * (high - low) + 0.5


def _write(axes: Any, places: Sequence[tuple[Row, Any]]) -> None:
    """The keep of each row above and left of its mark, in pixels, where that hides no other label and no other ring."""
    from matplotlib.patheffects import withStroke

    point = axes.figure.dpi / 72
    taken = [(x - 5 * point, y - 5 * point, x + 5 * point, y + 5 * point) for _, (x, y) in places]
    for row, (x, y) in places:
        text = f"{row.keep}"
        end, base = x - 7 * point, y + 5 * point
        box = (end - 5.5 * point * len(text), base, end, base + 8 * point)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        to = axes.transData.inverted().transform((end, base))
        halo = [withStroke(linewidth=2, foreground="white")]
        axes.annotate(text, to, ha="right", va="bottom", fontsize=8, zorder=6, path_effects=halo, in_layout=False)
