"""Runs side by side: the numbers of a by-hand count, in every form they are printed in."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil

import pytest
from PIL import Image
from rich.console import Console

from tests.eval.runs import synthetic
from vtc.cli.main import main
from vtc.eval import compare, page, plot, table


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    synthetic(out, "full", None, 0.95)
    synthetic(out, "blind", None, 0.2)
    for keep, plain, good in ((288, 0.8, 0.94), (64, 0.4, 0.9), (16, 0.2, 0.6)):
        synthetic(out, "random", keep, plain)
        synthetic(out, "good", keep, good)
        synthetic(out, "poor", keep, plain)
    return out


@pytest.fixture(scope="module")
def group(out):
    paths, notes = compare.find([out])
    assert notes == []
    (group,) = compare.load(paths)
    return group


def row(group, label, keep):
    return next(row for row in group.rows if (row.label, row.keep) == (label, keep))


def test_rows_are_in_order_and_count_right(group, out):
    order = [(row.label, row.keep) for row in group.rows]
    assert order[:3] == [("full", None), ("blind", None), ("random", 288)]
    assert [keep for _, keep in order[2:]] == [288] * 3 + [64] * 3 + [16] * 3
    good = row(group, "good", 64)
    lines = [json.loads(line) for line in (out / "tiny-llava" / "good@64" / "samples.jsonl").read_text().splitlines()]
    mean = sum(line["score"] for line in lines) / 120
    assert good.accuracy.mean == pytest.approx(mean)
    assert good.tasks["task1"].mean == pytest.approx(sum(line["score"] for line in lines[1::3]) / 40)
    assert good.tokdense == pytest.approx(100 * mean / 64)
    assert good.retention is not None
    assert good.retention.mean == pytest.approx(mean / row(group, "full", None).accuracy.mean)
    assert (good.flops_share, good.kv_share, good.ttft_ms) == pytest.approx((64 / 576, 64 / 576, 16.4))


def test_what_is_significant(group):
    assert row(group, "good", 64).beats_random
    assert row(group, "good", 16).beats_random
    assert not row(group, "poor", 64).beats_random
    for own in group.rows:
        if own.versus_random is not None:
            assert own.p_random >= own.versus_random.p  # corrected upwards
    assert row(group, "random", 64).versus_random is None
    assert row(group, "full", None).versus_full is None
    assert row(group, "good", 64).versus_full.mean < 0


def test_printed_forms_agree(group):
    console = Console(width=220, record=True, file=io.StringIO())
    for part in table.terminal(group):
        console.print(part)
    text, markdown = console.export_text(), table.markdown([group])
    mean = f"{100 * row(group, 'good', 64).accuracy.mean:.1f} ±"
    for form in (text, markdown):
        for expected in (mean, "▲", "▼", "TokDense", "loyalty", "task2", "16.4"):
            assert expected in form
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    first, second = lines[: len(group.rows) + 2], lines[len(group.rows) + 2 :]
    assert len({line.count("|") for line in first}) == len({line.count("|") for line in second}) == 1
    assert "120 questions on 60 pictures" in markdown


def test_the_frontier():
    assert compare.frontier([3, 1, 2, 2], [9, 5, 4, 7]) == [1, 3, 0]
    assert compare.frontier([1, 1], [5, 6]) == [1]
    assert compare.frontier([], []) == []


def test_the_picture(group, tmp_path):
    plot.pareto([group, group], tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as drawn:
        assert drawn.width > 1500
        assert len(drawn.convert("RGB").getcolors(1 << 24) or []) > 200


def test_what_was_not_timed_has_no_panel(group, tmp_path):
    plot.pareto([group], tmp_path / "timed.png")
    untimed = compare.Group(tuple(dataclasses.replace(run, timing={}) for run in group.runs))
    plot.pareto([untimed], tmp_path / "untimed.png")
    with Image.open(tmp_path / "timed.png") as timed, Image.open(tmp_path / "untimed.png") as less:
        assert less.width == pytest.approx(timed.width * 2 / 3, abs=2)


def test_paths_among_options_are_cut_where_they_stay_apart(tmp_path):
    for weights in ("here/one", "there/one", "there/two"):
        name = weights.replace("/", "-")
        synthetic(tmp_path, name, 64, 0.9, method=f"vqtoken(weights={weights})")
    paths, _ = compare.find([tmp_path])
    (group,) = compare.load(paths)
    labels = {"vqtoken(weights=here/one)", "vqtoken(weights=there/one)", "vqtoken(weights=two)"}
    assert {row.label for row in group.rows} == labels


def test_runs_of_the_first_format_are_still_read(tmp_path):
    """It had a method's options in a table beside its name."""
    paths = [synthetic(tmp_path, "new", 64, 0.9, method="todre(mode=kcenter)")]
    paths += [synthetic(tmp_path, "old", 64, 0.9, format=1, method="dart", options={"pivots": 2, "layers": [0.25]})]
    paths += [synthetic(tmp_path, "older", 64, 0.9, format=1, method="random", options={})]
    (group,) = compare.load(paths)
    assert {row.label for row in group.rows} == {"todre(mode=kcenter)", "dart(layers=(0.25,), pivots=2)", "random"}


