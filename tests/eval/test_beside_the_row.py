"""What a run says of pictures that stand beside the row, where no placeholder stands for a token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.eval.runs import few
from tests.listed import LISTED
from tests.listed_saved import save
from vtc.cli.main import main


@pytest.mark.full
@pytest.mark.skipif("mllama" not in LISTED, reason="this transformers has no Mllama")
def test_an_uncompressed_run_and_a_compressed_one_start_from_the_same(tmp_path: Path) -> None:
    folder, data = str(save(tmp_path / "model", "mllama")), str(few(tmp_path, 2))
    run = ["eval", "--model", folder, "--methods", "divprune", "--keep", "0.25", "--timing", "0", "--device", "cpu"]
    assert main([*run, "--max-new-tokens", "2", "--data", data, "--out", str(tmp_path / "runs")]) == 0
    files = [file.read_text().splitlines() for file in (tmp_path / "runs").rglob("*.jsonl")]
    lines = [[json.loads(line) for line in own] for own in files]
    (full,) = [own for own in lines if own[0]["tokens_out"] == own[0]["tokens_in"]]
    others = [own for own in lines if own is not full]
    assert len(others) == 3  # and random, and downsample, for which transformers makes as much room as for the whole
    for plain, *rest in zip(full, *others, strict=True):
        assert plain["tokens_in"] % 17 == 0
        assert {one["tokens_in"] for one in rest} == {plain["tokens_in"]} == {4 * one["tokens_out"] for one in rest}
        for cost in ("flops", "kv_bytes"):
            whole, now = plain[cost]
            assert now == whole
            assert {one[cost][0] for one in rest} == {whole}
            assert sorted(one[cost][1] < whole for one in rest) == [False, True, True]
