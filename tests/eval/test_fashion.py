"""Fashion-MNIST as questions, and what a bare classifier answers, by hand."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import re

import numpy as np
import pytest
import timm
import torch

import vtc
from vtc.eval import classify, compare, datasets, fashion, idx, page, plot, recorded, runner, table
from vtc.eval.settings import Settings, Spec
from vtc.models import tiny

COUNT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The first pictures of the shipped set, in a folder of their own."""
    made = tmp_path_factory.mktemp("fashion")
    pictures, labels = idx.read(tiny.path("tiny-vit").parents[2] / "eval" / "data" / "fashion-mnist", "t10k")
    idx.write(made, "t10k", pictures[:COUNT], labels[:COUNT])
    return made


@pytest.fixture(scope="module")
def vit():
    return vtc.load("tiny-vit", device="cpu")


@pytest.fixture(scope="module")
def settings(folder, tmp_path_factory):
    return Settings(
        data=str(folder), methods=("pool",), keep=(49, 0.5), blind=True, batch_size=4, timing=5, device="cpu",
        out=str(tmp_path_factory.mktemp("out")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcome(settings, vit):
    return runner.evaluate(settings, load=lambda *args, **more: vit)


def samples(outcome, name):
    path = next(run for run in outcome.runs if run.name == name)
    return [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]


# The files


def test_what_is_written_is_read(tmp_path):
    pictures, labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 0], np.uint8)
    idx.write(tmp_path, "t10k", pictures, labels)
    found = idx.read(tmp_path, "t10k")
    assert np.array_equal(found[0], pictures)
    assert np.array_equal(found[1], labels)
    content = gzip.decompress(idx.files(tmp_path, "t10k")[0].read_bytes())
    assert content[:16] == bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4])
    assert content[16:] == bytes(range(24))


def _cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def _shorter(file):
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))


def _other(file):
    file.write_bytes(gzip.compress(b"\0\0\x0d\x03" + bytes(12)))


def _plain(file):
    file.write_bytes(b"pictures")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut, "is not whole, or not gzipped"),
        (_plain, "is not whole, or not gzipped"),
        (_shorter, "has 23 elements, and says 24: fetch it again"),
        (_other, r"is no IDX file of bytes with 3 axes: it begins with \(0, 0, 13, 3\)"),
    ],
)
def test_damaged_files(tmp_path, spoil, said):
    idx.write(tmp_path, "t10k", np.zeros((2, 3, 4), np.uint8), np.zeros(2, np.uint8))
    spoil(idx.files(tmp_path, "t10k")[0])
    with pytest.raises(ValueError, match=said):
        datasets.load(tmp_path)


