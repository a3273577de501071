"""The training of tiny-next: it starts from tiny-llava, runs through with --quick, and its batches are what is said."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from vtc.models import tiny
from vtc.models.tiny import build as llava
from vtc.models.tiny import drawings
from vtc.models.tiny.next import build, pool, scenes, train

ROOT = Path(__file__).resolve().parents[4]
needs_files = pytest.mark.skipif(
    not drawings.ROOT.is_dir(), reason="needs the Debian packages openclipart-png and fonts-dejavu"
)


def test_it_starts_as_tiny_llava():
    started = build.model()
    old = AutoModelForImageTextToText.from_pretrained(tiny.path(), local_files_only=True).float().state_dict()
    new = started.state_dict()
    words = len(llava.vocabulary())
    for name, weight in old.items():
        assert torch.equal(new[name][:words] if "embed_tokens" in name or "lm_head" in name else new[name], weight)
    assert build.vocabulary()[:words] == llava.vocabulary()
    assert "quarter" in build.vocabulary()[words:]


@pytest.fixture(scope="module")
def drawn() -> pool.Pool:
    """A pool whose features say which view and patch they are of."""
    made = pool.Pool.__new__(pool.Pool)
    made.seen = []
    for seed in range(6):
        scene = scenes.sample(seed)
        features = torch.arange(5 * 576).view(5, 576, 1).float()
        made.seen.append(pool.Seen(scene, features, pool.dense(scene)))
    made._whole_crops = [(i, c) for i in range(6) for c in range(4)]
    return made


def test_every_token_stands_at_its_own_place(drawn):
    stage, at = train.Stage("part", 200, 2, 6, 1, 1e-3), train.positions()
    kinds = set()
    for step in range(40):
        batch = train.draw_batch(drawn, stage, 2, 6, [0, step])
        for features, places, order in zip(batch.features, batch.places, batch.order, strict=True):
            shown = len(features)
            assert (places.diff() > 0).all()
            assert len(places) == len(order)
            patches = [int(features[i, 0]) for i in order.tolist() if i < shown]
            lines = [place for place, i in zip(places.tolist(), order.tolist(), strict=True) if i >= shown]
            assert set(lines) <= set(train.newlines().tolist())
            mixed = not bool((places < 576).any())
            if not mixed:  # a picture put together of crops has features of others
                assert [int(at[p]) for p in patches] == [p for p in places.tolist() if p not in lines]
            kinds.add("mixed" if mixed else "thumbnail" if int(places.max()) < 576 else len(lines) == 48)
    assert kinds == {"mixed", "thumbnail", True, False}


def test_what_is_asked_about_is_always_shown(drawn):
    rng = np.random.default_rng(0)
    for seen in drawn.seen:
        chosen = train._choose(seen, 0, 5 * 576, 150, rng)
        flat = seen.labels.reshape(-1, 4)
        assert set(np.nonzero(flat[:, 3] == 1)[0]) <= set(chosen)


def recipe(out: Path) -> list[list[str]]:
    """The commands of `make tiny-next`, which write into `out`."""
    made = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ntiny-next: ", 1)[1].split("\n\n")[0]
    lines = [line.strip().replace("runs/tiny-next", str(out)) for line in made.splitlines()[1:]]
    return [[sys.executable, *line.removeprefix("$(BIN)/python ").split()] for line in lines]


@pytest.mark.full
@needs_files
def test_quick_training_runs_from_nothing_to_a_model_that_answers(tmp_path):
    training, scoring = recipe(tmp_path)
    subprocess.run([*training, "--quick"], cwd=ROOT, check=True, capture_output=True)
    before = (tmp_path / "log.jsonl").read_text()
    steps = [(line["stage"], line["step"]) for line in map(json.loads, before.splitlines())]
    assert steps == [(stage.name, step) for stage in train.STAGES for step in range(2)]
    (tmp_path / f"{train.STAGES[-1].name}.pt").unlink()  # it goes on where it stopped
    subprocess.run([*training, "--quick"], cwd=ROOT, check=True, capture_output=True)
    after = (tmp_path / "log.jsonl").read_text()
    assert after.startswith(before)
    assert {json.loads(x)["stage"] for x in after[len(before) :].splitlines()} == {train.STAGES[-1].name}
    subprocess.run([*scoring, "--limit", "8"], cwd=ROOT, check=True, capture_output=True)
    assert {"thumbnail", "blind"} <= json.loads((tmp_path / "metrics.json").read_text()).keys()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "tiny-next", local_files_only=True)
    started, ended = build.model().state_dict(), model.float().state_dict()
    assert model.config.model_type == "llava_next"
    assert started.keys() == ended.keys()
    changed = {name for name, weight in ended.items() if not torch.equal(weight, started[name])}
    assert not any("vision_tower" in name for name in changed)
    assert {"model.image_newline", "lm_head.weight"} <= changed
    assert all(bool(weight.isfinite().all()) for weight in ended.values())
