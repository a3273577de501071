"""Results of a benchmark as CSV, Markdown, a table for the terminal, and a picture."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtc.eval.bench.model import CEILING, Line


def write_csv(rows: Sequence[Mapping[str, Any]], about: Mapping[str, str], file: Path) -> None:
    """One line per row; the columns of `about` (date, device, versions) repeat on each."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, [*names, *about], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)


def model_rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Every number of every line, medians over the rounds; milliseconds, bytes, ratios."""
    first = {(line.arch, line.batch): line for line in reversed(lines)}  # the uncompressed one comes first
    every = {(line.arch, line.batch, line.keep, line.method): line for line in lines}
    return [
        _model_row(
            line, first[line.arch, line.batch], every.get((line.arch, line.batch, line.keep, f"{line.method}(p=None)"))
        )
        for line in lines
    ]


def _model_row(line: Line, full: Line, whole: Line | None) -> dict[str, Any]:
    """`whole` is the same method without its choice in every decode step."""

    def ms(values: Sequence[float], digits: int = 2) -> Any:
        return round(1000 * statistics.median(values), digits) if values else ""

    ttft, ratio, spared = "", "", ""
    if line.choice and whole is not None:
        steps = zip(whole.decode, line.decode, line.choice, strict=True)
        spared = ms([all_ - part + choice for all_, part, choice in steps], 3)
    if line.encode:
        totals = [e + p for e, p in zip(line.encode, line.prefill, strict=True)]
        plain = [e + p for e, p in zip(full.encode, full.prefill, strict=True)]
        ttft = ms(totals)
        ratio = round(statistics.median(a / b for a, b in zip(plain, totals, strict=True)), 3)
    return {
        "arch": line.arch,
        "batch": line.batch,
        "method": line.method,
        "keep": "" if line.keep is None else line.keep,
        "mean_tokens": round(line.tokens, 1),
        "ttft_ms": ttft,
        "encode_ms": ms(line.encode),
        "select_ms": ms(line.select, 3),
        "prefill_ms": ms(line.prefill),
        "decode_ms_per_token": ms(line.decode, 3),
        "decode_ms_min": round(1000 * min(line.decode), 3),
        "decode_ms_max": round(1000 * max(line.decode), 3),
        "choice_ms_per_token": ms(line.choice, 3),
        "spared_ms_per_token": spared,
        "ttft_speedup": ratio,
        "prefill_speedup": round(line.speedup, 3),
        "prefill_speedup_min": round(min(line.speedups), 3),
        "prefill_speedup_max": round(max(line.speedups), 3),
        "flops_predict": round(line.flops, 3),
        "ideal": round(line.ideal, 3),
        "efficiency": round(line.efficiency, 3),
        "peak_bytes": line.peak_bytes,
        "kv_bytes": line.kv_bytes,
        "rounds": len(line.prefill),
    }


MODEL_COLUMNS = {
    "method": "method",
    "keep": "keep",
    "mean_tokens": "mean tokens",
    "ttft_ms": "TTFT ms",
    "select_ms": "select ms",
    "prefill_ms": "prefill ms",
    "decode_ms_per_token": "decode ms",
    "choice_ms_per_token": "choice ms",
    "spared_ms_per_token": "spares ms",
    "prefill_speedup": "prefill speed-up",
    "spread": "(min–max)",
    "flops_predict": "FLOPs predict",
    "ideal": "ideal",
    "efficiency": "efficiency",
    "peak": "peak memory",
    "kv": "KV cache",
}


def _shown(row: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, str]:
    plain = row is full
    shown = {name: str(value) for name, value in row.items()}
    for name in ("ttft_ms", "prefill_ms"):
        shown[name] = f"{row[name]:.0f}" if row[name] != "" else ""
    shown["mean_tokens"] = f"{row['mean_tokens']:.0f}"
    shown["select_ms"] = f"{row['select_ms']:.1f}" if row["select_ms"] != "" else ""
    shown["decode_ms_per_token"] = f"{row['decode_ms_per_token']:.1f}"
    for name in ("choice_ms_per_token", "spared_ms_per_token"):
        shown[name] = f"{row[name]:.2f}" if row[name] != "" else ""
    shown["prefill_speedup"] = f"{row['prefill_speedup']:.2f}×"
    shown["spread"] = "" if plain else f"{row['prefill_speedup_min']:.2f}–{row['prefill_speedup_max']:.2f}"
    for name in ("flops_predict", "ideal"):
        shown[name] = "" if plain else f"{row[name]:.2f}×"
    shown["efficiency"] = "" if plain else f"{100 * row['efficiency']:.0f} %"
    shown["peak"] = f"{row['peak_bytes'] / 2**20:.0f} MiB ({100 * row['peak_bytes'] / full['peak_bytes']:.0f} %)"
    shown["kv"] = f"{row['kv_bytes'] / 2**20:.0f} MiB"
    return shown


def model_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Printed cells of the rows of one architecture and batch size, the uncompressed one first.

    "choice ms": choosing what a decode step reads, and "spares ms": what the step takes less by reading no more, where
    a method does so; the step is faster if the second exceeds the first.
    """
    return [[_shown(row, rows[0])[name] for name in MODEL_COLUMNS] for row in rows]


def groups(rows: Sequence[Mapping[str, Any]], *by: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows by the values of some columns, in order."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in by), []).append(row)
    return found


def terminal(titles: Sequence[str], cells: Sequence[Sequence[str]], heading: str) -> str:
    """The same for a terminal: the first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (titles, ["-" * width for width in widths], *cells)
    ]
    return "\n".join([heading, *lines, ""])


def markdown(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells), ""])


def plot_model(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Prefill speed-up of every method, measured and ideal, one panel per architecture and batch size.

    Raises:
        ImportError: matplotlib is missing; it comes with the extra `eval`.
    """
    from matplotlib.figure import Figure

    panels = groups([row for row in rows if row["keep"] != ""], "arch", "batch")
    tallest = max(len(own) for own in panels.values())
    figure = Figure(figsize=(5.2 * len(panels), 1.2 + 0.32 * tallest), layout="constrained")
    for axes, ((arch, batch), own) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        own = sorted(own, key=lambda row: row["prefill_speedup"])
        place = range(len(own))
        names = [f"{row['method']} {row['keep']}" for row in own]
        axes.barh(place, [row["ideal"] for row in own], color="0.88", label="FLOPs and bytes predict")
        bars = [row["prefill_speedup"] for row in own]
        spread = [
            [row["prefill_speedup"] - row["prefill_speedup_min"] for row in own],
            [row["prefill_speedup_max"] - row["prefill_speedup"] for row in own],
        ]
        colors = ["0.45" if row["method"] == CEILING else "C0" for row in own]
        axes.barh(place, bars, xerr=spread, color=colors, height=0.5, label="measured", error_kw={"linewidth": 0.8})
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(list(place), names, fontsize="small")
        axes.set_title(f"{arch}, batch {batch}", fontsize="medium")
        axes.set_xlabel("prefill speed-up over uncompressed sdpa")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=len(labels))
    figure.savefig(file, dpi=110)
