"""Every method has a page, which says what its class, the table of signals, docs/fidelity.md and the results say."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import vtc
from docs.generate import __main__ as generate
from docs.generate import families, fidelity, markdown, methods, results
from vtc.eval import recorded
from vtc.methods.base.index import shipped
from vtc.models.families import SHIPPED
from vtc.signals import SIGNALS

NAMES = list(shipped())


@cache
def page(name: str) -> str:
    return methods.page(shipped()[name])


def tables(text: str) -> list[list[list[str]]]:
    """Cells of every table as a reader of Markdown has them, titles first."""
    html = MarkdownIt("commonmark").enable("table").render(text)
    return [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in part.split("<tr>")[1:]]
        for part in html.split("<table>")[1:]
    ]


def test_every_method_has_a_page_and_a_line_of_the_index():
    found = methods.pages()
    assert set(found) == {"methods/index.md", *(f"methods/{info.name}.md" for info in vtc.list_methods())}
    rows = [row for rows in tables(found["methods/index.md"]) for row in rows[1:]]
    assert sorted(re.sub("<.*?>", "", row[0]) for row in rows) == sorted(NAMES)
    for row in rows:
        info = shipped()[re.sub("<.*?>", "", row[0])]
        assert info.summary[:-1] in row[1]
        assert all(stage in row[1] for stage in info.stage.split("+")[1:])


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_complete(name):
    info, text = shipped()[name], page(name)
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    assert titles[:7] == [
        name, "At a glance", "Use it", "Options", "What it reads", "Beside the paper and the authors' code", "Results"
    ]  # fmt: skip
    assert info.paper is None or f"https://arxiv.org/abs/{info.paper.arxiv}" in text
    options = text.partition("## Options\n")[2].partition("\n## ")[0].strip().splitlines()
    assert [option.split("`")[1] for option in options] == methods.in_order(info)
    assert all(re.match(r"\* \*\*`\w+`\*\* = `.+?`, \S.*?: \S.{5}", option) for option in options)
    for signal in info.needs:
        assert f"* **`{signal}`** " in text
        assert markdown.prose(SIGNALS[signal].doc) in text
    for rows in tables(text):
        assert len({len(row) for row in rows}) == 1, rows[0]


def test_pages_say_what_holds_inside_the_vision_tower():
    packed = {one.model_type for one in families.facts() if one.packed}
    assert methods.runs_on(shipped()["zerotprune"]) == [
        name for name in methods.runs_on(shipped()["tome"]) if name not in packed and "encoder" in SHIPPED[name].stages
    ]
    assert "No signals: the blocks' own queries and keys." in page("zerotprune")
    assert "or, by `stage=encoder`, between the vision tower's blocks" in page("tome")
    guests = "With the option `stage=encoder` these act here, too: [`pitome`](pitome.md), [`random`](random.md), "
    assert guests in methods.pages()["methods/index.md"]


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_the_fidelity_table_stands_on_the_page(name):
    row = fidelity.compared(name)
    assert row["now"]
    assert all(cell in page(name) for cell in row.values())
    for option, *_ in fidelity.options(name):
        assert option in page(name)
        vtc.resolve(re.findall(rf"`({name}\(.*?\))`", option)[0])
    assert "](#" not in page(name)


def test_all_rows_of_the_fidelity_table_belong_to_a_method():
    assert {row[0].strip("`") for row in fidelity._rows(fidelity._COMPARED)} == set(NAMES)
    assert sum(len(fidelity.options(name)) for name in NAMES) >= 20


def test_results_are_those_of_the_tables():
    """Every row of every committed table stands on its method's page, as the table has it."""
    for name, group in results.groups().items():
        for row in group.rows:
            for method in set(results.names_of(row.label)) & set(NAMES):
                columns = results.rows_of(method)[name]
                at = list(zip(columns["method"], columns["keep"], strict=True)).index((row.name, str(row.keep)))
                assert columns["accuracy"][at].startswith(f"{100 * row.accuracy.mean:.1f} ")
                assert columns["method"][0] == "full"
                assert f"By `{results.TABLES[name][1]}`" in page(method)
                assert f"| {markdown.escaped(row.name)} | {row.keep} | {row.tokens:.0f} |" in page(method)


