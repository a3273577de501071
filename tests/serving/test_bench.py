"""Results of `vtc.serving.bench`: medians over rounds, gains within a round; what it refuses before it measures."""

from __future__ import annotations

import json

import pytest

from vtc.serving import bench


def write(folder, name: str, number: int, seconds: float, wait: float) -> None:
    timed = {"clients": 4, "requests": 8, "prompt_tokens": 79, "ttft_p50_ms": wait, "ttft_p95_ms": 2 * wait}
    timed["answer_p50_ms"] = 3 * wait
    found = {"model": "tiny-llava", "about": {"vllm": "0.32.0"}, "timed": [timed | {"requests_per_s": 8 / seconds}]}
    (folder / f"tiny-llava-{name}-{number}.json").write_text(json.dumps(found))


def test_gains_are_of_one_round(tmp_path):
    for number, (plain, ours) in enumerate([(4, 2), (8, 2), (2, 1)]):
        write(tmp_path, "plain", number, plain, 100 * plain)
        write(tmp_path, "vtc-cls", number, ours, 50)
    plain, ours = bench.rows(tmp_path)["rows"]
    assert (plain["method"], plain["requests_per_s"], plain["throughput_gain"]) == ("plain", 2.0, 1.0)
    assert (ours["method"], ours["requests_per_s"], ours["rounds"]) == ("vtc-cls", 4.0, 3)
    assert (ours["throughput_gain_min"], ours["throughput_gain"], ours["throughput_gain_max"]) == (2.0, 2.0, 4.0)
    assert (ours["ttft_p50_ms"], ours["ttft_p95_ms"], ours["ttft_gain"]) == (50, 100, 8.0)


def test_what_is_there_is_not_measured_again(tmp_path, capsys):
    write(tmp_path, "plain", 0, 4, 100)
    write(tmp_path, "divprune", 0, 2, 50)
    words = ["--out", str(tmp_path), "--models", "tiny-llava", "--methods", "divprune", "--rounds", "1"]
    assert bench.main(words) == 0
    assert "2.00 (2.00–2.00)" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["about"] == {"vllm": "0.32.0"}
    assert (tmp_path / "results.csv").read_text().startswith("model,method,prompt_tokens,clients,")
    assert (
        "| divprune | 79 | 4 | 50 | 100 | 2.00 | 150 | 4.00 | 2.00 (2.00–2.00) |"
        in (tmp_path / "results.md").read_text()
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "tiny"], "there is no model 'tiny' to measure: choose of tiny-llava, wide-llava."),
        (["--methods", "divprun"], "Did you mean 'divprune'?"),
        (["--methods", "fastv"], "fastv acts between the language model's layers"),
        (["--keep", "0"], "keep=0 is not"),
        (["--clients", "1,many"], "--clients='many' is not a whole number of 1 or more"),
        (["--rounds", "0"], "--rounds=0 is not a whole number of 1 or more"),
    ],
)
def test_what_is_refused(tmp_path, capsys, words, said):
    assert bench.main(["--out", str(tmp_path / "runs"), *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "runs").exists()
