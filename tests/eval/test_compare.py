"""Runs side by side: the numbers of a by-hand count, in every form they are printed in."""

from __future__ import annotations

import dataclasses
import html
import io
import itertools
import json
import re
import shutil
from typing import Any

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from tests.eval.runs import synthetic
from vtc.cli.main import main
from vtc.eval import compare, page, plot, recorded, table


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


def row(group, label, keep) -> Any:
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


def everywhere(groups):
    """The same table, wide and narrow, in Markdown and on the page."""
    return (
        printed(groups[0], 220),
        printed(groups[0], 100, wide=False),
        table.markdown(groups),
        page.html(groups),
    )


def printed(group, width, wide=True):
    console = Console(width=width, record=True, file=io.StringIO())
    for part in table.terminal(group, wide, width):
        console.print(part)
    return console.export_text()


def test_printed_forms_agree(group):
    text, markdown = printed(group, 220), table.markdown([group])
    mean = f"{100 * row(group, 'good', 64).accuracy.mean:.1f} ±"
    for form in (text, markdown):
        for expected in (mean, "▲", "▼", "TokDense", "loyalty", "task2", "16.4"):
            assert expected in form
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    first, second = lines[: len(group.rows) + 2], lines[len(group.rows) + 2 :]
    assert len({line.count("|") for line in first}) == len({line.count("|") for line in second}) == 1
    assert "120 questions on 60 pictures" in markdown


@pytest.mark.parametrize("width", [100, 80])
@pytest.mark.parametrize(
    "options", ["", "(average=True)", "(adaptive=(12,32),weights=a-long-name-of-some-trained-weights)"]
)
def test_a_narrow_table_fits_and_cuts_nothing(width, options, tmp_path):
    synthetic(tmp_path, "full", None, 0.95)
    for keep in (288, 64, 0.5):
        for name, right in (("random", 0.3), ("downsample", 0.4), (f"vqtoken{options}", 0.6)):
            count = int(keep * 576) if isinstance(keep, float) else keep
            synthetic(tmp_path, f"{name[:8]}{keep}", count, right, method=name, keep=keep)
    (group,) = compare.load(compare.find([tmp_path])[0])
    text = printed(group, width, wide=False)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    head = text.splitlines()[2].split()
    assert {"method", "keep", "accuracy", "full", "random"} <= {*head}  # of "vs full", "vs random"
    said = " ".join(text.split())
    for row in group.rows:
        assert f"{100 * row.accuracy.mean:.1f} " in said
    names = "".join(line[:23].strip() for line in text.splitlines())
    assert f"vqtoken{options}" in names
    assert ("group A" in text) == (width == 100)
    assert "TokDense" not in text
    assert "TokDense" in printed(group, 220)


def answers(folder, rights):
    """Replace the scores of a run by 1 for the questions with these numbers, and 0 for the others."""
    file = folder / "samples.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [line | {"score": float(int(line["id"]) in rights)} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_group_a_by_hand(tmp_path):
    """Of 120 questions the uncompressed model gets 0-99 right, `downsample` at 64 gets 0-69 and 110-119 right: group A
    is 70-99, of which the method gets 90-99."""
    answers(synthetic(tmp_path, "full", None, 0.5), range(100))
    answers(synthetic(tmp_path, "downsample", 64, 0.5), [*range(70), *range(110, 120)])
    answers(synthetic(tmp_path, "good", 64, 0.5), range(90, 120))
    answers(synthetic(tmp_path, "good", 16, 0.5), range(90, 120))
    (group,) = compare.load(compare.find([tmp_path])[0])
    good = row(group, "good", 64)
    assert (good.group_a.mean, good.group_a.n, good.why_not) == (pytest.approx(10 / 30), 30, "")
    assert 0.1 < good.group_a.low < 1 / 3 < good.group_a.high < 0.7
    for own in (row(group, "full", None), row(group, "downsample", 64)):
        assert (own.group_a, own.why_not) == (None, "")
    other = row(group, "good", 16)
    assert other.group_a is None
    assert "downsample" in other.why_not
    assert "16" in other.why_not
    assert other.why_not in table.caption(group)
    assert "33.3 ±" in table.markdown([group])
    assert json.loads(recorded.write([group]))[0]["rows"][-1]["why_not"] == other.why_not


def test_group_a_may_be_empty_or_have_nothing_to_stand_on(tmp_path):
    answers(synthetic(tmp_path, "downsample", 64, 0.5), range(100))
    answers(synthetic(tmp_path, "good", 64, 0.5), range(90))
    (group,) = compare.load(compare.find([tmp_path])[0])
    assert "uncompressed" in row(group, "good", 64).why_not
    answers(synthetic(tmp_path, "full", None, 0.5), range(100))
    (group,) = compare.load(compare.find([tmp_path])[0])
    assert row(group, "good", 64).group_a is None
    assert "nothing wrong" in row(group, "good", 64).why_not


