"""The page "Serve" names every family and every method that is served, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

from docs.generate import serve
from tests.serving.engines.methods import qualifying
from vtc.serving.vllm.families import FAMILIES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def test_families_are_those_that_register():
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| ([^|]+) \| (\w+)", PAGE, re.MULTILINE)
    kinds = {("image",): "pictures", ("image", "video"): "pictures, videos"}
    assert {(name, prunes.strip(), positions) for name, prunes, positions in rows} == {
        (family.architecture, kinds[family.prunes] + " by frame" * family.framed, family.positions)
        for family in FAMILIES.values()
    }


def test_methods_are_those_that_the_contract_lets_pass():
    (pictures, clips) = re.findall(r"These are (.+?), on videos also\s(.+?)\. Others", PAGE, re.DOTALL)[0]
    assert sorted(re.findall(r"`(.+?)`", pictures)) == sorted(qualifying("llava"))
    both = {*qualifying("llava"), *re.findall(r"`(.+?)`", clips)}
    assert both == set(qualifying("qwen2_5_vl"))


def test_tables_are_those_of_the_kept_results():
    assert serve.write(PAGE) == PAGE


def test_tables_are_written_between_the_marks(monkeypatch, tmp_path):
    row = {"model": "tiny-llava", "method": "plain", "prompt_tokens": 591.0, "clients": 4, "ttft_p50_ms": 100.4}
    row |= {
        "ttft_p95_ms": 200.0,
        "ttft_gain": 1.0,
        "answer_p50_ms": 300.0,
        "requests_per_s": 9.0,
        "throughput_gain": 1.0,
    }
    row |= {"throughput_gain_min": 1.0, "throughput_gain_max": 1.0}
    pruned = row | {"method": "divprune", "prompt_tokens": 79.0, "ttft_gain": 1.5, "throughput_gain": 1.8}
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"about": {"vllm": "0.32.0"}, "rows": [row, pruned]}))
    monkeypatch.setattr(serve, "KEPT", kept)
    written = serve.write(f"before\n{serve.START}\nold\n{serve.END}\nbehind\n")
    assert written.startswith(f"before\n{serve.START}\n\ntiny-llava:\n\n| method | prompt tokens | clients |")
    assert "| divprune | 79 | 4 | 100 | 200 | 1.50 | 300 | 9.00 | 1.80 (1.00–1.00) |" in written
    assert "| plain | 591 | 4 | 100 | 200 |  | 300 | 9.00 |  |" in written
    assert written.endswith(f"(vllm 0.32.0)\n\n{serve.END}\nbehind\n")
    assert serve.write(written) == written
