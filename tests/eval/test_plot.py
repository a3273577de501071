"""The Pareto picture is drawn from results, whatever they are."""

from PIL import Image

import vtc
from vtc.eval import datasets, plot, runner


def test_a_picture_is_written(tmp_path):
    model, processor = vtc.load("tiny-llava", device="cpu")
    few = datasets.load("tiny").first(3)
    result = runner.evaluate(model, processor, few, ["divprune", "fastv"], [288, 64])
    plot.pareto(result, tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as drawn:
        assert drawn.width > 600
        assert len(drawn.convert("RGB").getcolors(1 << 24) or []) > 50