def test_a_keep_of_1_and_of_everything_are_two_budgets(tmp_path):
    for name, keep in (("full", None), ("downsample", 1), ("random", 1), ("good", 1)):
        synthetic(tmp_path, name, keep, 0.5)
    synthetic(tmp_path, "everything", 1, 0.5, method="good", keep=1.0)
    (group,) = compare.load(compare.find([tmp_path])[0])
    one, everything = sorted((r for r in group.rows if r.label == "good"), key=lambda r: isinstance(r.keep, float))
    assert one.versus_random is not None
    assert everything.versus_random is None
    assert "1.0" in everything.why_not


def test_what_cost_everything_is_marked_in_every_form(tmp_path):
    synthetic(tmp_path, "full", None, 0.9)
    run = synthetic(tmp_path, "downsample", 64, 0.5)
    plain = compare.load(compare.find([tmp_path])[0])
    assert "†" not in printed(plain[0], 220) + table.markdown(plain)
    lines = [json.loads(line) | {"full_cost": True} for line in (run / "samples.jsonl").read_text().splitlines()]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    marked = compare.load(compare.find([tmp_path])[0])
    assert row(marked[0], "downsample", 64).full_cost
    for text in everywhere(marked):
        assert "downsample †" in text
        assert "at the cost of all of them" in " ".join(text.split())


def test_speed_ups_are_told_where_they_are_clear(group):
    gains = {"good": {"ratio": 1.84, "low": 1.7, "high": 2.0}, "poor": {"ratio": 7.5, "low": 0.9, "high": 8.0}}
    runs = [dataclasses.replace(run, timing={**run.timing, "speedup": gains.get(run.method)}) for run in group.runs]
    told = compare.Group(tuple(runs))
    assert row(told, "good", 64).speedup.clear
    for text in (printed(told, 240), table.markdown([told])):
        assert "1.84× (1.70–2.00)" in text
        assert "7.50×" not in text
        assert "unclear" in text
    assert "TTFT gain" not in table.columns(group)  # runs of old: nothing is known


def test_few_pictures_show_no_interval(tmp_path):
    for name, keep in (("full", None), ("random", 64), ("good", 64)):
        synthetic(tmp_path, name, keep, 0.5, count=9)
    groups = compare.load(compare.find([tmp_path])[0])
    assert row(groups[0], "good", 64).accuracy.low is None
    assert "±n/a" in printed(groups[0], 220)
    assert "±n/a" in table.markdown(groups)
    assert json.loads(recorded.write(groups))[0]["rows"][0]["accuracy"]["low"] is None
    plot.pareto(groups, tmp_path / "few.svg")
    assert "NaN" not in page.html(groups)


ODD = "a|b*c_d`<e>[f](g)#h&amp;\\"


