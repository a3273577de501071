"""`vtc check`: what it prints of a model that is right, and how it ends."""

from __future__ import annotations

from vtc.cli.main import main


def test_the_shipped_model_is_right(capsys):
    assert main(["check", "--model", "tiny-llava", "--method", "vtc-cls"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("vtc-cls on LlavaForConditionalGeneration: clip_vision_model, llama, float32\n")
    for line in ("placeholders", "everything kept", "some dropped", "generation", "decoder", "tower"):
        assert f"ok     {line}" in out
    assert "right, as far as it was compared" in out


def test_a_method_that_is_not_known(capsys):
    assert main(["check", "--model", "tiny-llava", "--method", "vtc-clss"]) == 2
    assert "Did you mean 'vtc-cls'?" in capsys.readouterr().err