def test_brackets_are_no_markup(tmp_path, capsys):
    synthetic(tmp_path, "full", None, 0.9, instruction="Answer [yes/no] [/INST]")
    assert main(["compare", str(tmp_path)]) == 0
    assert "[yes/no] [/INST]" in capsys.readouterr().out


def test_the_page_is_complete_in_itself(group):
    text = page.html([group])
    assert set(re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]+)""", text)) == {"data:,"}
    assert set(re.findall(r"\w+://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not a request
    assert not re.search(r"@import|fetch\(|XMLHttpRequest|url\(", text)
    data = json.loads(re.search(r"const DATA = (.*);\n", text).group(1))  # type: ignore[union-attr]
    assert data["groups"][0]["rows"][0]["label"] == "full"
    assert set(data["colors"]) == {"random", "good", "poor"}


def test_nothing_in_the_data_ends_the_script(tmp_path):
    synthetic(tmp_path, "full", None, 0.9, data="</script><script>alert(1)", count=6)
    (group,) = compare.load(compare.find([tmp_path])[0])
    assert page.html([group]).count("</script>") == 1


def test_the_command(out, tmp_path, capsys):
    files = {name: tmp_path / "new" / f"a.{kind}" for name, kind in
             (("markdown", "md"), ("json", "json"), ("plot", "png"), ("html", "html"))}  # fmt: skip
    options = [part for name, file in files.items() for part in (f"--{name}", str(file))]
    assert main(["compare", str(out), *options]) == 0
    assert "tiny-llava on mine" in capsys.readouterr().out
    assert all(file.stat().st_size > 1000 for file in files.values())
    (found,) = json.loads(files["json"].read_text())
    assert len(found["rows"]) == 11
    assert main(["compare", *map(str, sorted((out / "tiny-llava").glob("*@64")))]) == 0  # without the uncompressed run
    assert "loyalty" not in capsys.readouterr().out.split("mine:")[0]


def test_runs_that_cannot_be_compared_are_kept_apart(out, tmp_path):
    other = synthetic(tmp_path, "full", None, 0.5, digest="other")
    groups = compare.load(compare.find([out, other])[0])
    assert [len(group.runs) for group in groups] == [11, 1]


def test_the_same_run_twice_counts_once(out, tmp_path):
    shutil.copytree(out / "tiny-llava" / "full", tmp_path / "again")
    (group,) = compare.load(compare.find([out, tmp_path / "again"])[0])
    assert len(group.runs) == 11


def test_runs_that_are_not_there(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["compare", str(tmp_path)]) == 2
    assert "no run of `vtc eval`" in capsys.readouterr().err
    run = synthetic(tmp_path, "full", None, 0.5)
    (run / "metrics.json").unlink()
    assert main(["compare", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err
    synthetic(tmp_path, "random", 64, 0.5)
    assert main(["compare", str(tmp_path)]) == 0
    assert "full is not finished and left out" in capsys.readouterr().err
    assert main(["compare", str(tmp_path), "--plot", "a.xyz"]) == 2
    assert "--plot a.xyz" in capsys.readouterr().err
