"""The Pareto picture: accuracy over what it costs."""

from collections.abc import Sequence
from pathlib import Path

from vtc.eval.runner import Result
from vtc.eval.table import Row, rows

_MARKS = "osDv^<>PXphd*"


def pareto(results: Sequence[Result], file: Path) -> None:
    """Draw accuracy over prefill FLOPs, one line per method, budgets along it; writes the picture `file`.

    Raises:
        ImportError: matplotlib is missing; it comes with the extra `eval`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'vtc-vlm[eval]'") from error
    lines: dict[str, list[Row]] = {}
    for result in results:
        for row in rows(result):
            if row.keep is not None:
                lines.setdefault(row.method, []).append(row)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    full = rows(results[0])[0].overall
    axes.axhline(100 * full.mean, color="0.5", linestyle="--", linewidth=1)
    axes.annotate("uncompressed", (100, 100 * full.mean), textcoords="offset points", xytext=(0, 4), ha="right")
    for number, (method, points) in enumerate(lines.items()):
        points = sorted(points, key=lambda row: row.flops)
        baseline = method == "random"
        axes.errorbar(
            [100 * row.flops for row in points],
            [100 * row.overall.mean for row in points],
            yerr=[100 * row.overall.half_width for row in points],
            label=method,
            marker=_MARKS[number % len(_MARKS)],
            color="black" if baseline else f"C{number % 10}",
            linestyle=":" if baseline else "-",
            linewidth=1.2,
            markersize=5,
            elinewidth=0.6,
            capsize=2,
        )
    axes.set_xlabel("prefill FLOPs of the language model, % of uncompressed")
    axes.set_ylabel(f"accuracy, % of {len(results[0].data.questions)} questions (95 % intervals)")
    axes.set_xlim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize="small", loc="lower right")
    figure.savefig(file, dpi=130)