def test_a_row_of_several_methods_stands_on_the_page_of_each(monkeypatch):
    group = results.groups()["pictures"]
    label = "pixelprune(keep=0.6) + tome(stage=encoder) + divprune"
    together = replace(group, rows=[group.rows[0], replace(group.rows[-1], label=label)])
    monkeypatch.setattr(results, "groups", lambda: {"pictures": together})
    for method in ("pixelprune", "tome", "divprune"):
        assert results.rows_of(method)["pictures"]["method"] == ["full", label]
    assert results.rows_of("todre") == {}


def test_what_is_committed_fits():
    files = list(results.FOLDER.glob("*.json"))
    assert {file.stem for file in files} <= set(results.TABLES)
    assert {"pictures", "inside-average"} <= {file.stem for file in files}
    assert sum(file.stat().st_size for file in files) < 700_000


def test_the_page_of_results_has_the_tables_of_the_files():
    page = results.PAGE.read_text(encoding="utf-8")
    assert results.rewritten(page) == page, "write it anew: python -m docs.generate.results"


def test_tables_are_replaced_under_their_heading_and_nowhere_else(monkeypatch, tmp_path, capsys):
    before = "# Results\n\nWords.\n\n| a |\n|---|\n\n### All numbers\n\nBy some command.\n\n"
    after = "## All numbers of videos\n\n| c |\n|---|\n"
    monkeypatch.setattr(results, "PAGE", tmp_path / "results.md")
    results.PAGE.write_text(f"{before}| old |\n|---|\n| 1 |\n\nOld words.\n\n{after}")
    monkeypatch.setattr(results, "groups", cache(lambda: {"pictures": read("pictures")}))
    assert results.main() == 0
    assert "has new tables" in capsys.readouterr().out
    new = results.PAGE.read_text()
    assert new == f"{before}{results.body('pictures')}\n{after}"
    assert new.count("| divprune | 0.1 |") == 1
    assert results.main() == 0
    assert (results.PAGE.read_text(), "is as it was" in capsys.readouterr().out) == (new, True)


def read(name):
    (group,) = recorded.read(results.FOLDER / f"{name}.json")
    return group


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_names_a_method_and_a_family_that_it_runs_on(name):
    (text,) = blocks(page(name), "text")
    assert vtc.resolve(text.strip()).name == name
    assert re.search(rf'wrapped\(model, "{re.escape(text.strip())}"(, calibration=".*")?\)', page(name))
    assert f'--method "{text.strip()}"' in page(name)
    for family in methods.runs_on(shipped()[name]):
        assert f"`{family}`" in page(name) or "Families:** all; see" in page(name)


SHORT = ("divprune", "downsample", "evs")  # of pictures on tiny-llava, on tiny-qwen, of a video
RUN = [name for name in NAMES if not shipped()[name].only]  # by models that ship
SLOW = [pytest.param(name, marks=() if name in SHORT else pytest.mark.full) for name in RUN]


@pytest.mark.parametrize("name", SLOW)
def test_the_example_runs(name, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).resolve().parents[3])
    loaded = cache(vtc.load)
    monkeypatch.setattr(vtc, "load", loaded)
    (code,) = blocks(page(name), "python")
    made = [Path(file) for file in re.findall(r'out="(runs/.*?)"', code)]  # what is there is not written anew
    for file in made:
        file.unlink(missing_ok=True)
    exec(compile(code, f"{name}.md", "exec"), {})
    for file in made:
        file.unlink()
    assert "visual tokens" in capsys.readouterr().out


def test_prose_keeps_code_and_hides_markup():
    text = markdown.prose("a_b * `c_d | e` & `x` <f> [g](h) \\ # i | j")
    assert "<f>" not in text
    table = "\n".join(markdown.table(("one", "two"), [(text, "x")]))
    html = MarkdownIt("commonmark").enable("table").render(table)
    shown = "a_b * <code>c_d | e</code> &amp; <code>x</code> &lt;f&gt; [g](h) \\ # i | j"
    assert f"<td>{shown}</td>" in html.replace("&#124;", "|")


def test_the_command_writes_them_all(tmp_path, capsys):
    assert generate.main([str(tmp_path)]) == 0
    written = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert written == set(generate.pages())
    assert f"{len(written)} pages" in capsys.readouterr().out
    assert generate.main(["--help"]) == generate.main(["a", "b"]) == 2


def test_a_page_that_prose_names_is_a_link():
    text = markdown.prose("`docs/speed.md` is code; docs/fidelity.md has the table, docs/fidelity.mdx nothing.")
    title = (markdown.ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    assert text == f"`docs/speed.md` is code; [{title}](../fidelity.md) has the table, docs/fidelity.mdx nothing."
