"""The training program runs through in seconds with --quick, and goes on after a kill."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vtc.models.tiny import build, drawings, tower

ROOT = Path(__file__).resolve().parents[3]
needs_files = pytest.mark.skipif(
    not drawings.ROOT.is_dir(), reason="needs the Debian packages openclipart-png and fonts-dejavu"
)


def test_window_features_equal_those_of_the_whole_tower():
    """The window code path, run on a whole picture, gives the tower's own hidden states."""
    vision = build.model(1).model.vision_tower.eval()
    pixels = torch.randint(0, 256, (1, 336, 336, 3), dtype=torch.uint8)
    patches = tower.patches_of(pixels)  # [1, 576, 588]
    mean, std = (torch.tensor(v) * 255 for v in (tower.MEAN, tower.STD))
    picture = ((pixels.float() - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = vision(picture, output_hidden_states=True).hidden_states
        got = tower.hidden_states(vision, patches, torch.arange(576)[None])
    assert len(got) == len(expected) == 7
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@needs_files
def test_quick_training_resumes_after_a_kill(tmp_path):
    command = [sys.executable, "-m", "vtc.models.tiny.train", "--quick", "--out", str(tmp_path)]
    log = tmp_path / "log.jsonl"
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (tmp_path / "tower-168px.pt").is_file():
            assert first.poll() is None, "training ended before it could be killed"
            time.sleep(0.02)
    finally:
        first.kill()
        first.wait()
    before = [json.loads(line) for line in log.read_text().splitlines()]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    after = [json.loads(line) for line in log.read_text().splitlines()]
    assert after[: len(before)] == before
    repeated = [x["stage"] for x in after[len(before) :]]
    assert "tower-112px" not in repeated  # finished before the kill, so not run again
    assert "joint-336px" in repeated
    assert (tmp_path / "tiny-llava" / "model.safetensors").is_file()
