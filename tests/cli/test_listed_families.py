"""Commands take every family: a model of one with random weights and its real processor, from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.eval.runs import few
from tests.listed import LISTED
from tests.listed_saved import save
from vtc.cli.main import main
from vtc.demos.media import Media
from vtc.demos.studio import Studio

#: one each of: single crops; pictures of any size; tiles between words
USUAL = ("deepseek_vl", "hunyuan_vl", "idefics3")
#: whose processors have numbers of the released models in their code, where no file can make them smaller
LARGE = {"aria", "emu3", "got_ocr2"}
FAMILIES = [
    name if name in USUAL else pytest.param(name, marks=pytest.mark.full) for name in LISTED if name not in LARGE
]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: Any) -> str:
    file = tmp_path_factory.mktemp("picture") / "noise.png"
    made = np.random.default_rng(0).integers(0, 256, (41, 53, 3), dtype=np.uint8)
    Image.fromarray(made).save(file)
    return str(file)


@pytest.mark.parametrize("family", FAMILIES)
def test_ask_check_and_eval(family: str, picture: str, tmp_path: Path, capsys: Any) -> None:
    folder = str(save(tmp_path / "model", family))
    ask = ["ask", "--model", folder, "--image", picture, "--question", "what is a ?", "--max-new-tokens", "3"]
    assert main([*ask, "--method", "divprune", "--keep", "0.25"]) == 0
    assert "divprune" in capsys.readouterr().out
    assert main(["check", "--model", folder, "--method", "divprune"]) == 0
    assert "right, as far as it was compared" in capsys.readouterr().out
    run = ["eval", "--model", folder, "--methods", "divprune", "--keep", "0.25", "--timing", "0", "--device", "cpu"]
    run += ["--max-new-tokens", "2", "--data", str(few(tmp_path, 2)), "--out", str(tmp_path / "runs")]
    assert main(run) == 0
    lines = [
        json.loads(line) for file in (tmp_path / "runs").rglob("*.jsonl") for line in file.read_text().splitlines()
    ]
    assert any(line.get("tokens_out", 0) < line.get("tokens_in", 0) for line in lines)


@pytest.mark.parametrize("family", ["hunyuan_vl", pytest.param("idefics3", marks=pytest.mark.full)])
def test_demo(family: str, picture: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("vtc.demos.studio._PATIENCE", 0)
    folder = str(save(tmp_path / "model", family))
    studio = Studio([folder], device="cpu")
    studio.load("model")
    media = Media("noise", "noise.png", Image.open(picture))
    run = list(studio.answer("model", media, "what is a ?", "divprune", 0.25))[-1]
    assert run.state == "done", run.text
    assert run.report is not None
    assert run.report.tokens_out < run.report.tokens_in
