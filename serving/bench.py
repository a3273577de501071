"""How fast vLLM serves pictures with and without vtc's plug-in: `python -m vtc.serving.bench --out runs/serve`.

One engine per process; in each round the plain one and every method have their turn, and ratios are of one round.
Clients work in a closed loop: so many are at work at once, each asks about a picture that nobody has asked about, waits
for the answer, and asks again. vLLM's caches of prompts and pictures are off.

* tiny-llava: its vision tower takes as long as its language model.
* wide-llava: the same tower before a language model of 26 million parameters, which takes most of the time.

Weights are random: how fast a model is does not depend on what it has learned, and answers are cut at one length.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtc.budget import read_keep
from vtc.checks import check_number
from vtc.eval.bench import table
from vtc.serving.vllm.contract import Spec, read_spec
from vtc.serving.vllm.families import FAMILIES

PLAIN = "plain"
MODELS: dict[str, dict[str, int]] = {
    "tiny-llava": {},
    "wide-llava": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
}
COLUMNS = {
    "method": "method",
    "prompt_tokens": "prompt tokens",
    "clients": "clients",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p95_ms": "TTFT p95 ms",
    "ttft_gain": "gain",
    "answer_p50_ms": "answer p50 ms",
    "requests_per_s": "requests/s",
    "throughput_gain": "gain (min–max)",
}


def main(words: Sequence[str] | None = None) -> int:
    """Measure what has not been measured yet, write results.json, .csv and .md into --out, print the table."""
    try:
        options = _options(words)
        specs = _specs(options)
    except (TypeError, ValueError) as error:
        print(f"vtc.serving.bench: {error}", file=sys.stderr)
        return 2
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(options.rounds):
        for model in options.models:
            names = list(specs) if number % 2 == 0 else list(reversed(specs))
            for name in names:
                file = folder / f"{model}-{name}-{number}.json"
                if not file.is_file():
                    _measure(options, model, specs[name], file)
    found = rows(folder)
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    table.write_csv(found["rows"], found["about"], folder / "results.csv")
    (folder / "results.md").write_text(pages(found))
    for model, own in _by_model(found):
        print(table.terminal(list(COLUMNS.values()), _cells(own), model))
    return 0


def _options(words: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m vtc.serving.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", default="runs/serve", help="folder of the results; what is there is not measured again"
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--methods", default="vtc-cls,divprune", help="beside vLLM as it is")
    parser.add_argument("--keep", default="64", help="a number of visual tokens, or a share")
    parser.add_argument("--clients", default="1,4,16,32", help="how many at once, one measurement each")
    parser.add_argument("--requests", default="32", help="per measurement; at least twice as many as clients are sent")
    parser.add_argument("--tokens", default="16", help="that each answer has")
    parser.add_argument("--rounds", default="3")
    options = parser.parse_args(words)
    options.models = options.models.split(",")
    for model in options.models:
        if model not in MODELS:
            raise ValueError(f"there is no model {model!r} to measure: choose of {', '.join(MODELS)}.")
    options.clients = [_whole(count, "--clients") for count in options.clients.split(",")]
    for name in ("requests", "tokens", "rounds"):
        setattr(options, name, _whole(getattr(options, name), f"--{name}"))
    return options


def _whole(text: str, name: str) -> int:
    return int(check_number(int(text) if text.strip().isdigit() else text, name, 1, integer=True))


def _specs(options: Any) -> dict[str, Spec | None]:
    """What is measured, by name: vLLM as it is, and every method."""
    keep = read_keep(options.keep)
    methods = [name for name in options.methods.split(",") if name]
    return {PLAIN: None} | {name: read_spec({"method": name, "keep": keep}, FAMILIES["llava"]) for name in methods}


# -- one engine --------------------------------------------------------------------------------------------------------


def _measure(options: Any, model: str, spec: Spec | None, file: Path) -> None:
    """One engine in a process of its own, which writes `file`."""
    print(f"{file.name} ...", file=sys.stderr)
    job = {
        "model": model,
        "overrides": json.loads(spec.flag()[1]) if spec else {},
        "clients": options.clients,
        "requests": options.requests,
        "tokens": options.tokens,
    }
    environment = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2"}
    environment |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"} | dict(os.environ)
    code = "import sys; from vtc.serving.bench_engine import run; run(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, json.dumps(job), str(file)], env=environment, check=True)


# -- the table ---------------------------------------------------------------------------------------------------------


def rows(folder: Path) -> dict[str, Any]:
    """{"about": machine and versions, "rows": one per model, method and number of clients} of the files in a folder:
    medians over the rounds; gains are ratios within a round to vLLM as it is."""
    files = [(file, json.loads(file.read_text())) for file in sorted(folder.glob("*-[0-9].json"))]
    timed: dict[tuple[str, str, int], dict[int, Any]] = {}
    about: dict[str, str] = {}
    for file, found in files:
        model, name = found["model"], file.stem.removeprefix(f"{found['model']}-").rpartition("-")[0]
        about = found["about"]
        for one in found["timed"]:
            timed.setdefault((model, name, one["clients"]), {})[int(file.stem.rpartition("-")[2])] = one
    keys = sorted(timed, key=lambda key: (list(MODELS).index(key[0]), key[2], key[1] != PLAIN, key[1]))
    return {"about": about, "rows": [_row(key, timed[key], timed.get((key[0], PLAIN, key[2]), {})) for key in keys]}


def _row(key: tuple[str, str, int], rounds: Mapping[int, Any], plain: Mapping[int, Any]) -> dict[str, Any]:
    def median(name: str, digits: int) -> float:
        return round(statistics.median(one[name] for one in rounds.values()), digits)

    both = sorted(rounds.keys() & plain.keys())
    gains = [rounds[n]["requests_per_s"] / plain[n]["requests_per_s"] for n in both]
    sooner = [plain[n]["ttft_p50_ms"] / rounds[n]["ttft_p50_ms"] for n in both]
    return {
        "model": key[0],
        "method": key[1],
        "prompt_tokens": median("prompt_tokens", 0),
        "clients": key[2],
        "ttft_p50_ms": median("ttft_p50_ms", 0),
        "ttft_p95_ms": median("ttft_p95_ms", 0),
        "ttft_gain": round(statistics.median(sooner), 2) if sooner else "",
        "answer_p50_ms": median("answer_p50_ms", 0),
        "requests_per_s": median("requests_per_s", 2),
        "throughput_gain": round(statistics.median(gains), 2) if gains else "",
        "throughput_gain_min": round(min(gains), 2) if gains else "",
        "throughput_gain_max": round(max(gains), 2) if gains else "",
        "rounds": len(rounds),
    }


def _by_model(found: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(model, own) for model in MODELS if (own := [row for row in found["rows"] if row["model"] == model])]


def _cells(own: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    cells = []
    for row in own:
        spread = f"{row['throughput_gain']:.2f} ({row['throughput_gain_min']:.2f}–{row['throughput_gain_max']:.2f})"
        plain = row["method"] == PLAIN or row["throughput_gain"] == ""
        gains = ("", "") if plain else (f"{row['ttft_gain']:.2f}", spread)
        cells.append(
            [
                row["method"],
                f"{row['prompt_tokens']:.0f}",
                str(row["clients"]),
                f"{row['ttft_p50_ms']:.0f}",
                f"{row['ttft_p95_ms']:.0f}",
                gains[0],
                f"{row['answer_p50_ms']:.0f}",
                f"{row['requests_per_s']:.2f}",
                gains[1],
            ]
        )
    return cells


def pages(found: Mapping[str, Any]) -> str:
    """The tables as Markdown, a heading each, and what they were measured on."""
    parts = [f"{model}:\n\n{table.markdown(list(COLUMNS.values()), _cells(own))}" for model, own in _by_model(found)]
    said = ", ".join(f"{key} {value}" for key, value in found["about"].items())
    return "\n".join([*parts, f"({said})\n"])


if __name__ == "__main__":
    sys.exit(main())
