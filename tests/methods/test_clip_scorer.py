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


# -- tokens of pictures ----------------------------------------------------------------------------------------------


def test_patches_are_projected_as_the_pooled_token_is(scorer):
    """By the last norm and the projection that make the picture's embedding of its pooled token."""
    picture, visual = film(1)[0], scorer.model.visual
    got = scorer.patch_cosines(picture, "a red star")
    assert got.shape == (4, 4)
    with torch.no_grad():
        pixels = scorer.preprocess(picture.resize((32, 32)))[None]
        _, tokens = visual._pool(visual.transformer(visual._embeds(pixels)))
        words = scorer.model.encode_text(scorer.tokenizer(["a red star"]))
        expected = torch.cosine_similarity(tokens[0] @ visual.proj, words, dim=-1)
    torch.testing.assert_close(got.flatten(), expected)


def test_all_of_a_long_picture_is_seen(scorer):
    """Its ends, too, which the model's own preprocessing would cut off: what changes there changes there most."""
    blank = Image.new("RGB", (256, 32))
    marked = blank.copy()
    marked.paste((255, 255, 255), (0, 0, 64, 32))
    change = (scorer.patch_cosines(marked, "a star") - scorer.patch_cosines(blank, "a star")).abs()
    assert (change > 1e-6).all(dim=0)[0]


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "qwen2_5_vl"])
def test_it_scores_each_token_where_it_lies(scorer, family):
    """Recoverable is shown each crop alone; a token's relevance is that of its own place in the whole picture."""
    model, inputs, pictures = model_of(family), batch(family, [[1, 2]]), film(2)
    judge, shown = scorer.tokens_about(pictures, ["a star", "a cat"]), []

    def listening(tokens):
        relevance = judge(tokens)
        shown.append((tokens.span.picture, tokens.span.boxes()[tokens.index], relevance))
        return relevance

    with vtc.wrapped(model, vtc.Recoverable(keep=0.4, scorer=listening)):
        model(**inputs)
        spans = vtc.report(model).spans
    assert {number for number, _, _ in shown} == {0, 1}
    for number, boxes, relevance in shown:
        values = scorer.patch_cosines(pictures[number], ["a star", "a cat"][number])
        assert boxes.isfinite().all()
        for box, got in zip(boxes.tolist(), relevance.tolist(), strict=True):
            x, y = (box[0] + box[2]) / 2 * 4 - 0.5, (box[1] + box[3]) / 2 * 4 - 0.5  # in patches
            weights = {
                (i, j): max(0.0, 1 - abs(min(max(y, 0), 3) - i)) * max(0.0, 1 - abs(min(max(x, 0), 3) - j))
                for i in range(4)
                for j in range(4)
            }
            assert got == pytest.approx(sum(w * float(values[at]) for at, w in weights.items()), abs=1e-5)
    for number, span in enumerate(spans):
        covered = torch.cat([boxes for own, boxes, _ in shown if own == number])
        assert covered[:, :2].amin() == 0
        assert covered[:, 2:].amax() == pytest.approx(1)
        assert span.tokens_out == round(0.4 * span.tokens_in)


def test_bad_input_of_pictures(scorer):
    with pytest.raises(ValueError, match=r"^2 pictures, 1 questions: give one question per picture, or one string\.$"):
        scorer.tokens_about(film(2), ["what is it?"])
    model = model_of("llava")
    method = vtc.Recoverable(keep=4, scorer=scorer.tokens_about(film(1), "a star"))
    with (
        vtc.wrapped(model, method),
        pytest.raises(ValueError, match="the batch has a picture number 1; the scorer knows 1, from 0 on"),
    ):
        model(**batch("llava", [[0, 1]]))
    video = model_of("llava_onevision")
    with vtc.wrapped(video, method), pytest.raises(ValueError, match=r"^tokens_about scores pictures; [^\n]*\.$"):
        video(**batch("llava_onevision", [["v0"]]))


def test_crops_that_lie_nobody_knows_where_are_refused(scorer):
    """InternVL hands the model its tiles, but not how they were cut; the thumbnail alone has its place."""
    model, inputs = model_of("internvl"), batch("internvl", [[3]])
    with (
        vtc.wrapped(model, vtc.Recoverable(keep=0.4, scorer=scorer.tokens_about(film(1), "a star"))),
        pytest.raises(ValueError, match=r"^tokens_about cannot tell where the tokens of a crop lie, [^\n]*\.$"),
    ):
        model(**inputs)


def test_newlines_have_no_place(scorer):
    """Taken as a whole, a LLaVA-NeXT picture has tokens that show nothing; none of them is chosen."""
    model, inputs = model_of("llava_next"), batch("llava_next", [[1]])
    method = vtc.Recoverable(keep=0.4, scope="clip", scorer=scorer.tokens_about(film(1), "a star"))
    with vtc.wrapped(model, method):
        model(**inputs)
        kept = vtc.report(model).spans[0].kept
        assert model._vtc_engine.trace.spans[0].separators.any()
        assert not model._vtc_engine.trace.spans[0].separators[kept].any()


def test_towers_that_project_no_patches_are_refused(scorer, monkeypatch):
    monkeypatch.setattr(scorer.model.visual, "proj", None)
    with pytest.raises(TypeError, match=r"^VisionTransformer projects no patches to where the text is; load [^\n]*\.$"):
        scorer.patch_cosines(film(1)[0], "a star")


def test_without_open_clip(monkeypatch):
    monkeypatch.setattr("vtc.methods.shared.clip_scorer.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs open_clip: pip install 'vtc-vlm\[encoders\]'"):
        vtc.OpenClipScorer.load()