def test_files_that_do_not_belong_together(tmp_path):
    idx.write(tmp_path, "t10k", np.zeros((2, 3, 4), np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="2 pictures and 3 labels of t10k: expected as many"):
        datasets.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*train-images"):
        idx.read(tmp_path, "train")


def test_labels_of_another_set(tmp_path):
    idx.write(tmp_path, "t10k", np.zeros((1, 28, 28), np.uint8), np.array([10], np.uint8))
    with pytest.raises(ValueError, match="has the label 10: expected 0 to 9"):
        datasets.load(tmp_path)


# The questions


def test_the_shipped_set():
    data = datasets.load("fashion-mnist")
    assert len(data.questions) == 2000
    assert data.tasks == ["picture", "canvas"]
    assert data.model == "tiny-vit"
    assert {q.choices for q in data.questions} == {fashion.NAMES}
    assert {q.answers[0] for q in data.questions} == set(fashion.NAMES)
    assert next(s.model for s in Settings().specs(data.kinds, data.model)) == "tiny-vit"


def test_the_methods_that_a_classifier_is_asked_with():
    asked = {spec.method for spec in Settings().specs(["image"], "tiny-vit")}
    assert {"full", "random", "downsample", "tome", "pitome", "pool"} <= asked
    assert not {"visionzip", "divprune"} & asked
    every = {spec.method for spec in Settings(methods=("all",)).specs(["image"], "tiny-vit")}
    assert {"divprune", "pool", "tome"} <= every
    assert not {"visionzip", "vqtoken", "quota", "fastv", "evs", "uniform-frames"} & every


def test_columns_are_refused():
    with pytest.raises(ValueError, match="fashion-mnist is neither: leave them out"):
        datasets.load("fashion-mnist", {"image": "picture"})


def test_the_canvas_holds_the_picture_and_nothing_else(folder):
    pictures, labels = idx.read(folder, "t10k")
    data = datasets.load(folder)
    places = set()
    for number in range(COUNT):
        plain, canvas = data.questions[2 * number], data.questions[2 * number + 1]
        assert plain.answers == canvas.answers == (fashion.NAMES[labels[number]],)
        assert plain.media.of == canvas.media.of == str(number)
        assert np.array_equal(np.array(plain.media.picture())[..., 0], pictures[number])
        seen = np.array(canvas.media.picture())[..., 0].astype(int)
        assert seen.shape == (56, 56)
        top, left = fashion.place(number, 28)
        places.add((top, left))
        for row in range(56):
            for column in range(56):
                inside = 0 <= row - top < 28 and 0 <= column - left < 28
                assert seen[row, column] == (pictures[number][row - top][column - left] if inside else 0)
        assert np.array_equal(np.array(canvas.media.picture())[..., 0], seen)  # always the same place
    assert len(places) == COUNT


# The evaluation

NAMES = ("full", "blind", "random@49", "downsample@49", "pool@49", "random@0.5", "downsample@0.5", "pool@0.5")
LEFT = {"full": 196, "blind": 196, "random@49": 49, "downsample@49": 49, "pool@49": 49}
LEFT |= {"random@0.5": 98, "downsample@0.5": 90, "pool@0.5": 98}


def test_folders_and_counts(outcome):
    assert sorted(run.name for run in outcome.runs) == sorted(NAMES)
    assert outcome.broken == {}
    embedded = {name: LEFT[name] if name.startswith("downsample") else 196 for name in NAMES}
    for name in NAMES:
        lines = samples(outcome, name)
        assert [line["id"] for line in lines] == [f"{task}-{i}" for i in range(COUNT) for task in fashion.TASKS]
        assert {line["tokens_in"] for line in lines} == {196}
        assert {line["tokens_out"] for line in lines} == {LEFT[name]}
        full, own = {tuple(line["flops"]) for line in lines}.pop()
        assert full == _flops(196, 196)
        if name.startswith("random"):  # wherever it drops them
            assert _flops(LEFT[name], 196) <= own < full
        else:
            assert own == _flops(LEFT[name], embedded[name])
        assert {line["media"] for line in lines} == {str(i) for i in range(COUNT)}
        for line in lines:
            assert line["score"] == float(line["answer"] == line["references"][0])


def _flops(patches, embedded):
    """Multiplications and additions of tiny-vit: 6 blocks of width 96, hidden width 192, one CLS token, ten classes."""
    rows = patches + 1
    linear = 4 * 96 * 96 + 2 * 96 * 192
    return 2 * (6 * (rows * linear + 2 * rows * rows * 96) + embedded * 4 * 4 * 3 * 96 + 96 * 10)


def test_answers_are_those_of_each_picture_alone(outcome, folder, vit):
    model, prepare = vit
    data = datasets.load(folder)
    pixels = torch.cat([prepare([question.media.picture()]) for question in data.questions])
    with torch.inference_mode():
        full = [prepare.names[model(own[None]).argmax()] for own in pixels]
        small = [
            prepare.names[model(prepare([question.media.picture()], (28, 28))).argmax()] for question in data.questions
        ]
        pooled = [prepare.names[_averaged(model, own).argmax()] for own in pixels]
    assert [line["answer"] for line in samples(outcome, "full")] == full
    assert [line["answer"] for line in samples(outcome, "downsample@49")] == small
    assert [line["answer"] for line in samples(outcome, "pool@49")] == pooled


def _averaged(model, pixels):
    """Logits where each 2 x 2 patches are averaged before the first block."""
    rows = model._pos_embed(model.patch_embed(pixels[None]))[0]
    cells = []
    for top in range(0, 14, 2):
        for left in range(0, 14, 2):
            members = [rows[1 + (top + i) * 14 + left + j] for i in range(2) for j in range(2)]
            cells.append(sum(members) / 4)
    return model.forward_head(model.norm(model.blocks(torch.stack([rows[0], *cells])[None])))


def test_the_model_is_as_it_was(outcome, vit):
    model, _ = vit
    assert not model.norm_pre._forward_hooks
    assert model.forward_features(torch.zeros(1, 3, 56, 56)).shape[1] == 197


def test_a_second_time_changes_nothing(outcome, settings, vit, monkeypatch):
    monkeypatch.setattr(classify.Classifier, "answer", None)  # would break
    again = runner.evaluate(settings, load=lambda *args, **more: vit)
    assert again.runs == outcome.runs


def test_the_table(outcome):
    (group,) = compare.load(outcome.runs)
    assert (group.questions, group.media, recorded.classifies(group)) == (2 * COUNT, COUNT, True)
    shown = table.columns(group)
    assert {"pictures/s", "gain", "FLOPs %"} <= set(shown)
    assert not {"KV", "KV %", "TTFT ms", "TTFT gain", "tok/s"} & set(shown)
    row = next(row for row in group.rows if row.label == "pool" and row.keep == 49)
    assert row.flops_share == pytest.approx(_flops(49, 196) / _flops(196, 196))
    assert (row.picture_ms or 0) > 0
    assert plot.shown([group]) == ["picture_ms", "flops_share"] or plot.shown([group]) == ["picture_ms"]
    assert set(row.tasks) == set(fashion.TASKS)
    assert "language model" not in table.caption(group)
    assert math.isclose(row.accuracy.mean, sum(score.mean for score in row.tasks.values()) / 2)


def test_the_page_speaks_of_patches_and_blocks(outcome):
    (group,) = compare.load(outcome.runs)
    (found,) = json.loads(re.search(r"const DATA = (.*);\n", page.html([group]))[1])["groups"]  # type: ignore[index]
    assert found["classifies"] is True
    stages = {row["label"]: row["stage"] for row in found["rows"]}
    assert stages == {"full": "", "blind": "", "random": "encoder", "downsample": "pixels", "pool": "input"}
    tome = (
        dataclasses.replace(group.rows[-1], label="tome"),
        dataclasses.replace(group.rows[-1], label="tome(stage=input)"),
    )
    assert [page._row(row, True, None)["stage"] for row in tome] == ["encoder", "input"]
    assert page._row(tome[0], False, None)["stage"] == "input"
    for shown in found["tables"]:  # each column sorts
        for cells, values in zip(shown["cells"], shown["values"], strict=True):
            filled = {title for title, cell in zip(shown["titles"], cells, strict=True) if cell.strip(" -–")}
            unclear = {"gain"} if "unclear" in cells else set()
            known = {title for title, value in zip(shown["titles"], values, strict=True) if value is not None}
            assert filled - unclear <= known


# What is refused


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("visionzip", "needs the signals cls_attention, keys, which tiny-vit, a bare classifier, has not"),
        ("fastv", "needs the signals last_attention, which tiny-vit, a bare classifier, has not"),
        ("streaming", "needs a language model, which tiny-vit, a bare classifier, has not"),
    ],
)
def test_methods_that_need_more_than_patches(vit, folder, method, said):
    model, prepare = vit
    asked = classify.Classifier(model, prepare, Settings(), {}, {})
    with pytest.raises(ValueError, match=said):
        asked.check([Spec("tiny-vit", method, 49)], datasets.load(folder))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            "tiny",
            "tells 10 classes apart, and the answer to question '.*' of tiny, '.*', is none: they are",
        ),
        ("tiny-video", "tells what a picture shows, and tiny-video has videos: leave them out"),
    ],
)
def test_questions_about_something_else(vit, tmp_path, data, said):
    asked = Settings(data=data, models=("tiny-vit",), methods=("pool",), keep=(49,), device="cpu", out=str(tmp_path))
    with pytest.raises(ValueError, match=said):
        runner.evaluate(asked, load=lambda *args, **more: vit)


def test_a_classifier_of_another_kind(vit):
    with pytest.raises(ValueError, match=r"this classifier is a ResNet, .* give a model of that class"):
        classify.Classifier(timm.create_model("resnet18"), vit[1], Settings(), {}, {})


def test_a_classifier_answers_no_questions():
    from vtc.cli import loading

    with pytest.raises(ValueError, match="tiny-vit tells classes of pictures and answers no questions"):
        loading.check("tiny-vit")
    loading.check("tiny-vit", classifiers=True)
    assert "tiny-vit" not in tiny.names()
    assert tiny.classifiers() == ["tiny-vit"]
