"""tiny-vit: a plain timm model in a folder that timm loads by itself, which knows Fashion-MNIST; and its training."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config  # type: ignore[attr-defined]
from timm.models.vision_transformer import VisionTransformer

import vtc
from vtc.eval import datasets, idx
from vtc.models import classifier, tiny
from vtc.models.tiny import common
from vtc.models.tiny.vit import train
from vtc.models.tiny.vit.views import Views

FOLDER = tiny.path("tiny-vit")


@pytest.fixture(scope="module")
def vit():
    return vtc.load("tiny-vit", device="cpu")


def test_what_it_is(vit):
    model, prepare = vit
    assert type(model) is VisionTransformer
    assert model.forward_features(torch.zeros(1, 3, 56, 56)).shape == (1, 197, 96)
    assert model.num_prefix_tokens == 1
    assert prepare.names[9] == "Ankle boot"
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 1.5e6


def test_timm_loads_it_by_itself(vit):
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    config = json.loads((FOLDER / "config.json").read_text())
    ways = [
        timm.create_model(f"local-dir:{FOLDER}", pretrained=True),
        timm.create_model(
            config["architecture"],
            num_classes=config["num_classes"],
            checkpoint_path=str(FOLDER / "model.safetensors"),
            **config["model_args"],
        ),
    ]
    with torch.inference_mode():
        expected = vit[0](pixels)
        for model in ways:
            assert torch.equal(model.eval()(pixels), expected)
    assert {value.dtype for value in load_file(FOLDER / "model.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize(("task", "count", "least"), [("picture", 500, 0.88), ("canvas", 100, 0.7)])
def test_it_knows_garments(vit, task, count, least):
    model, prepare = vit
    questions = datasets.load("fashion-mnist").only([task]).first(count).questions
    pixels = prepare([question.media.picture() for question in questions])
    with torch.inference_mode():
        said = [prepare.names[i] for part in pixels.split(100) for i in model(part).argmax(-1).tolist()]
    right = sum(answer == question.answers[0] for answer, question in zip(said, questions, strict=True))
    assert right >= least * count


def test_pictures_are_prepared_as_its_config_says(vit):
    _, prepare = vit
    question = datasets.load("fashion-mnist").questions[0]
    own = prepare([question.media.picture()])
    config = resolve_data_config({}, model=vit[0])
    transform: Any = create_transform(**config)
    theirs = transform(question.media.picture())
    torch.testing.assert_close(own[0], theirs, atol=1e-6, rtol=0)


def test_a_folder_without_names_of_classes(tmp_path):
    config = json.loads((FOLDER / "config.json").read_text())
    del config["pretrained_cfg"]["label_names"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((FOLDER / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"names 0 classes, and the model has 10: put a list label_names into its"):
        classifier.load(tmp_path, "cpu", torch.float32)


def test_a_view_as_large_as_the_picture_is_the_picture_pasted():
    pictures = torch.randint(0, 256, (8, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    views = Views.random(8, (0.0, 1.0), torch.Generator().manual_seed(1))
    seen = views.of(pictures.float()[:, None], 56)[:, 0].round().byte()
    for picture, view in zip(pictures, seen, strict=True):
        rows, columns = view.any(1).nonzero()[:, 0], view.any(0).nonzero()[:, 0]
        top, left = int(rows[0]), int(columns[0])
        part = view[top : top + 28, left : left + 28]
        assert torch.equal(part, picture) or torch.equal(part, picture.flip(-1))
        assert int(view.count_nonzero()) == int(picture.count_nonzero())


def test_features_are_seen_where_the_picture_is():
    """A map that is 1 in the picture's left upper quarter is 1 there in a full view, and 0 beside it."""
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., :4, :4] = 1
    whole = Views(torch.eye(2, 3)[None])
    assert torch.equal(whole.of(maps, 4)[0, 0], torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]))
    right = Views(torch.tensor([[[2.0, 0, -1], [0, 2, 0]]]))  # half as large, its left border in the middle
    assert torch.equal(right.of(maps, 4)[0, 0], torch.tensor([[0.0] * 4, [0, 0, 1, 0], [0] * 4, [0] * 4]))


@torch.enable_grad()
def test_quick_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    chance = np.random.default_rng(0)
    pictures = chance.integers(0, 256, (24, 28, 28), np.uint8)
    labels = chance.integers(0, 10, 24, np.uint8)
    idx.write(tmp_path, "train", pictures, labels)
    idx.write(tmp_path, "t10k", pictures[:3], labels[:3])
    monkeypatch.setattr(train, "_HELD", 4)
    run = common.Run(tmp_path / "out", quick=True)
    learn = train._learn

    def stopped(run, stage, *more):
        if stage.name == "vit-196":
            raise KeyboardInterrupt
        learn(run, stage, *more)

    monkeypatch.setattr(train, "_learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        train.train(run, tmp_path)
    monkeypatch.setattr(train, "_learn", learn)
    before = (run.out / "log.jsonl").read_text().splitlines()
    folder = train.train(run, tmp_path)
    after = (run.out / "log.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert {json.loads(line)["stage"] for line in after[len(before) :]} == {stage.name for stage in train._FINE}
    model, prepare = vtc.load(folder, device="cpu")
    assert model.patch_embed.grid_size == (14, 14)
    assert len(prepare.names) == 10
    said = [prepare.names[i] for i in model(prepare([PIL.Image.fromarray(own) for own in pictures[:3]])).argmax(-1)]
    right = sum(prepare.names[label] == answer for label, answer in zip(labels, said, strict=False))
    measured = json.loads((folder / "metrics.json").read_text())
    assert measured["picture"] == {"accuracy": right / 3, "pictures": 3}
    assert measured["canvas"]["pictures"] == 3


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"is a model of timm's, which is missing: pip install 'vtc-vlm\[encoders\]'"):
        vtc.load("tiny-vit", device="cpu")
