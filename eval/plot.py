"""The Pareto picture: accuracy over what it costs."""

from collections.abc import Sequence
from pathlib import Path

from vtc.eval.runner import Result
from vtc.eval.table import Row, rows

_MARKS = "osDv^<>PXphd*"
_COSTS = {
    "flops": "prefill FLOPs of the language model, % of uncompressed",
    "kv": "bytes of the KV cache, % of uncompressed",
}


def pareto(result: Result, file: Path) -> None:
    """Draw accuracy over prefill FLOPs and over KV-cache bytes, one line per method, budgets along it, into `file`.

    Raises:
        ImportError: matplotlib is missing; it comes with the extra `eval`.
    """
    draw(rows(result), len(result.data.questions), file)


def draw(table: Sequence[Row], questions: int, file: Path) -> None:
    """`pareto` from the rows of a table, the uncompressed model's first; `questions`: how many each was asked."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'vtc-vlm[eval]'") from error
    lines: dict[str, list[Row]] = {}
    for row in table:
        if row.keep is not None:
            lines.setdefault(row.method, []).append(row)
    colors = colormaps["tab20"]
    figure = Figure(figsize=(13, 5.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (cost, title) in zip(panels, _COSTS.items(), strict=True):
        axes.axhline(100 * table[0].overall.mean, color="0.5", linestyle="--", linewidth=1, label="uncompressed")
        for number, (method, points) in enumerate(lines.items()):
            # Cache methods spare no FLOPs: over those they would be a pile of marks at 100 %.
            if all(getattr(row, cost) > 0.999 for row in points):
                continue
            points = sorted(points, key=lambda row: getattr(row, cost))
            baseline = method == "random"
            axes.errorbar(
                [100 * getattr(row, cost) for row in points],
                [100 * row.overall.mean for row in points],
                yerr=[100 * row.overall.half_width for row in points],
                label=method,
                marker=_MARKS[number % len(_MARKS)],
                color="black" if baseline else colors(2 * number % 20 + (number // 10) % 2),
                linestyle=":" if baseline else "-",
                linewidth=1.2,
                markersize=5,
                elinewidth=0.6,
                capsize=2,
            )
        axes.set_xlabel(title)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"accuracy, % of {questions} questions (95 % intervals)")
    # The right panel has every method.
    panels[1].legend(ncols=2, fontsize="small", loc="lower right")
    figure.savefig(file, dpi=110)
