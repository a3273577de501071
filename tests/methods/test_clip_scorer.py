"""Frame scorers by open_clip: a tiny model with random weights, as no hub can be reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import vtc
from tests.families import batch, model_of
from vtc.methods.quota import relative
from vtc.methods.shared.clips import share_out

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def scorer() -> vtc.OpenClipScorer:
    torch.manual_seed(0)
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=16, heads=2, layers=1)
    vision = open_clip.CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=8, image_size=32)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    preprocess: Any = open_clip.image_transform(32, is_train=False)
    return vtc.OpenClipScorer(model, preprocess, open_clip.tokenizer.SimpleTokenizer(), batch=3)


def film(count: int, seed: int = 0) -> list[Image.Image]:
    g = torch.Generator().manual_seed(seed)
    return [
        Image.fromarray(torch.randint(0, 256, (40, 48, 3), generator=g).to(torch.uint8).numpy()) for _ in range(count)
    ]


def test_cosines_are_the_models_own(scorer):
    frames = film(7)
    got = scorer.cosines(frames, "a red star")
    with torch.no_grad():
        seen = scorer.model.encode_image(torch.stack([scorer.preprocess(frame) for frame in frames]), normalize=True)
        words = scorer.model.encode_text(scorer.tokenizer(["a red star"]), normalize=True)
    torch.testing.assert_close(got, (seen @ words.T)[:, 0])
    assert not scorer.cosines(frames, "a cat").equal(got)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_it_decides_in_a_model(scorer, family):
    """Each video of a batch by its own frames and question; scored once, whatever is asked of it."""
    model, inputs = model_of(family), batch(family, [["v0", 0], ["v1"]])
    videos, questions = [film(4), film(4, seed=1)], ["a star", "a cat"]
    judge = scorer.about(videos, questions)
    with vtc.wrapped(model, vtc.QuoTA(keep=0.4, scorer=judge, power=8.0)):
        model(**inputs)
        spans = [span for span in vtc.report(model).spans if span.modality == "video"]
    for span, frames, question in zip(spans, videos, questions, strict=True):
        t, h, w = span.grid
        score = relative(scorer.cosines(frames, question))
        score = score if t == 4 else torch.nn.functional.adaptive_avg_pool1d(score[None, None], t)[0, 0]
        shares = share_out(round(0.4 * span.tokens_in), (score**8).tolist(), [h * w] * t, 1)
        assert torch.bincount(span.kept // (h * w), minlength=t).tolist() == shares


def test_one_question_for_all_and_bad_input(scorer):
    assert scorer.about([film(2), film(3)], "what moves?") is not None
    with pytest.raises(ValueError, match="2 videos, 1 questions"):
        scorer.about([film(2), film(3)], ["what moves?"])
    with pytest.raises(ValueError, match="a video without frames cannot be scored"):
        scorer.cosines([], "what moves?")
    model, inputs = model_of("llava_onevision"), batch("llava_onevision", [["v0"], ["v1"]])
    with (
        vtc.wrapped(model, vtc.QuoTA(scorer=scorer.about([film(2)], "what moves?"))),
        pytest.raises(ValueError, match="the batch has a video number 1; the scorer knows 1, from 0 on"),
    ):
        model(**inputs)


def test_without_open_clip(monkeypatch):
    monkeypatch.setattr("vtc.methods.shared.clip_scorer.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs open_clip: pip install 'vtc-vlm\[encoders\]'"):
        vtc.OpenClipScorer.load()
