"""A comparison written as JSON is the same comparison when it is read again."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.eval.runs import synthetic
from vtc.cli.main import main
from vtc.eval import compare, page, plot, recorded, table
from vtc.eval.command import command, versions
from vtc.eval.settings import Settings

HOW = {
    "device": "x86_64",
    "dtype": "float32",
    "versions": {"vtc": "0.1.0", "commit": "c0ffee", "torch": "2.15.0", "transformers": "5.24.0"},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    synthetic(out, "full", None, 0.95, how=HOW)
    synthetic(out, "blind", None, 0.3, how=HOW)
    for keep in (288, 64):
        synthetic(out, "random", keep, 0.5, how=HOW)
        synthetic(out, "downsample", keep, 0.6, how=HOW)
        synthetic(out, "good", keep, 0.8, method="dart(layers=(2, 4), pivots=2)", how=HOW)
    synthetic(out, "everything", 1, 0.5, method="divprune", keep=1.0, how=HOW)
    return out


def test_reading_is_the_inverse_of_writing(out, tmp_path):
    groups = compare.load(compare.find([out])[0])
    file = tmp_path / "a.json"
    file.write_text(recorded.write(groups))
    again = recorded.read(file)
    assert table.markdown(again) == table.markdown(groups)
    assert len(page.html(again)) == pytest.approx(len(page.html(groups)), rel=0.2)
    assert plot.shown(again) == plot.shown(groups)
    assert again[0].made == ["vtc 0.1.0 (commit c0ffee), torch 2.15.0, transformers 5.24.0, float32 on x86_64"]
    assert recorded.write(again) == file.read_text()
    assert {repr(row.keep) for row in again[0].rows} == {"None", "288", "64", "1.0"}
    assert file.stat().st_size < 1400 * len(again[0].rows)


def test_the_command_reads_what_it_wrote(out, tmp_path, capsys):
    assert main(["compare", str(out), "--json", str(tmp_path / "a.json")]) == 0
    told = capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]) == 0
    assert capsys.readouterr().out == told
    assert "dart(layers=(2, 4), pivots=2)" in (tmp_path / "a.html").read_text()


def without(name):
    return lambda found: found[0]["rows"][0].pop(name)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda found: found[0].update(format=99), "not of format 1"),
        (lambda found: found.clear(), "not of format 1"),
        (lambda found: found[0].pop("title"), "lacks 'title'"),
        (lambda found: found[0].update(tasks=None), "tasks is no list"),
        *((without(name), f"lacks '{name}'") for name in ("accuracy", "command", "tasks", "speedup", "keep")),
        (lambda found: found[0]["rows"][0].update(accuracy=0.5), "mapping"),
        (lambda found: found[0]["rows"][0].update(surprise=1), "surprise"),
    ],
)
def test_another_file_is_refused_in_a_sentence(spoil, said, out, tmp_path, capsys):
    found = json.loads(recorded.write(compare.load(compare.find([out])[0])))
    spoil(found)
    (tmp_path / "a.json").write_text(json.dumps(found))
    assert main(["compare", str(tmp_path / "a.json")]) == 2
    told = capsys.readouterr()
    assert (told.out, len(told.err.splitlines())) == ("", 1)
    assert said in told.err
    assert "write it anew" in told.err


def test_no_file_and_no_json(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a.json")]) == 2
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / "a.json").write_text("no")
    assert main(["compare", str(tmp_path / "a.json")]) == 2
    assert "no comparison" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "keep", "more", "expected"),
    [
        ("full", None, {}, "--methods random --keep 0.5 --timing 0"),
        ("blind", None, {}, "--methods random --keep 0.5 --blind --timing 0"),
        ("downsample", 64, {}, "--methods random --keep 64 --timing 0"),
        ("dart(layers=(2, 4), pivots=2)", 0.1, {}, "--methods 'dart(layers=(2,4),pivots=2)' --keep 0.1 --timing 0"),
        ("evs", 32, {"frames": 16}, "--methods evs --keep 32 --frames 16 --timing 0"),
        ("evs", 32, {"max_new_tokens": 5}, "--methods evs --keep 32 --max-new-tokens 5 --timing 0"),
        ("evs", 32, {"instruction": "In a word."}, "--instruction 'In a word.' --timing 0"),
    ],
)
def test_the_command_of_a_row_asks_for_that_row(method, keep, more, expected, out):
    config = json.loads((out / "tiny-llava" / "full" / "config.json").read_text())
    config |= {"method": method, "keep": keep, "data": "tiny"} | more
    text = command(config)
    assert text.startswith("vtc eval --model tiny-llava --data tiny --limit 120 --methods ")
    assert text.endswith(expected)
    words = shlex.split(text)
    given = {name: words[words.index(f"--{name}") + 1] for name in ("methods", "keep", "limit")}
    keeps = (float(given["keep"]) if "." in given["keep"] else int(given["keep"]),)
    settings = Settings(methods=(given["methods"],), keep=keeps, blind="--blind" in words)
    assert (method, keep) in {(spec.label, spec.keep) for spec in settings.specs(["image", "video"])}


def test_a_run_that_says_nothing_of_its_code():
    assert versions({}) == ""
    assert versions({"how": {"versions": {"torch": "2.15.0"}}}) == "torch 2.15.0"
