"""`vtc bench clip`: every part of the way from a video file to the first word is timed and printed."""

from __future__ import annotations

import csv

import pytest

from tests import small_qwen
from vtc.cli.main import main

pytest.importorskip("av")
from tests.media.test_video import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_qwen.save(tmp_path_factory.mktemp("model"))


def test_parts_add_up(folder, tmp_path, capsys):
    write(tmp_path / "clip.mp4", 16, (112, 84))
    files = {"csv": tmp_path / "t.csv", "markdown": tmp_path / "t.md", "plot": tmp_path / "t.png"}
    video, model = str(tmp_path / "clip.mp4"), str(folder)
    command = ["bench", "clip", "--video", video, "--model", model, "--rounds", "2", "--device", "cpu"]
    command += ["--methods", "random,evs,pixelprune", "--keep", "0.5"]
    command += [part for kind, file in files.items() for part in (f"--{kind}", str(file))]
    assert main(command) == 0
    with files["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["uncompressed", "random", "evs", "pixelprune"]
    for row in rows:
        parts = [float(row[f"{part}_ms"]) for part in ("read", "process", "encode", "prefill")]
        assert all(part > 0 for part in parts)
        assert float(row["total_ms"]) == pytest.approx(sum(parts), rel=0.5)
    assert int(rows[1]["tokens"]) == int(rows[3]["tokens"]) == round(int(rows[0]["tokens"]) / 2)
    assert "total speed-up" in capsys.readouterr().out
    assert files["plot"].stat().st_size > 5000


def test_what_is_wrong_with_the_file_is_said_before_a_model_is_loaded(tmp_path, capsys):
    assert main(["bench", "clip", "--video", str(tmp_path / "no.mp4"), "--model", "no/such-model"]) == 2
    assert "there is no video at" in capsys.readouterr().err
