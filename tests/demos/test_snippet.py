"""What is copied as code is a program that says what the card says."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import pytest

import vtc
from vtc.demos.examples import shipped_clips, shipped_pictures
from vtc.demos.snippet import snippet
from vtc.demos.studio import Studio

QUESTION = 'What shape is "red"?\n'


@pytest.fixture(scope="module")
def studio():
    return Studio(["tiny-llava", "tiny-qwen"], device="cpu")


def output(code: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "pasted.py", "exec"), {"__name__": "__main__"})
    return said.getvalue()


@pytest.mark.parametrize("method", [None, "divprune", "pyramiddrop", "todre(mode=kcenter)", "downsample"])
def test_code_of_a_picture_answers_as_the_card(studio, method):
    media = shipped_pictures()[0][0]
    run = list(studio.answer("tiny-qwen", media, QUESTION, method, 0.25 if method else 1.0, timed=False))[-1]
    assert run.state == "answered", run.text
    said = output(snippet("tiny-qwen", media, QUESTION, run))
    assert said.splitlines()[-1] == run.text
    if method and method != "downsample":
        assert f"{run.report.tokens_in}" in said  # its report


def test_code_of_a_clip_answers_as_the_card(studio):
    media, question = shipped_clips()[0]
    run = list(studio.answer("tiny-qwen", media, question, "divprune", 0.1, timed=False))[-1]
    assert run.state == "answered", run.text
    assert output(snippet("tiny-qwen", media, question, run)).splitlines()[-1] == run.text


def test_an_upload_is_read_from_where_the_program_runs(studio, tmp_path, monkeypatch):
    media = shipped_pictures()[1][0]
    media.still.save(tmp_path / "mine.png")
    monkeypatch.chdir(tmp_path)
    mine = replace(media, key="mine", name="mine.png")
    run = list(studio.answer("tiny-llava", mine, "What word is printed?", "vtc-cls", 0.1, timed=False))[-1]
    code = snippet("tiny-llava", mine, "What word is printed?", run)
    assert 'vtc.load_picture("mine.png")' in code
    assert output(code).splitlines()[-1] == run.text


def test_what_the_demo_makes_smaller_is_made_smaller(studio):
    media = shipped_pictures()[0][0]
    run = list(studio.answer("tiny-llava", media, "?", None, timed=False))[-1]
    large = replace(media, key="large", picture=media.still.resize((1600, 900)))
    assert "picture.thumbnail((1600, 1600))" in snippet("tiny-llava", large, "?", run)
    assert "thumbnail" not in snippet("tiny-llava", media, "?", run)
    assert vtc.__name__ in snippet("tiny-llava", media, "?", run)
