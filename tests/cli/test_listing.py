"""`vtc methods` and `vtc families`: lists that fit 80 columns, pages about one, JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest

import vtc
from tests.families import EVERY
from tests.listed import LISTED
from tests.models.test_listed import KNOWN
from vtc.cli import listing
from vtc.cli.main import main
from vtc.methods.base.index import shipped
from vtc.models.families import SHIPPED, family_infos

PLUGIN = '''
import vtc
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Every(vtc.Method):
    """Every so many tokens, which is told in a line that is far too long for a terminal of eighty columns.

    Args:
        step: how many.
    """

    name = "every"
    step: int = 2

    def score(self, tokens):
        return -(tokens.index % self.step).float()


@vtc.register_adapter
class MineAdapter(vtc.Adapter):
    """Mine, which reads pictures."""

    model_types = ("mine_vl",)
'''


def shown(capsys, *line: str) -> str:
    assert main([*line]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_a_line_each(capsys):
    lines = shown(capsys, "methods").splitlines()
    infos = vtc.list_methods()
    assert len(lines) == len(infos) + 2
    for line, info in zip(lines, infos, strict=False):
        assert re.split("  +", line)[:2] == [info.name, info.acts]
        assert line.endswith(info.summary)
    assert max(map(len, lines)) <= 80


def test_where_a_method_can_act_besides(capsys):
    acts = {info.name: (info.acts, info.places) for info in vtc.list_methods()}
    for name in ("tome", "pitome", "vtc-cls", "random"):
        assert acts[name] == ("input or encoder", ("input", "encoder"))
        assert "or encoder (between the vision tower's blocks)" in " ".join(shown(capsys, "methods", name).split())
        assert json.loads(shown(capsys, "methods", name, "--json"))["places"] == ["input", "encoder"]
    assert acts["zerotprune"] == ("encoder", ("encoder",))
    assert acts["todre"] == ("input+layer", ("input", "layer"))
    assert "none: the blocks' own queries and keys" in shown(capsys, "methods", "zerotprune")


def test_families_a_line_each(capsys):
    lines = shown(capsys, "families").splitlines()
    assert [line.split()[0] for line in lines[:-2]] == vtc.list_families()
    assert max(map(len, lines)) <= 80


def test_what_is_said_of_families_is_so():
    import transformers

    assert [*SHIPPED] == [name for name in vtc.list_families() if name in SHIPPED]
    reading = {family.config().model_type for family in EVERY.values() if family.videos is not None}
    reading.add("internvl")  # as rows of pictures
    assert {name for name, info in SHIPPED.items() if "video" in info.modality} == reading
    for name, info in SHIPPED.items():
        assert info.model_type == name
        assert name in transformers.CONFIG_MAPPING
        assert info.listed == (name in LISTED)
        if info.listed:  # as the tests of listed families find it
            ways = {"pixels": "before", "encoder": "inside"}
            own = [stage for stage, how in ways.items() if name in KNOWN[how][1]]
            inside = {"gemma3n": ["input", "cache"], "mllama": ["input"]}.get(name, ["input", "layer", "cache"])
            assert [*info.stages] == [*own, *inside]
            assert info.read == (name in KNOWN["read"][1])
            assert info.grid == (name not in ("aria", "deepseek_ocr2", "idefics2"))


@pytest.mark.parametrize("info", [pytest.param(info, id=info.name) for info in shipped().values()])
def test_a_page_about_a_method(capsys, info):
    out = shown(capsys, "methods", info.name)
    words = " ".join(out.split())
    assert out.startswith(f"{info.name}: {info.summary}\n")
    for option, said in info.help.items():
        assert f"  {option}=" in out
        assert " ".join(said.split()) in words
    for said in (info.paper.title if info.paper else "none", info.about.split("\n")[0], *info.needs):
        assert said in words
    assert max(len(line) for line in out.splitlines() if '"' not in line) <= 80
    text = listing.example_text(info)
    assert out.count(f'"{text}"') == 2
    assert str(vtc.resolve(text)).startswith(info.name)


def test_which_methods_have_to_be_calibrated_first(capsys):
    for name in shipped():
        if name in listing.CALIBRATED:
            with pytest.raises(ValueError, match=r"give it calibration=, a file that vtc\.calibrate wrote"):
                vtc.resolve(name).check_checkpoint("llava", lambda: "")
        else:
            vtc.resolve(name).check_checkpoint("llava", lambda: "")
    page = shown(capsys, "methods", "razor")
    text = listing.example_text(shipped()["razor"]).removesuffix(")")
    assert f'vtc calibrate --data tiny --method "{text})" --pairs 1 --out razor.json\n' in page
    assert f'--question "What is this?" --method "{text}, calibration=razor.json)"' in page
    assert f'vtc.wrap(model, "{text})", calibration="razor.json")' in page


def test_an_example_is_a_command_line_that_vtc_takes(capsys):
    page = shown(capsys, "methods", "todre")
    assert 'vtc ask --image photo.jpg --question "What is this?" --method "todre(keep=0.25, mode=maxsum)"' in page
    line = ["ask", "--image", "photo.jpg", "--question", "What is this?", "--method", "todre(keep=0.25, mode=maxsum)"]
    assert main(line) == 2
    assert "there is no picture at photo.jpg" in capsys.readouterr().err  # nothing else is wrong with it


def test_a_page_about_a_family(capsys):
    out = shown(capsys, "families", "qwen2_5_vl")
    for said in ("Qwen2.5-VL", "pictures, videos", "tiny-qwen", "vtc ask --model tiny-qwen --image"):
        assert said in out


def test_json(capsys):
    methods = json.loads(shown(capsys, "methods", "--json"))
    assert [entry["name"] for entry in methods] == [info.name for info in vtc.list_methods()]
    one = json.loads(shown(capsys, "methods", "todre", "--json"))
    assert one == next(entry for entry in methods if entry["name"] == "todre")
    assert one["defaults"]["mode"] == "maxsum"
    assert one["paper"][1] == "2505.18757"
    families = json.loads(shown(capsys, "families", "--json"))
    assert [entry["model_type"] for entry in families] == vtc.list_families()
    assert json.loads(shown(capsys, "families", "llava", "--json")) == json.loads(json.dumps(asdict(SHIPPED["llava"])))


def test_names_that_are_nearly_right(capsys):
    for line, said in [
        (["methods", "divprun"], "there is no method 'divprun'. Did you mean 'divprune'?"),
        (["methods", "VTC_CLS", "--json"], "Did you mean 'vtc-cls'?"),
        (["families", "llva"], "there is no family 'llva'. Did you mean 'llava'?"),
        (["families", "zzz"], "there is no family 'zzz'. There are: aria, aya_vision, "),
    ]:
        assert main(line) == 2
        captured = capsys.readouterr()
        assert said in captured.err
        assert captured.out == ""


def test_what_a_plugin_adds(capsys, tmp_path, monkeypatch):
    from vtc.methods.base import registry as methods
    from vtc.models import registry as families

    monkeypatch.setattr(methods, "_METHODS", dict(methods.discover()))
    monkeypatch.setattr(families, "_ADAPTERS", dict(families._ADAPTERS))
    (tmp_path / "mine.py").write_text(PLUGIN)
    plugin = ["--plugin", str(tmp_path / "mine.py")]
    assert "every           input" in shown(capsys, "methods", *plugin)
    page = shown(capsys, "methods", "every")
    assert "step=2  (int)\n      how many." in page
    assert "Mine, which reads pictures." in shown(capsys, "families")
    assert "Mine, which reads pictures." in shown(capsys, "families", "mine_vl")
    assert "mine_vl" in [info.model_type for info in family_infos()]


def test_on_a_narrow_terminal_lines_are_cut(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    lines = shown(capsys, "methods").splitlines()
    assert max(map(len, lines[:-1])) == 60
    assert any(line.endswith("…") for line in lines)
