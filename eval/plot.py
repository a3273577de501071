"""The Pareto picture: accuracy over what it costs, and the frontier that no other run is below and left of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtc.eval.compare import Group, Row, frontier

# What is drawn over: an attribute of Row, its factor, and its title.
COSTS = {
    "ttft_ms": (1.0, "time to first token, ms"),
    "flops_share": (100.0, "prefill FLOPs of the language model, % of uncompressed"),
    "kv_share": (100.0, "bytes of the KV cache, % of uncompressed"),
}
# Okabe and Ito's colours, which all readers can tell apart, then others.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7B4FA3", "#5B7F1E", "#C2185B")
_MARKS = "osDv^<>PXph*"
_SIDE = 5.2  # inches of a panel


def methods(groups: Sequence[Group]) -> list[str]:
    """What is drawn, by label, `random` first: its place here is the number that `style` wants."""
    return list(dict.fromkeys(["random", *(row.label for group in groups for row in group.rows if row.compressed)]))


def style(number: int) -> tuple[str, str]:
    """Colour and mark of the method with this number, `random` being 0 and black."""
    return ("black" if number == 0 else _COLORS[(number - 1) % len(_COLORS)]), _MARKS[number % len(_MARKS)]


def pareto(groups: Sequence[Group], file: Path) -> None:
    """Draw a row of panels per group: accuracy over time to first token, FLOPs and bytes of the KV cache.

    Scales of cost are logarithmic. A line per method runs through its budgets, with 95 % intervals; the frontier is
    shaded, and its points are ringed, with their keep. A cost that was measured for no run has no panel.

    Raises:
        ImportError: matplotlib is missing; it comes with the extra `eval`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'vtc-vlm[eval]'") from error
    groups = [group for group in groups if group.rows]
    costs = {
        cost: how for cost, how in COSTS.items() if any(drawn(row, cost) for group in groups for row in group.rows)
    }
    names = methods(groups)
    # What the legend takes, a mark and the letters of a name in inches, and three names besides: frontier, full, blind.
    width = _SIDE * len(costs)
    columns = max(1, int(width / (0.6 + 0.085 * max(map(len, names)))))
    height = _SIDE * len(groups) + 0.25 * math.ceil((len(names) + 3) / columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(groups), len(costs), sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    for group, row_of_panels in zip(groups, panels, strict=True):
        for axes, (cost, (factor, title)) in zip(row_of_panels, costs.items(), strict=True):
            _panel(axes, group, cost, factor, names, handles)
            axes.set_xlabel(title)
        row_of_panels[0].set_ylabel(f"accuracy, % of {group.questions} questions")
        row_of_panels[0].set_title(group.title, loc="left", fontweight="bold")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(file, dpi=130)


def drawn(row: Row, cost: str) -> bool:
    """Whether a run has a place over this cost: those that spare nothing would be a pile of marks at 100 %."""
    value = getattr(row, cost)
    return value is not None and not (row.compressed and cost.endswith("_share") and value > 0.999)


def _panel(axes: Any, group: Group, cost: str, factor: float, names: list[str], handles: dict[str, Any]) -> None:
    rows = [row for row in group.rows if drawn(row, cost) and (row.compressed or row.label == "full")]
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if not rows:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="0.4")
        return

    def at(row: Row) -> tuple[float, float]:
        return factor * getattr(row, cost), 100 * row.accuracy.mean

    best = [rows[i] for i in frontier([at(row)[0] for row in rows], [at(row)[1] for row in rows])]
    xs, ys = zip(*(at(row) for row in best), strict=True)
    left, right = min(at(row)[0] for row in rows) / 1.35, 1.15 * max(at(row)[0] for row in rows)
    axes.step([*xs, right], [*ys, ys[-1]], where="post", color="0.45", linewidth=5, alpha=0.25, zorder=1)
    (line,) = axes.plot([], [], color="0.45", linewidth=5, alpha=0.25)
    handles["frontier"] = line
    for row in group.rows:
        if row.label in ("full", "blind"):
            dashes = (0, (6, 3)) if row.label == "full" else (0, (1, 2))
            handles[row.label] = axes.axhline(
                100 * row.accuracy.mean, color="0.35", linestyle=dashes, linewidth=1, zorder=1
            )
    for row in rows:
        if row.label == "full":
            axes.plot(*at(row), marker="*", markersize=13, color="0.2", zorder=4)
    for number, name in enumerate(names):
        points = sorted((row for row in rows if row.label == name), key=lambda row: at(row)[0])
        if not points:
            continue
        color, mark = style(number)
        handles[name] = axes.errorbar(
            [at(row)[0] for row in points],
            [at(row)[1] for row in points],
            yerr=[[100 * row.accuracy.errors[side] for row in points] for side in (0, 1)],
            color=color,
            marker=mark,
            markersize=6,
            linestyle=":" if number == 0 else "-",
            linewidth=1.3,
            elinewidth=0.7,
            capsize=2,
            zorder=3,
        )
    axes.scatter(xs, ys, s=130, facecolors="none", edgecolors="0.3", linewidths=1.1, zorder=5)
    halo = withStroke(linewidth=2, foreground="white")
    for row in best:  # above and left of the frontier there is nothing that a label could hide
        if row.compressed:
            place = {"xytext": (-7, 5), "textcoords": "offset points", "ha": "right", "zorder": 6}
            axes.annotate(f"{row.keep}", at(row), **place, fontsize=8, path_effects=[halo])
    axes.set_xscale("log")  # budgets are ratios
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