def test_markdown_shows_names_as_they_are(tmp_path):
    """Names of tasks, of files among options, of data sets, as a reader of Markdown shows them."""
    for name, keep, method in (("full", None, "full"), ("odd", 64, f"vqtoken(weights='{ODD}')")):
        file = synthetic(tmp_path, name, keep, 0.9, tasks=2, method=method, data=ODD) / "samples.jsonl"
        file.write_text(file.read_text().replace('"task0"', json.dumps(ODD)))
        config = json.loads((file.parent / "config.json").read_text())
        config["tasks"][0] = ODD
        (file.parent / "config.json").write_text(json.dumps(config))
    text = table.markdown(compare.load(compare.find([tmp_path])[0]))
    shown = MarkdownIt("commonmark").enable("table").render(text)
    odd = html.escape(ODD, quote=False)
    assert f"<h2>tiny-llava on {odd}</h2>" in shown
    assert f">{odd}</th>" in shown
    assert f"<td>vqtoken(weights='{odd}')</td>" in shown
    assert f"<p>{odd}: 120 questions" in shown
    for part in shown.split("<table>")[1:]:
        rows = part.split("</table>")[0].split("<tr>")[1:]
        assert len({row.count("</td>") + row.count("</th>") for row in rows}) == 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda lines: lines[:-1], "119 of 120 questions"),
        (lambda lines: lines[:60] + lines[61:], "119 of 120 questions"),
        (lambda lines: [*lines[:-1], lines[-1][:40]], "line 120"),
        (lambda lines: lines + lines, "line 121 repeats the question '0'"),
        (lambda lines: [*lines[:-1], lines[0]], "line 120 repeats the question '0'"),
        *(
            (lambda lines, name=name: [without(lines[0], name), *lines[1:]], f"no proper {name}")
            for name in (
                *("task", "media", "answer", "score"),
                *("tokens_in", "tokens_out", "tokens_mean", "flops", "kv_bytes"),
            )
        ),
        (lambda lines: [without(lines[0], "id"), *lines[1:]], "line 1"),
        (lambda lines: [without(lines[0], "score", score="1"), *lines[1:]], "no proper score"),
        (lambda lines: [without(lines[0], "score", score=float("nan")), *lines[1:]], "no proper score"),
        (lambda lines: [without(lines[0], "flops", flops=[1]), *lines[1:]], "no proper flops"),
        (lambda lines: [without(lines[0], "media", error="broken"), *lines[1:]], "no proper media"),
        (lambda lines: ["[]", *lines[1:]], "line 1"),
    ],
)
def test_damaged_samples_are_refused(spoil, said, tmp_path, capsys):
    synthetic(tmp_path, "full", None, 0.9)
    file = synthetic(tmp_path, "good", 64, 0.9) / "samples.jsonl"
    file.write_text("".join(line + "\n" for line in spoil(file.read_text().splitlines())))
    assert main(["compare", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err
    assert str(file.parent) in err


def without(line, name, **more):
    sample = json.loads(line)
    del sample[name]
    return json.dumps(sample | more)


def test_the_frontier():
    assert compare.frontier([3, 1, 2, 2], [9, 5, 4, 7]) == [1, 3, 0]
    assert compare.frontier([1, 1], [5, 6]) == [1]
    assert compare.frontier([], []) == []


def spread(group, **more):
    """The same with costs that differ from each other as those of real models do."""
    factor = {"full": 1.0, "blind": 1.0, "random": 1.0, "good": 1.1, "poor": 6.0}
    return compare.Group(
        tuple(
            dataclasses.replace(
                run,
                timing={"ttft_ms": run.timing["ttft_ms"] * factor[run.method]} | more,
                lines={
                    i: line | {"kv_bytes": [5760, line["kv_bytes"][1] / factor[run.method]]}
                    for i, line in run.lines.items()
                },
            )
            for run in group.runs
        )
    )


def test_the_picture(group, tmp_path):
    plot.pareto([group, spread(group)], tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as drawn:
        assert drawn.width > 800
        assert len(drawn.convert("RGB").getcolors(1 << 24) or []) > 200


def test_no_panel_repeats_another(group):
    """FLOPs and bytes that order all runs alike are one panel; what was not timed has none."""
    assert plot.shown([group]) == ["ttft_ms"]  # all costs of these runs follow the tokens
    apart = spread(group)
    assert plot.shown([apart]) == ["ttft_ms", "flops_share", "kv_share"]
    assert plot.shown([group, apart]) == ["ttft_ms", "flops_share", "kv_share"]
    assert len(plot.picture([group, apart]).axes) == 6
    untimed = compare.Group(tuple(dataclasses.replace(run, timing={}) for run in apart.runs))
    assert plot.shown([untimed]) == ["flops_share", "kv_share"]


def test_no_label_on_a_label_and_no_bar_behind_a_bar(group):
    figure = plot.picture([spread(group)])
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert boxes
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert all(axes.bbox.x0 < box.x0 for box in boxes)
    shares = figure.axes[1]
    at = {}
    containers: Any = shares.containers
    for bars in containers:  # a method each, budgets from small to large
        line = bars.lines[0]
        for x, place in zip(line.get_xdata(), line.get_transform().transform(line.get_xydata()), strict=True):
            at.setdefault(round(x, 6), []).append(place[0])
    assert len(at) == 3
    for places in at.values():
        assert len(places) == 3
        assert min(b - a for a, b in itertools.pairwise(sorted(places))) > 4


def test_videos_of_a_token_per_time_step_are_marked_and_cost_little(tmp_path):
    synthetic(tmp_path, "full", None, 0.9)
    run = synthetic(tmp_path, "downsample", 4, 0.5)
    lines = [json.loads(line) | {"least": True, "tokens_out": 8} for line in (run / "samples.jsonl").open()]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    marked = compare.load(compare.find([tmp_path])[0])
    assert not row(marked[0], "downsample", 4).full_cost
    for text in everywhere(marked):
        assert "downsample ‡" in text
        assert "‡: one token per time step of a video is the least, more than asked for: 8." in " ".join(text.split())
        assert "†" not in text
    lines[0]["tokens_out"] = 6
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "more than asked for: 6 to 8." in table.caption(compare.load(compare.find([tmp_path])[0])[0])


def test_what_cost_everything_stands_at_100_percent(tmp_path):
    synthetic(tmp_path, "full", None, 0.9)
    run = synthetic(tmp_path, "downsample", 64, 0.5, method="downsample")
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    lines = [line | {"flops": [576, 576], "full_cost": True} for line in lines]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (group,) = compare.load(compare.find([tmp_path])[0])
    assert plot.drawn(row(group, "downsample", 64), "flops_share")
    (legend,) = plot.picture([group]).legends
    assert "downsample † (at full cost)" in [text.get_text() for text in legend.get_texts()]


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


def test_methods_that_act_together_are_one_row(tmp_path, capsys):
    """Named in lines that end behind a +, and found where any of them acts."""
    together = "pixelprune(keep=0.6) + tome(keep=0.3, stage=encoder) + divprune"
    synthetic(tmp_path, "full", None, 0.9)
    synthetic(tmp_path, "together", 64, 0.9, method=together)
    assert main(["compare", str(tmp_path)]) == 0
    said = [line.strip().split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    here = said.index("pixelprune")
    assert said[here : here + 5] == ["pixelprune", "(keep=0.6) + tome", "(keep=0.3,", "stage=encoder) +", "divprune"]
    row = data_of(page.html(compare.load(compare.find([tmp_path])[0])))["groups"][0]["rows"][1]
    assert row["stage"] == "pixels+encoder+input"


def test_brackets_are_no_markup(tmp_path, capsys):
    synthetic(tmp_path, "full", None, 0.9, instruction="Answer [yes/no] [/INST]")
    assert main(["compare", str(tmp_path)]) == 0
    assert "[yes/no] [/INST]" in capsys.readouterr().out


def test_the_page_is_complete_in_itself(group):
    text = page.html([group])
    assert set(re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]+)""", text)) == {"data:,", "#table"}
    assert set(re.findall(r"\w+://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not a request
    assert not re.search(r"@import|fetch\(|XMLHttpRequest|url\(", text)
    data = data_of(text)
    assert data["groups"][0]["rows"][0]["label"] == "full"
    assert set(data["groups"][0]["colors"]) == set(data["groups"][0]["shapes"]) == {"random", "good", "poor"}


def test_marks_on_the_page_differ_where_colours_return(tmp_path):
    for number in range(24):
        synthetic(tmp_path, f"m{number}", 64, 0.9, count=6)
    found = data_of(page.html(compare.load(compare.find([tmp_path])[0])))["groups"][0]
    assert len({(found["colors"][name], found["shapes"][name]) for name in found["colors"]}) == 25


def data_of(text):
    return json.loads(re.search(r"const DATA = (.*);\n", text).group(1))  # type: ignore[union-attr]


def test_the_page_knows_what_a_row_is_found_sorted_and_made_by(tmp_path):
    synthetic(tmp_path, "full", None, 0.9)
    synthetic(tmp_path, "random", 64, 0.5)
    synthetic(tmp_path, "one", 64, 0.9, method="prunevid(ratio=0.5)")
    synthetic(tmp_path, "two", 64, 0.9, method="mine")
    groups = compare.load(compare.find([tmp_path])[0])
    data = data_of(page.html(groups, "Title", "Intro", {groups[0].title: "make it"}, lambda name: f"to/{name}"))
    assert (data["title"], data["intro"], data["groups"][0]["by"]) == ("Title", "Intro", "make it")
    assert data["stages"] == ["pixels", "encoder", "input", "layer", "cache"]
    rows = {row["label"]: row for row in data["groups"][0]["rows"]}
    named = rows["prunevid(ratio=0.5)"]
    assert (named["stage"], named["link"]) == ("input+layer+cache", "to/prunevid")
    assert named["summary"].startswith("Merges still places")
    assert (rows["mine"]["stage"], rows["mine"]["link"], rows["full"]["link"]) == ("", None, None)
    assert "--methods 'prunevid(ratio=0.5)' --keep 64" in named["command"]


def test_every_cell_of_the_page_that_is_filled_has_a_value_to_sort_by(group):
    for found in data_of(page.html([group]))["groups"][0]["tables"]:
        for cells, values in zip(found["cells"], found["values"], strict=True):
            for title, cell, value in zip(found["titles"], cells, values, strict=True):
                assert (value is not None) == bool(cell.strip()), title
                if not cell.strip():
                    continue
                said = cell.split()[0]
                if title in ("keep", "tokens", "mean", "TTFT ms", "tok/s", "TokDense"):
                    assert float(said) == pytest.approx(value, abs=0.5)
                elif title in ("accuracy", "vs full", "vs random", "retention", "loyalty", "task1"):
                    assert float(said) == pytest.approx(100 * value, abs=0.1)


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
    assert main(["compare", str(out), "--wide"]) == 0
    assert "TokDense" in capsys.readouterr().out
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
